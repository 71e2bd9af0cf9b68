"""HDF5 files of images, as the CSAW-HackML competition stores them: `data`, `label`, sometimes `true_label`.

The file is hostile until shown otherwise. Only plain datasets of its root are read: no soft or external links, no
virtual datasets, no raw data in other files, no filter that HDF5 would load from a plug-in. `jpeg`, an array of
encoded images, is the one key that may be of variable length; it is read one image at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from goodnet.data.columns import MAX_BYTES, MAX_INFLATION, Array, check_bytes
from goodnet.data.decode import decode_all
from goodnet.data.hdf5_heap import heaps_are_whole
from goodnet.data.hdf5_stored import check_inflated, check_lengths, check_stored, filters
from goodnet.data.mistaken import hdf5_reason
from goodnet.errors import DataError, GoodnetError, UnsafeFileError

_FREE = 16 * 2**20  # what may be claimed with nothing stored: places never written read as zeros


class Hdf5Store:
    """An open file of named arrays (the Store of columns.py)."""

    def __init__(self, file: Any, *, where: str, max_bytes: int = MAX_BYTES):
        self._file, self._where, self._max_bytes = file, where, max_bytes

    def names(self) -> Sequence[str]:
        return list(self._file)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.dataset(key).shape or ())

    def read(self, key: str) -> Array:
        """The array under `key`; for `jpeg` the decoded images (N, C, H, W) uint8.

        Raises:
            UnsafeFileError: what the module's docstring refuses, or over max_bytes.
            DataError: no dataset, or of a dtype that holds no numbers.
        """
        dataset = self.dataset(key)
        if key == "jpeg":
            return self._read_jpeg(dataset)
        if dataset.dtype.kind not in "biuf":
            raise DataError(f"{self._where}: expected numbers under {key!r}, got dtype {dataset.dtype}")
        self._check_size(dataset, key)
        return np.asarray(dataset[()])

    def dataset(self, key: str) -> Any:
        """The dataset under `key`, once it is known to lie whole in this file."""
        link = self._file.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise UnsafeFileError(f"{self._where}: {key!r} is a link, maybe to another file; store the array itself")
        dataset = self._file[key]
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{self._where}: expected an array under {key!r}, got a {type(dataset).__name__.lower()}")
        if dataset.is_virtual or dataset.external:
            raise UnsafeFileError(f"{self._where}: {key!r} keeps its pixels in another file; store them in this one")
        return dataset

    def _check_size(self, dataset: Any, key: str) -> None:
        item = dataset.dtype.itemsize
        where = f"{self._where}: {key!r}"
        claimed, stored = math.prod(dataset.shape or ()) * item, check_stored(dataset, where)
        check_bytes(claimed, self._max_bytes, where)
        if claimed > stored * (MAX_INFLATION if h5py.h5z.FILTER_DEFLATE in filters(dataset) else 1) + _FREE:
            raise UnsafeFileError(f"{where} claims {claimed:,} bytes but {stored:,} are stored; refused")
        if dataset.chunks is not None:
            check_bytes(math.prod(dataset.chunks) * item, self._max_bytes, where)
        check_inflated(dataset, self._max_bytes, where)

    def _read_jpeg(self, dataset: Any) -> Array:
        base = h5py.check_vlen_dtype(dataset.dtype)
        if dataset.ndim != 1 or base != np.uint8:
            raise DataError(
                f"{self._where}: expected 'jpeg' (N,) of encoded bytes, got {dataset.dtype} {dataset.shape}"
            )
        self._check_size(dataset, "jpeg")
        check_lengths(dataset, f"{self._where}: 'jpeg'")
        names = [f"{self._where}: jpeg[{i}]" for i in range(len(dataset))]
        return decode_all(names, lambda i: bytes(dataset[i].data), max_bytes=self._max_bytes)


@contextmanager
def open_hdf5(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[Hdf5Store]:
    """Opens `path` for reading.

    Raises:
        DataError: not HDF5, truncated, or damaged; also while the store is being read.
        UnsafeFileError: from the store's own checks.
    """
    try:
        if not heaps_are_whole(path):
            raise DataError(f"{path}: expected a whole HDF5 file, got a damaged one; fetch it again")
        with h5py.File(path, "r") as file:
            yield Hdf5Store(file, where=str(path), max_bytes=max_bytes)
    except GoodnetError:
        raise
    except Exception as error:  # h5py raises whatever type fits its fancy for a damaged file
        reason = f"got one that cannot be read ({hdf5_reason(error)})"
        raise DataError(f"{path}: expected a whole HDF5 file, {reason}") from error
