"""NumPy .npz archives of images: keys `data`, `images` or `x`, and `label`, `labels` or `y`.

A .npz is a zip of .npy files. Pickled objects are never loaded. The declared size is read off each array's header and
bounded before the array is; no more than declared is ever inflated.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from goodnet.data.columns import MAX_BYTES, MAX_INFLATION, Array, check_bytes
from goodnet.errors import DataError, GoodnetError, UnsafeFileError

# zipfile inflates bzip2 and LZMA without a limit on what comes out of one read.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENDING = ".npy"
_CHUNK = 1 << 24


class NpzStore:
    """An open archive of named arrays (the Store of columns.py)."""

    def __init__(self, archive: zipfile.ZipFile, *, where: str, max_bytes: int = MAX_BYTES):
        self._archive, self._where, self._max_bytes = archive, where, max_bytes

    def names(self) -> Sequence[str]:
        return [name.removesuffix(_ENDING) for name in self._archive.namelist()]

    def shape(self, key: str) -> tuple[int, ...]:
        with self._open(key) as member:
            return self._header(member, key)[0]

    def read(self, key: str) -> Array:
        """The array under `key`.

        Raises:
            UnsafeFileError: pickled objects, an unusual compression, or over max_bytes.
            DataError: fewer bytes than declared.
        """
        with self._open(key) as member:
            shape, fortran, dtype = self._header(member, key)
            size = math.prod(shape) * dtype.itemsize
            check_bytes(size, self._max_bytes, f"{self._where}: {key!r}")
            held = self._info(key)
            if size > min(held.file_size, MAX_INFLATION * held.compress_size):
                raise DataError(f"{self._where}: {key!r} claims {size:,} bytes, more than it holds; is it truncated?")
            raw = bytearray(size)  # not bytes: torch warns of arrays that cannot be written to
            got = _fill(memoryview(raw), member)
        if got < size:
            raise DataError(f"{self._where}: expected {size:,} bytes under {key!r}, got {got:,}; is it truncated?")
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")

    def _info(self, key: str) -> zipfile.ZipInfo:
        return self._archive.getinfo(key + _ENDING if key + _ENDING in self._archive.namelist() else key)

    def _open(self, key: str) -> IO[bytes]:
        info = self._info(key)
        if info.compress_type not in _COMPRESSIONS:
            raise UnsafeFileError(f"{self._where}: {key!r} is compressed in an unusual way; use numpy.savez_compressed")
        return self._archive.open(info)

    def _header(self, member: IO[bytes], key: str) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = npy.read_magic(member)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise DataError(f"{self._where}: expected a .npy header of version 1 or 2 under {key!r}, got {version}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's words on headers of Python 2
            shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise UnsafeFileError(f"{self._where}: {key!r} holds pickled objects, which could run code; store numbers")
        if dtype.kind not in "biuf" or any(side < 0 for side in shape):
            raise DataError(f"{self._where}: expected numbers under {key!r}, got dtype {dtype} and shape {shape}")
        return shape, fortran, dtype


def _fill(buffer: memoryview, member: IO[bytes]) -> int:
    """Reads until the buffer is full or the member at its end; returns the number of bytes read."""
    got = 0
    while part := member.read(min(_CHUNK, len(buffer) - got)):
        buffer[got : got + len(part)] = part
        got += len(part)
    return got


def is_zip(path: Path) -> bool:
    """Whether its end is that of a zip; of a damaged one, too, which zipfile's own question ends in an error for."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


@contextmanager
def open_npz(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[NpzStore]:
    """Opens `path` for reading.

    Raises:
        DataError: not a zip of arrays, truncated, or damaged; also while the store is being read.
        UnsafeFileError: from the store's own checks.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzStore(archive, where=str(path), max_bytes=max_bytes)
    except GoodnetError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected a whole .npz file, got one that cannot be read ({reason})") from error
