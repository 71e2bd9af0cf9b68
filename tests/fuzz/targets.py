"""Every reader of files, and what its files are damaged by."""

from __future__ import annotations

import dataclasses
import io
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from goodnet import strict_json
from goodnet.data.readers import read_images
from goodnet.errors import ModelError, UsageError
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier
from goodnet.report.page import read_parts, render_report
from goodnet.triggers.files import read_triggers
from goodnet.work import Work

from . import structure
from .mutate import Mutator, damage, json_text

NO_ARCH = "none"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader.

    Attributes:
        read: takes a file's path and the architecture it is to be read with; raises what a user would see.
        mutators: one is drawn for each input; the more often it stands here, the more often.
        place: where the file lies below the folder of its own that it gets, `NAME` for that of the seed.
        unpacked: the input is a zip of the folder that is read.
    """

    read: Callable[[Path, str | None], object]
    mutators: Sequence[Mutator]
    place: str = "NAME"
    unpacked: bool = False


def _model(path: Path, arch: str | None) -> None:
    """As `goodnet inspect`, `inspect --json` and `scan` do."""
    info = inspect_file(path)
    strict_json.to_json(dataclasses.asdict(info))
    if info.refused is not None:
        raise ModelError(info.refused)
    if info.classes is None and arch is not None:
        load_classifier(path, arch=arch)


def _folder(path: Path, arch: str | None) -> None:
    read_images(path.parents[1])


def _images(path: Path, arch: str | None) -> None:
    try:
        read_images(path)
    except UsageError:  # fractions or whole numbers? the user is asked
        read_images(path, data_range="0..255")


def _report(path: Path, arch: str | None) -> None:
    render_report(read_parts(path.parent))


def _triggers(path: Path, arch: str | None) -> None:
    read_triggers(path)


def _work(path: Path, arch: str | None) -> None:
    Work(path.parent)


_ZIPPED = structure.zipped(damage)
TARGETS: dict[str, Target] = {
    "keras": Target(read=_model, mutators=(structure.hdf5, structure.hdf5, structure.hdf5, damage)),
    "keras-weights": Target(read=_model, mutators=(structure.hdf5, damage)),
    "keras-zip": Target(
        read=_model, mutators=(structure.zipped(json_text), structure.zipped(structure.hdf5_or_bytes), damage)
    ),
    "torch": Target(
        read=_model, mutators=(structure.zipped(structure.pickled), structure.zipped(structure.pickled), damage)
    ),
    "safetensors": Target(read=_model, mutators=(structure.safetensors, damage)),
    "goodnet": Target(read=_model, mutators=(structure.goodnet, structure.goodnet, structure.goodnet, damage)),
    "onnx": Target(read=_model, mutators=(structure.protobuf, structure.protobuf, structure.protobuf, damage)),
    "export": Target(read=_model, mutators=(structure.graphs, structure.graphs, _ZIPPED, damage)),
    "hugging-face": Target(
        read=_model,
        mutators=(structure.zipped(structure.tensors), structure.zipped(structure.tensors), structure.zipped(damage)),
        unpacked=True,
    ),
    "pictures": Target(read=_folder, mutators=(structure.picture, damage), place="0/NAME"),
    "npz": Target(read=_images, mutators=(structure.zipped(structure.array, packed=True), damage)),
    "csaw": Target(read=_images, mutators=(structure.hdf5, damage)),
    "records": Target(read=_report, mutators=(structure.json_bytes,)),
    "triggers": Target(read=_triggers, mutators=(structure.zipped(structure.array, packed=True), damage)),
    "work": Target(read=_work, mutators=(structure.zipped(structure.array, packed=True), damage)),
}


class Inputs:
    """The damaged files of one target: the i-th hangs on (seed, target, i) and the whole files alone."""

    def __init__(self, target: str, files: Path, seed: int):
        self.target, self.seed = target, seed
        self.files = [(file.name, file.read_bytes()) for file in sorted(files.iterdir())]
        self.all = [content for _, content in self.files]

    def make(self, index: int) -> tuple[str, bytes]:
        """Name of the seed file and the damaged bytes."""
        rng = Random(f"{self.seed} {self.target} {index}")
        name, content = self.files[rng.randrange(len(self.files))]
        with warnings.catch_warnings():  # of zipfile and numpy, about what is being damaged
            warnings.simplefilter("ignore")
            data = rng.choice(TARGETS[self.target].mutators)(content, rng, self.all)
        again = not TARGETS[self.target].unpacked and rng.random() < 0.04
        return name, damage(data, rng, self.all) if again else data


def put(target: str, folder: Path, name: str, content: bytes) -> Path:
    """Writes the input alone into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / TARGETS[target].place.replace("NAME", name)
    path.parent.mkdir(parents=True)
    if not TARGETS[target].unpacked:
        path.write_bytes(content)
        return path
    path.mkdir()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            name = info.filename.replace("/", "_").replace("\0", "_").encode("utf-8", "replace")[:200]
            member = path / name.decode("utf-8", "ignore")
            if not member.is_dir():  # "." and ".."
                member.write_bytes(archive.read(info))
    return path


def arch_of(name: str) -> str | None:
    """The architecture that a seed file's name begins with."""
    arch, mark, _ = name.partition("--")
    return arch if mark and arch != NO_ARCH else None
