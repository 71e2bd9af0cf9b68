"""Named errors. Every message says what was expected, what came, and what to do, in one line.

The command line prints the message alone and exits with 3: a user's mistake never shows a traceback.
"""

from __future__ import annotations

import re
import unicodedata

_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


class GoodnetError(Exception):
    """Base of all errors that goodnet raises on purpose. Names from files stand in messages: they stay on one line, and
    no control character of theirs reaches a terminal."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if text.isprintable() else "".join(map(_plain, text))


class UsageError(GoodnetError):
    """An option or argument that does not fit (unknown name, value out of range, contradiction)."""


class DataError(GoodnetError):
    """Images or labels that cannot be used: missing, empty, wrong shape, dtype or range."""


class ModelError(GoodnetError):
    """A net that cannot be read or does not fit: unknown layer, missing weight, wrong input shape."""


class UnsafeFileError(ModelError):
    """A file that was refused because reading it could run code, leave the file, or exhaust memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch in one of its RuntimeErrors, got no more memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _plain(character: str) -> str:
    if character.isspace():
        return " "
    return "\ufffd" if unicodedata.category(character).startswith("C") else character
