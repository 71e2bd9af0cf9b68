"""HDF5's heaps, looked at before libhdf5 reads them: global ones, where texts and arrays of any length lie, and local
ones, where a group's names lie.

libhdf5 (seen with 2.0.0) walks the objects of a global heap by the sizes that the file gives, and never ends at a free
one of size 0; it walks the free places of a local heap from one to the next, and where they go round in a circle takes
memory until there is none. Layout: HDF5 file format specification 3.0, sections II.A, III.D and III.E.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_GLOBAL = b"GCOL\x01\0\0\0"  # and version 1: eight bytes that weights do not hold by chance
_LOCAL = b"HEAP\0\0\0\0"  # and version 0
_HEAD, _OBJECT = struct.Struct("<8sQ"), struct.Struct("<HHIQ")
_LOCAL_HEAD, _FREE = struct.Struct("<8sQQQ"), struct.Struct("<QQ")
_NO_MORE = 1  # where a list of free places ends
_MAX_OBJECTS = 1 << 20
_FILE = b"\x89HDF\r\n\x1a\n"


def heaps_are_whole(source: Path | bytes) -> bool:
    """Whether every global heap's objects lie in it, one after another to its end, and every local heap's free places
    in it, one after another to the last. A file whose addresses are not of eight bytes, as those of all are that h5py
    writes, is not whole: its heaps cannot be told. Raises OSError."""
    if isinstance(source, bytes):
        return _whole(source)
    with source.open("rb") as file:
        if file.seek(0, 2) == 0:
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _whole(content)


def _whole(content: bytes | mmap.mmap) -> bool:
    base = _superblock(content)
    if base is None:
        return True  # libhdf5 opens no such file
    at = base + len(_FILE)
    if len(content) < at + 7:
        return False
    version = content[at]
    sizes = content[at + 5 : at + 7] if version < 2 else content[at + 1 : at + 3]
    return bytes(sizes) == b"\x08\x08" and _global_heaps_are(content) and _local_heaps_are(content, base)


def _superblock(content: bytes | mmap.mmap) -> int | None:
    """Where libhdf5 finds the file's beginning: at 0, or behind a block of the user's of 512 bytes or twice, four times
    as many, and so on. Addresses count from there."""
    at = 0
    while at < len(content):
        if content[at : at + len(_FILE)] == _FILE:
            return at
        at = max(512, 2 * at)
    return None


def _global_heaps_are(content: bytes | mmap.mmap) -> bool:
    at, objects = -1, 0
    while (at := content.find(_GLOBAL, at + 1)) >= 0:
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


def _local_heaps_are(content: bytes | mmap.mmap, base: int) -> bool:
    at, objects = -1, 0
    while (at := content.find(_LOCAL, at + 1)) >= 0:
        if at + _LOCAL_HEAD.size > len(content):
            return False
        _, size, free, address = _LOCAL_HEAD.unpack_from(content, at)
        start, left = base + address, size // _FREE.size
        if start + size > len(content):
            return False
        while free != _NO_MORE:
            if left == 0 or free + _FREE.size > size or objects > _MAX_OBJECTS:  # more than fit: they go round
                return False
            free, _ = _FREE.unpack_from(content, start + free)
            left, objects = left - 1, objects + 1
    return True
