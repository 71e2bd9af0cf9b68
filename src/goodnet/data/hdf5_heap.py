"""HDF5's global heaps, where texts and arrays of any length lie, looked at before libhdf5 reads them.

libhdf5 (seen with 2.0.0) walks the objects of a heap by the sizes that the file gives, and never ends at a free one
of size 0. Layout: HDF5 file format specification 3.0, section III.E.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SIGNATURE = b"GCOL\x01\0\0\0"  # and version 1: eight bytes that weights do not hold by chance
_HEAD, _OBJECT = struct.Struct("<8sQ"), struct.Struct("<HHIQ")
_MAX_OBJECTS = 1 << 20


def heaps_are_whole(source: Path | bytes) -> bool:
    """Whether every heap's objects lie in it, one after another to its end. Raises OSError."""
    if isinstance(source, bytes):
        return _whole(source)
    with source.open("rb") as file:
        if file.seek(0, 2) == 0:
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _whole(content)


def _whole(content: bytes | mmap.mmap) -> bool:
    at, objects = -1, 0
    while (at := content.find(_SIGNATURE, at + 1)) >= 0:
        if at + _HEAD.size > len(content):
            return False
        end = at + _HEAD.unpack_from(content, at)[1]
        place = at + _HEAD.size
        if end > len(content):
            return False
        while place + _OBJECT.size <= end:
            index, _, _, size = _OBJECT.unpack_from(content, place)
            place += size if index == 0 else _OBJECT.size + -(-size // 8) * 8
            objects += 1
            if place > end or (index == 0 and size < _OBJECT.size) or objects > _MAX_OBJECTS:
                return False
    return True
