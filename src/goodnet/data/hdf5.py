"""HDF5 files of images, as the CSAW-HackML competition stores them: `data`, `label`, sometimes `true_label`.

The file is hostile until shown otherwise. Only plain datasets of its root are read: no soft or external links, no
virtual datasets, no raw data in other files, no filter that HDF5 would load from a plug-in. `jpeg`, an array of
encoded images, is the one key that may be of variable length; it is read one image at a time.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from goodnet.data.columns import MAX_BYTES, Array, check_bytes
from goodnet.data.decode import decode_all
from goodnet.data.hdf5_heap import heaps_are_whole
from goodnet.data.mistaken import hdf5_reason
from goodnet.errors import DataError, GoodnetError, UnsafeFileError

# Their code is in the HDF5 library itself, and what they give is bounded or can be checked.
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_MAX_INFLATION = 1032  # of deflate, from RFC 1951: 258 bytes out of two bits
_FREE = 16 * 2**20  # what may be claimed with nothing stored: places never written read as zeros
_CHECKSUM = 4  # bytes that fletcher32 adds
_ANY = 1 << 32
_UNCHECKED = 256 * 2**20  # a chunk that cannot inflate to more is not inflated twice


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
        filters = _filters(dataset)
        if not set(filters) <= _FILTERS or len(set(filters)) < len(filters):
            raise UnsafeFileError(f"{self._where}: {key!r} is compressed in an unusual way; expected gzip or none")
        return dataset

    def _check_size(self, dataset: Any, key: str) -> None:
        item = dataset.dtype.itemsize
        where = f"{self._where}: {key!r}"
        claimed, stored = math.prod(dataset.shape or ()) * item, int(dataset.id.get_storage_size())
        check_bytes(claimed, self._max_bytes, where)
        if stored > os.path.getsize(self._file.filename):
            raise DataError(f"{where}: expected {stored:,} stored bytes, more than the file has; fetch it again")
        if claimed > stored * (_MAX_INFLATION if h5py.h5z.FILTER_DEFLATE in _filters(dataset) else 1) + _FREE:
            raise UnsafeFileError(f"{where} claims {claimed:,} bytes but {stored:,} are stored; refused")
        if dataset.chunks is None:
            return
        check_bytes(math.prod(dataset.chunks) * item, self._max_bytes, where)
        if h5py.h5z.FILTER_DEFLATE in _filters(dataset):
            _check_inflated(dataset, self._max_bytes, where)

    def _read_jpeg(self, dataset: Any) -> Array:
        base = h5py.check_vlen_dtype(dataset.dtype)
        if dataset.ndim != 1 or base != np.uint8:
            raise DataError(
                f"{self._where}: expected 'jpeg' (N,) of encoded bytes, got {dataset.dtype} {dataset.shape}"
            )
        self._check_size(dataset, "jpeg")
        if _longest(dataset) > os.path.getsize(self._file.filename):
            raise DataError(f"{self._where}: 'jpeg' has an image of more bytes than the file; fetch it again")
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


def _filters(dataset: Any) -> list[int]:
    """Codes of the filters that a chunk went through when it was written, in that order."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]


def _longest(dataset: Any) -> int:
    """The most bytes that an element of variable length claims, which HDF5 takes before it looks for them.

    An element is stored as its length, and the address and index of its bytes in a heap (HDF5 file format
    specification 3.0, section VIII.C). Where that cannot be read, all that there could be.
    """
    count, filters = math.prod(dataset.shape or ()), _filters(dataset)
    address, _ = dataset.file.id.get_create_plist().get_sizes()
    item = 4 + address + 4
    offset = dataset.id.get_offset()
    if count == 0 or dataset.id.get_storage_size() == 0:
        return 0
    if filters or (dataset.chunks is None and offset is None):
        return _ANY
    if dataset.chunks is None:
        with open(dataset.file.filename, "rb") as file:
            file.seek(offset)
            parts = [file.read(count * item)]
    else:
        parts = [dataset.id.read_direct_chunk(chunk.chunk_offset)[1] for chunk in _chunks(dataset)]
    return max(int.from_bytes(part[at : at + 4], "little") for part in parts for at in range(0, len(part), item))


def _check_inflated(dataset: Any, max_bytes: int, where: str) -> None:
    """Refuses a chunk that inflates to more than it is declared to hold: HDF5 itself would inflate it to the end."""
    skips_deflate = 1 << _filters(dataset).index(h5py.h5z.FILTER_DEFLATE)
    most = min(max_bytes, _UNCHECKED) // _MAX_INFLATION
    if dataset.id.get_storage_size() <= most:
        return
    declared = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for chunk in _chunks(dataset):
        if chunk.size <= most:
            continue
        mask, stored = dataset.id.read_direct_chunk(chunk.chunk_offset)
        # A chunk that did not shrink is stored as it is, which its mask says.
        inflated = stored if mask & skips_deflate else zlib.decompressobj().decompress(stored, declared + _CHECKSUM + 1)
        if len(inflated) > declared + _CHECKSUM:
            raise UnsafeFileError(f"{where}: holds more than the {declared:,} bytes a chunk that it declares")


def _chunks(dataset: Any) -> list[Any]:
    """Place and stored size of each chunk."""
    if not hasattr(dataset.id, "chunk_iter"):  # h5py built on HDF5 before 1.14; slow for very many chunks
        return [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    return chunks
