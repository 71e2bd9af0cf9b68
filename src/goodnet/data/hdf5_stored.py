"""What an HDF5 dataset stores against what it claims, looked at before libhdf5 takes memory on the file's word."""

from __future__ import annotations

import math
import zlib
from typing import Any

import h5py

from goodnet.data.columns import MAX_INFLATION
from goodnet.errors import UnsafeFileError

# Their code is in the HDF5 library itself, and what they give is bounded or can be checked.
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_CHECKSUM = 4  # bytes that fletcher32 adds
_UNCHECKED = 256 * 2**20  # a chunk that cannot inflate to more is not inflated twice
_ANY = 1 << 32


def filters(dataset: Any) -> list[int]:
    """Codes of the filters that a chunk went through when it was written, in that order."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]


def check_stored(dataset: Any, where: str) -> int:
    """Bytes that are stored. Raises UnsafeFileError if they are more than the file has, or filters are unusual."""
    used = filters(dataset)
    if not set(used) <= FILTERS or len(set(used)) < len(used):
        raise UnsafeFileError(f"{where} is compressed in an unusual way; expected gzip or none; refused")
    stored = int(dataset.id.get_storage_size())
    if stored > dataset.file.id.get_filesize():
        raise UnsafeFileError(f"{where} claims {stored:,} stored bytes, more than the file has; refused")
    return stored


def check_inflated(dataset: Any, max_bytes: int, where: str) -> None:
    """Refuses a chunk that inflates to more than it is declared to hold: HDF5 itself would inflate it to the end."""
    if dataset.chunks is None or h5py.h5z.FILTER_DEFLATE not in filters(dataset):
        return
    skips_deflate = 1 << filters(dataset).index(h5py.h5z.FILTER_DEFLATE)
    most = min(max_bytes, _UNCHECKED) // MAX_INFLATION
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


def check_lengths(dataset: Any, where: str) -> None:
    """Refuses an element of variable length that claims more bytes than the file has.

    HDF5 takes that memory before it looks for them. An element is stored as its length, and the address and index of
    its bytes in a heap (HDF5 file format specification 3.0, section VIII.C).
    """
    if _longest(dataset) > dataset.file.id.get_filesize():
        raise UnsafeFileError(f"{where} has an element of more bytes than the file; refused")


def _longest(dataset: Any) -> int:
    """Where lengths cannot be read as they lie in the file, all that there could be."""
    count, (address, _) = math.prod(dataset.shape or ()), dataset.file.id.get_create_plist().get_sizes()
    if count == 0 or dataset.id.get_storage_size() == 0:
        return 0
    item, offset = 4 + address + 4, dataset.id.get_offset()
    if filters(dataset) or (dataset.chunks is None and offset is None):
        return _ANY
    if dataset.chunks is None:
        with open(dataset.file.filename, "rb") as file:
            file.seek(offset)
            parts = [file.read(count * item)]
    else:
        parts = [dataset.id.read_direct_chunk(chunk.chunk_offset)[1] for chunk in _chunks(dataset)]
    return max(int.from_bytes(part[at : at + 4], "little") for part in parts for at in range(0, len(part), item))


def _chunks(dataset: Any) -> list[Any]:
    """Place and stored size of each chunk."""
    if not hasattr(dataset.id, "chunk_iter"):  # h5py built on HDF5 before 1.14; slow for very many chunks
        return [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    return chunks
