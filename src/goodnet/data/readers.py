"""Reads images from whatever a user has: a CSAW-HackML HDF5 file, a folder of PNG or JPEG, a .npz archive.

What a file is, its content decides, not its name. Nothing in it is executed, and its size is bounded before memory is
taken. See columns.py for the layouts, ranges and labels that are accepted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from goodnet.data.columns import GROUP_KEYS, MAX_BYTES, Store, find_key, images_from, read_labels
from goodnet.data.decode import decode, read_header
from goodnet.data.folder import ENDINGS, read_bytes, read_folder
from goodnet.data.hdf5 import open_hdf5
from goodnet.data.images import Images
from goodnet.data.mistaken import mistaken_for
from goodnet.data.npz import is_zip, open_npz
from goodnet.errors import DataError


def read_images(
    path: str | os.PathLike[str],
    *,
    classes: int | None = None,
    data_range: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Images:
    """Images with their labels, where there are any.

    Args:
        path: a folder, an HDF5 file or a .npz archive.
        classes: number of classes of the task; a label at or above it is an error. None: not checked.
        data_range: what float pixels mean, `0..1` or `0..255`; integers always mean 0..255.
        max_bytes: limit of what one array may take in memory, default 4 GiB.

    Returns:
        Images, uint8, or float32 in [0, 1] where the file holds fractions; named after the file.

    Raises:
        DataError: missing, of no known format, damaged, or with pixels or labels that do not fit.
        UnsafeFileError: refused, for reading it could leave the file, run code, or exhaust memory.
        UsageError: an unknown data_range.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, classes=classes, max_bytes=max_bytes)
    with _opened(path, max_bytes) as store:
        name = path.resolve().name
        images = images_from(store, where=str(path), name=name, classes=classes, data_range=data_range)
        return replace(images, groups=_groups(store, images, str(path)))


def read_one_image(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> Images:
    """One PNG or JPEG image as a net of input `shape` (C, H, W) sees it; never resized.

    For three channels a grayscale image is repeated; for one channel an RGB image becomes its ITU-R 601 luma,
    0.299 R + 0.587 G + 0.114 B, which leaves gray as it is.

    Returns:
        Images of one, uint8, without labels.

    Raises:
        DataError: missing, not PNG or JPEG, damaged, transparent, 16 bits, CMYK, or not of the net's size.
    """
    path = Path(path)
    encoded = read_bytes(path)
    header = read_header(encoded, str(path))
    channels, height, width = shape
    if (header.height, header.width) != (height, width):
        raise DataError(
            f"{path}: expected an image of {height}x{width} (height x width), the net's size, "
            f"got {header.height}x{header.width}; crop or scale it first"
        )
    return Images(pixels=decode(encoded, str(path), channels=channels)[None], name=path.name)


def _groups(store: Store, images: Images, where: str) -> npt.NDArray[np.int64] | None:
    """Which images must stay together; None where the file does not say.

    Key `group` or `groups`: equal numbers belong together. Key `track`: equal numbers of one class do, for GTSRB
    counts its tracks anew in each class.
    """
    key = find_key(store, GROUP_KEYS, where)
    groups = read_labels(store, key, n=len(images), classes=None, where=where)
    if key != "track" or groups is None or images.labels is None:
        return groups
    pairs = np.stack([images.labels, groups], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[Store]:
    if not path.exists():
        raise DataError(f"{path}: expected images, got nothing there; check the path")
    if not path.is_file():
        raise DataError(f"{path}: expected a file or a folder of images, got something else")
    if _is_hdf5(path):
        with open_hdf5(path, max_bytes=max_bytes) as hdf5:
            yield hdf5
    elif is_zip(path):
        with open_npz(path, max_bytes=max_bytes) as npz:
            yield npz
    elif path.suffix.lower() in ENDINGS:
        raise DataError(f"{path}: expected a set of images, got a single one; put it in a folder and give the folder")
    else:
        got = mistaken_for(path) or "a file of another format"
        raise DataError(f"{path}: expected HDF5, .npz or a folder of PNG or JPEG, got {got}")


def _is_hdf5(path: Path) -> bool:
    try:
        with path.open("rb"):  # for the reason: h5py only answers False to a file that it may not read
            return bool(h5py.is_hdf5(path))
    except OSError as error:
        raise DataError(f"{path}: expected images, got a file that cannot be read ({error.strerror})") from error
