"""What a file is that should be a net or images and is neither: the ways in which a download goes wrong, in words."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 512  # bytes that tell
_CUT = re.compile(r"truncated file: eof = (\d+),.*stored_eof = (\d+)")


def mistaken_for(path: Path) -> str | None:
    """What came instead and what to do, to stand behind "got"; None where its first bytes do not tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file; fetch it again"
    if head.startswith(b"version https://git-lfs."):
        return "a pointer of Git LFS to a file that is elsewhere; fetch that with git lfs pull"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, maybe a site's answer instead of the download; fetch the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive; unpack it first"
    if head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        return "a single picture"
    return None


def hdf5_reason(error: BaseException) -> str:
    """Why libhdf5 cannot read a file, in one line of at most 200 characters; its own words where it is not cut off."""
    text = " ".join(str(error).split()) or type(error).__name__
    if cut := _CUT.search(text):
        there, whole = map(int, cut.groups())
        return f"cut off: {there:,} of {whole:,} bytes; fetch it again"
    return text[:200]
