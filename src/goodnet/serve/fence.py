"""Keeps a job's process among its own files (Linux 5.13 and later, by landlock): a net that got hold of it could
neither read another job's files, or the user's, nor send them anywhere."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # landlock's system calls, the same on all machines but Alpha
_PR_SET_NO_NEW_PRIVS = 38
_PATH_BENEATH = 1
_READ = 0b1101  # running programs (Python again), reading files and folders
_ON_FILES = 0b111 | 1 << 14  # of a rule for a file, not a folder, the kernel takes no more
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys", "/nix", "/gnu")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def stay_inside(folder: Path, *, kept_from: Path) -> bool:
    """From here on this thread, and what it starts, reads the system's files, Python's and those in `folder`, writes in
    `folder` alone, and makes no TCP connection (Linux 6.7). Called before libraries start threads of their own.

    Args:
        folder: of the job; absolute.
        kept_from: the folder of all jobs.

    Returns:
        Whether that holds: not on other systems, and not where `kept_from` lies in a folder that Python itself is read
        from, which must stay readable.
    """
    readable = list(_readable())
    inside = any(kept_from.is_relative_to(path) for path in readable)
    if not sys.platform.startswith("linux") or inside:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    call: Callable[..., Any] = libc.syscall
    call.restype = ctypes.c_long  # type: ignore[attr-defined]
    version = call(_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    rules = _Ruleset(handled, 0b11)
    ruleset = call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(8 if version < 4 else 16), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(call, ruleset, path, handled & _READ)
        for path in (folder, Path("/dev")):
            _allow(call, ruleset, path, handled)
        held: bool = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        return held and bool(call(_RESTRICT, ctypes.c_int(ruleset), 0) == 0)
    finally:
        os.close(ruleset)


def _readable() -> Iterator[Path]:
    """What Python, torch and their libraries are read from."""
    named = [*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable), *sys.path]
    named += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    for name in dict.fromkeys(named):
        path = Path(name).resolve()
        if name and path.exists():
            yield path


def _allow(call: Callable[..., Any], ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _Beneath(rights if path.is_dir() else rights & _ON_FILES, descriptor)
        call(_ADD, ctypes.c_int(ruleset), _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
