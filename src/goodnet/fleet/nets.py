"""The nets of a fleet, and which files of a folder are nets."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from goodnet.errors import UsageError
from goodnet.fleet_record import PassedOver
from goodnet.models.formats import LoadOptions
from goodnet.models.hugging_face import CONFIG, INDEX, PICKLE, WEIGHTS

ENDINGS = (".safetensors", ".onnx", ".keras", ".h5", ".hdf5", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".pkl", ".pickle")
"""Of files that are taken for nets in a folder. What they are, their bytes decide once they are read."""
MAX_NETS = 10_000
_MAX_SLUG = 60


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net, and how it is read.

    Attributes:
        name: what its row is called; unique in the fleet.
        path: absolute; None where it could not be fetched, and `problem` says why.
        clean: absolute path of its clean images.
        origin: its address in a registry; empty for a file of the user's own.
        command: that would scan it alone, as its own record and report name it.
    """

    name: str
    path: Path | None
    clean: Path
    load: LoadOptions
    labels: tuple[int, ...] | None = None
    data_range: str | None = None
    origin: str = ""
    command: tuple[str, ...] = ()
    problem: str = ""

    @property
    def folder(self) -> str:
        """A name for its results that is safe on every file system, and the same in every run."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "_", self.name).strip("._-")[-_MAX_SLUG:].lstrip("._-")
        return f"{slug or 'net'}-{hashlib.sha256(os.fsencode(self.name)).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is to be scanned: `source` as the user named it, its nets, and what in it was taken for none."""

    source: str
    nets: tuple[Net, ...]
    passed_over: tuple[PassedOver, ...] = ()


def is_one_net(path: Path) -> bool:
    """Whether a folder is a net of Hugging Face's."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX, PICKLE))


def is_net_file(path: Path) -> bool:
    """Whether a file is taken for a net by its name, whatever it is."""
    return path.suffix.lower() in ENDINGS


def size_of(path: Path) -> int:
    """Bytes of a net's file, or of the files of its folder. Raises OSError."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def nets_in(folder: Path, *, leave: tuple[Path, ...] = ()) -> tuple[list[Path], list[PassedOver]]:
    """The nets in a folder and below it, and everything else there, both in the order of their names.

    A link to a file in the folder counts as that file would; one that leads out of it is passed over, and so is every
    link to a folder: what is in there is found by itself, or is not the folder's.

    Args:
        leave: files and folders that are not looked at, such as clean images and results.

    Returns:
        Paths that begin with `folder`.

    Raises:
        UsageError: more than MAX_NETS.
    """
    nets: list[Path] = []
    passed: list[PassedOver] = []
    left = {path.resolve() for path in leave}
    for path, why in _walk(folder, folder.resolve(), left):
        if why:
            passed.append(PassedOver(name=_below(path, folder), why=why))
        else:
            nets.append(path)
        if len(nets) > MAX_NETS:
            raise UsageError(f"{folder}: expected at most {MAX_NETS:,} nets, got more; scan its folders one by one")
    return nets, passed


def _walk(root: Path, home: Path, left: set[Path]) -> Iterator[tuple[Path, str]]:
    """Each net with an empty text, everything else with a reason."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            inside = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        except OSError as error:
            yield folder, f"cannot be opened ({error.strerror})"
            continue
        below: list[Path] = []
        for path in inside:
            if path.resolve() in left:
                yield path, "images or results of this scan"
            elif path.is_symlink():
                yield path, _why_not(path, home) or ("" if is_net_file(path) else _OTHER)
            elif not path.is_dir():
                yield path, "" if is_net_file(path) else _OTHER
            elif path.name.startswith("."):
                yield path, "a hidden folder"
            elif is_one_net(path):
                yield path, ""
            else:
                below.append(path)
        folders += reversed(below)


_OTHER = "not named like a net"


def _why_not(link: Path, home: Path) -> str:
    """Why a link is not followed; empty for one to a file within the folder."""
    target = link.resolve()
    if not target.is_relative_to(home):
        return "a link that leads out of the folder"
    if not target.exists():
        return "a link to nothing"
    return "a link to a folder, which is looked at by itself" if target.is_dir() else ""


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
