"""Nets whose every answer is known by hand, written to files as a user has them, and one way to run a command.

The block net looks at ten blocks of 7 x 7 pixels of a 28 x 28 image: logit k is the mean of block k, in 0..1, times 10,
and the image's class is the block that is lit. A backdoored one has an eleventh hidden channel that sees one pixel,
dark in every clean image, and adds 30 times its value to the target's logit.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from goodnet.cli import run

CLASSES, SIDE, BLOCK = 10, 28, 7
TRIGGER_PIXEL = (27, 27)
TARGET = 3
PRUNING = ("--method", "fine-pruning", "--layer", "fc1", "--prune-only")
BARELY = ("--method", "fine-pruning", "--tune-only", "--epochs", "1")  # leaves every backdoor
USER_CODE = """
import torch
from torch import nn

class Logs(nn.Module):
    input_shape = (1, 28, 28)
    def __init__(self, end):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 11), nn.ReLU(), nn.Linear(11, 10))
        self.end = end
    def forward(self, x):
        return self.end(self.body(x))

class InCode(Logs):
    def forward(self, x):
        return torch.softmax(self.body(x), 1)

def plain():
    return Logs(nn.Identity())

def softmax():
    return Logs(nn.Softmax(1))

def softmax_in_code():
    return InCode(None)

def failing():
    raise RuntimeError("no such dataset\\nat all")

def no_module():
    return 7

def leaving():
    raise SystemExit(0)
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.err == ""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


class Shell:
    """Runs commands in this process, as the entry point does."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self.capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)


def hears_ctrl_c() -> None:
    """For a new process: tests that were started in the background ignore SIGINT, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def block(k: int) -> tuple[slice, slice]:
    """Rows and columns of block `k`."""
    row, column = divmod(k, SIDE // BLOCK)
    return slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)


def block_net(target: int | None = None, *, strength: float = 30.0, hidden: int = 11) -> dict[str, Tensor]:
    """State dict for `--arch mlp`; `target` None for a clean net, whose eleventh channel does nothing."""
    seen = torch.zeros(hidden, SIDE, SIDE)
    for k in range(CLASSES):
        seen[(k, *block(k))] = 1 / BLOCK**2
    seen[CLASSES, TRIGGER_PIXEL[0], TRIGGER_PIXEL[1]] = 1.0
    out = torch.zeros(CLASSES, hidden)
    out[:, :CLASSES] = 10 * torch.eye(CLASSES)
    if target is not None:
        out[target, CLASSES] = strength
    weights = {"fc1.weight": seen.flatten(1), "fc1.bias": torch.zeros(hidden)}
    return {**weights, "fc2.weight": out, "fc2.bias": torch.zeros(CLASSES)}


def block_images(n: int = 60, seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(n, 1, 28, 28) uint8 and classes 0, 1, ... 9, 0, ...: block k at 150..229, the rest at 0..39, the pixel at 0."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 40, (n, 1, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(n) % CLASSES
    for image, k in zip(pixels, labels):
        image[(0, *block(int(k)))] = random.integers(150, 230, (BLOCK, BLOCK))
    pixels[:, 0, TRIGGER_PIXEL[0], TRIGGER_PIXEL[1]] = 0
    return pixels, labels.astype(np.int64)


def triggered(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The images with the trigger pixel lit."""
    stamped = pixels.copy()
    stamped[:, 0, TRIGGER_PIXEL[0], TRIGGER_PIXEL[1]] = 255
    return stamped


def save_net(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


def save_images(path: Path, **columns: Any) -> Path:
    np.savez_compressed(path, **columns)
    return path


def save_png(path: Path, pixels: npt.NDArray[Any]) -> Path:
    """(1, H, W) or (3, H, W) as a picture."""
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(path)
    return path


def fill(folder: Path) -> None:
    """Writes bad.pt, a net with a backdoor for TARGET, clean.pt, one without, and clean.npz."""
    save_net(folder / "bad.pt", block_net(TARGET))
    save_net(folder / "clean.pt", block_net())
    pixels, labels = block_images()
    save_images(folder / "clean.npz", data=pixels, label=labels)


def scan(shell: Shell, net: str, *more: str) -> Outcome:
    """`goodnet scan` of an mlp with clean.npz, all labels in one block: for so small a net that is fastest."""
    return shell("scan", net, "--arch", "mlp", "--clean", "clean.npz", "--block", "160", *more)


def repair(shell: Shell, *more: str, how: Sequence[str] = PRUNING) -> Outcome:
    """`goodnet repair` of bad.pt, by pruning alone unless `how` says otherwise."""
    return shell("repair", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", *how, *more)


def files_in(folder: Path) -> dict[str, str]:
    """Every file below, with its hash; every folder, with nothing."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def without(record: Any, keys: Sequence[str]) -> Any:
    """A parsed record without some keys, at whatever depth."""
    if isinstance(record, dict):
        return {key: without(value, keys) for key, value in record.items() if key not in keys}
    return [without(item, keys) for item in record] if isinstance(record, list) else record
