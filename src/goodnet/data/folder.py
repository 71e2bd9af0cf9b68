"""Folders of PNG and JPEG images: one subfolder a class, or flat and without labels.

Subfolders with whole numbers for names (`0`, `7`, `00012`) are those labels; otherwise the sorted names count as 0,
1, 2 ... Hidden entries and files with other endings than .png, .jpg, .jpeg are left out. A link that leads out of the
folder is refused, not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from goodnet.data.columns import MAX_BYTES, to_labels
from goodnet.data.decode import decode_all
from goodnet.data.images import Images
from goodnet.errors import DataError, UnsafeFileError

ENDINGS = (".png", ".jpg", ".jpeg")
_MAX_FILE = 64 * 2**20


def read_folder(path: Path, *, classes: int | None = None, max_bytes: int = MAX_BYTES) -> Images:
    """All images of a folder, in the order of their sorted paths.

    Raises:
        DataError: no image, images both in the folder and in subfolders, numbers mixed with names, two subfolders
            for one label, sizes that differ, a label at or above `classes`, or an image that cannot be read.
        UnsafeFileError: a link out of the folder, or more than max_bytes of pixels.
    """
    subfolders = [entry for entry in _entries(path) if entry.is_dir()]
    flat = _image_files(path, root=path)
    nested = [(folder, _image_files(folder, root=path)) for folder in subfolders]
    filled = [folder for folder, files in nested if files]
    if flat and filled:
        raise DataError(f"{path}: expected images in class subfolders or none at all, got {flat[0].name!r} beside them")
    if not flat and not filled:
        raise DataError(f"{path}: expected PNG or JPEG images here or one folder down, got none")
    files, labels = flat, None
    if not flat:
        files = [file for _, images in nested for file in images]
        # Subfolders without images count too: whoever numbered classes by sorted name meant them.
        numbers = folder_labels([folder.name for folder in subfolders], where=str(path))
        counts = [len(images) for _, images in nested]
        labels = to_labels(np.repeat(np.array(numbers), counts), where=str(path), classes=classes)
    names = [f"{path}: {str(file.relative_to(path))!r}" for file in files]
    pixels = decode_all(names, lambda i: read_bytes(files[i]), max_bytes=max_bytes)
    return Images(pixels=pixels, labels=labels, name=path.resolve().name)


def folder_labels(names: Sequence[str], *, where: str) -> list[int]:
    """The label of each subfolder name, in the order given."""
    numbers = [name for name in names if re.fullmatch(r"[0-9]{1,9}", name)]
    if not numbers:
        order = sorted(names)
        return [order.index(name) for name in names]
    if len(numbers) < len(names):
        odd = next(name for name in names if name not in numbers)
        raise DataError(f"{where}: expected class folders all numbered or all named, got {numbers[0]!r} and {odd!r}")
    labels = [int(name) for name in names]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise DataError(f"{where}: expected one folder a class, got two for label {twice}")
    return labels


def read_bytes(file: Path) -> bytes:
    """The bytes of a regular file of at most 64 MiB.

    Raises:
        DataError: missing, no regular file, or larger.
    """
    if not file.is_file():
        raise DataError(f"{file}: expected an image file, got {'something else' if file.exists() else 'nothing there'}")
    if file.stat().st_size > _MAX_FILE:
        raise DataError(f"{file}: expected an image of at most {_MAX_FILE // 2**20} MiB, got a larger file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: expected an image, got one that cannot be read ({error.strerror})") from error


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry) for entry in os.scandir(folder) if not _hidden(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: expected a folder, got one that cannot be read ({error.strerror})") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _image_files(folder: Path, *, root: Path) -> list[Path]:
    _stay_inside(folder, root)
    files = [entry for entry in _entries(folder) if entry.suffix.lower() in ENDINGS and not entry.is_dir()]
    for file in files:
        _stay_inside(file, root)
    return files


def _stay_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UnsafeFileError(f"{root}: {path.name!r} is a link to outside of the folder; copy the images in")
