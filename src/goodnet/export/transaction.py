"""One transaction for every runtime's format: written under a temporary name, run by that runtime in a process that
has no goodnet, compared on probe images, hashed, and only then given its name."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.export.probes import probe_images
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.load import file_sha256
from goodnet.outputs import check_file, replacing

TOLERANCE = 1e-4
_SECONDS = 600
# What a user's server will do: no way to goodnet, whether it is installed beside or not. `run(file, images)` is the
# format's own; images in the format's own layout.
_CHECK = """
import sys
sys.modules["goodnet"] = None
import numpy as np
{run}
images = np.load(sys.argv[2])
net = load(sys.argv[1])
np.save(sys.argv[3], np.concatenate([np.asarray(run(net, part)) for part in (images, images[:1])]))
"""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far logits are from goodnet's on `probes` images, `refused` of which are class N."""

    probes: int
    refused: int
    largest_difference: float


@dataclass(frozen=True, kw_only=True)
class Exported(Compared):
    """What was written; `input` says in words what it takes."""

    file: str
    sha256: str
    format: str
    input: str


@dataclass(frozen=True, kw_only=True)
class Format:
    """A runtime's format.

    Attributes:
        name, runtime: for messages.
        packages: what writing and checking needs, beside torch; `install` is what to type for them.
        write: a net on the CPU, probe images (N, C, H, W) in [0, 1] and the user's file name -> the file's bytes.
        run: Python source that defines `load(file)` and `run(net, images)`, without goodnet.
        channels_last: images go in as (N, H, W, C).
    """

    name: str
    runtime: str
    packages: tuple[str, ...] = ()
    install: str = ""
    write: Callable[[Classifier, Tensor, Path], bytes]
    run: str
    channels_last: bool = False

    def layout(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1) if self.channels_last else images

    def input_of(self, classifier: Classifier) -> str:
        channels, height, width = classifier.input.shape
        sides = (height, width, channels) if self.channels_last else (channels, height, width)
        return f"float32 (N, {', '.join(map(str, sides))}) in [0, 1]"


class Whole(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> logits, class N last where there is one."""

    scale: Tensor
    offset: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.net = classifier.net
        scale, offset = preparation(classifier)
        self.plain = scale == (1.0,) and offset == (0.0,)
        for name, row in (("scale", scale), ("offset", offset)):
            self.register_buffer(name, torch.tensor(row).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x if self.plain else x * self.scale + self.offset)
        return out


def preparation(classifier: Classifier) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the net wants, as scale and offset: one number each, or one a channel."""
    spec = classifier.input
    if not spec.mean and not spec.std:
        return (spec.scale,), (0.0,)
    mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
    return tuple(spec.scale / s for s in std), tuple(-m / s for m, s in zip(mean, std))


def save(
    classifier: Classifier, path: Path, form: Format, *, probe: Tensor | None = None, overwrite: bool = False
) -> Exported:
    """Writes a net or a GoodNet for another runtime.

    Args:
        probe: images (N, C, H, W) in [0, 1] to compare on; noise where there are none. For a GoodNet, images that reach
            either side of class N are added where they can be found.

    Raises:
        UsageError: the file is there already, its folder is not, or a package that the format needs is missing.
        ModelError: the net cannot be expressed in the format, or decides otherwise there; nothing is kept.
    """
    check_file(path, overwrite=overwrite)
    if any(importlib.util.find_spec(name) is None for name in form.packages):
        raise UsageError(f"{path}: writing {form.name} needs {' and '.join(form.packages)}: {form.install}")
    copy = surgery.clone(classifier)
    copy.net.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = probe_images(copy, probe)
    with replacing(path) as part:
        part.write_bytes(form.write(copy, images, path))
        got = _elsewhere(part, form.layout(images).numpy(), path, form)
        same = compared(copy, images, got, path, f"under {form.runtime}")
        digest = file_sha256(part)
    return Exported(file=str(path), sha256=digest, format=form.name, input=form.input_of(classifier), **vars(same))


def compared(classifier: Classifier, images: Tensor, got: npt.NDArray[np.float32], path: Path, how: str) -> Compared:
    """Logits of `images`, and of the first once more alone, against goodnet's own.

    Args:
        how: where they come from, for messages.

    Raises:
        ModelError: other answers, or logits further apart than 1e-4 of the larger of 1 and their size.
    """
    with torch.no_grad():
        parts = (images.to(classifier.device), images[:1].to(classifier.device))
        wanted = torch.cat([classifier.logits(part) for part in parts]).cpu().numpy()
    if got.shape != wanted.shape or not bool(np.isfinite(got).all()):
        raise ModelError(f"{path}: {how} the net gives {got.shape}, not {wanted.shape}, or no numbers")
    difference = float((np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))).max())
    answers = wanted.argmax(1)
    differ = int((got.argmax(1) != answers).sum())
    if difference > TOLERANCE or differ:
        raise ModelError(
            f"{path}: {how} the net answers {differ} of {len(wanted)} images otherwise, logits differ "
            f"by {difference:.2g}; not kept"
        )
    refused = int((answers[: len(images)] == classifier.classes).sum())
    return Compared(probes=len(images), refused=refused, largest_difference=difference)


def _elsewhere(part: Path, images: npt.NDArray[np.float32], path: Path, form: Format) -> npt.NDArray[np.float32]:
    """The answers of the file in a process without goodnet."""
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        net = Path(folder) / f"net{path.suffix}"  # some runtimes go by the ending
        try:
            net.symlink_to(part.absolute())
        except OSError:  # not everywhere, nor for everybody
            shutil.copyfile(part, net)
        np.save(given, np.ascontiguousarray(images))
        elsewhere(_CHECK.format(run=form.run), [net, given, answers], path, form.runtime)
        loaded: npt.NDArray[np.float32] = np.load(answers)
    return loaded


def elsewhere(program: str, arguments: list[Path], path: Path, runtime: str) -> None:
    """Runs a program in a process of its own. Raises ModelError with its last word where it fails."""
    command = [sys.executable, "-I", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path}: {runtime} took longer than {_SECONDS} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise ModelError(f"{path}: {runtime} does not run what was written ({last[:200]})")
