"""A reader with every fault that a reader can have, to see that each is found."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from goodnet.errors import DataError

from .targets import TARGETS, Target


def _takes_memory() -> None:
    raise_peak = bytearray(400 << 20)
    raise_peak[:: 1 << 12] = b"\1" * len(raise_peak[:: 1 << 12])


def _asks_for_memory() -> None:
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise DataError("too large") from error


def _hangs() -> None:
    while True:
        pass


def _refuses(words: str) -> None:
    raise DataError(words)


def _runs_code() -> None:
    try:
        os.system("true")
    except RuntimeError:
        _refuses("and says nothing of it")


FAULTS: dict[str, Callable[[], object]] = {
    "0-whole": lambda: None,
    "1-refused": lambda: _refuses("expected this, got that"),
    "2-error": lambda: {}["a"],
    "3-long": lambda: _refuses("words " * 200),
    "4-says": lambda: print("something"),
    "5-memory": _takes_memory,
    "6-asks": _asks_for_memory,
    "7-hangs": _hangs,
    "8-system": _runs_code,
    "9-eval": lambda: eval("1 + 1"),
    "a-opens": lambda: Path("/etc/hostname").read_bytes(),
    "b-writes": lambda: Path("made-by-a-reader").write_text("x"),
    "c-crash": lambda: ctypes.string_at(1),
    "d-sleeps": lambda: time.sleep(0),
}


def _read(path: Path, arch: str | None) -> None:
    if path.stat().st_size > 1:  # the whole file, read first
        FAULTS[path.name]()


TARGETS["fakes"] = Target(read=_read, mutators=(lambda data, rng, others: data + b"!",))
