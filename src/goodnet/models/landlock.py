"""Landlock (Linux 5.13 and later): a process gives up rights, for itself and all that it starts, for good."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

READ = 0b1100  # files and folders
RUN = 0b1
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on all machines but Alpha
_PR_SET_NO_NEW_PRIVS = 38
_PATH_BENEATH = 1
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many the versions know; later ones 16
_ON_FILES = 0b111 | 0b11 << 14  # of a rule for a file, not a folder, the kernel takes no more


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict(*, kept: int = 0, beneath: Iterable[tuple[Path, int | None]] = (), scoped: bool = False) -> int:
    """From here on this thread, and what it starts, has no right to files that is not said here, and makes no TCP
    connection (from Linux 6.7 on). What is open stays open.

    Args:
        kept: rights that stay everywhere.
        beneath: folders and files, and the rights that stay on them and what is in them; None for all.
        scoped: whether signals and abstract sockets to processes outside are forbidden, too (Linux 6.12).

    Returns:
        Landlock's version on this kernel, from 3 (Linux 6.2) on with truncation; 0 if nothing is restricted.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    call: Callable[..., Any] = libc.syscall
    call.restype = ctypes.c_long  # type: ignore[attr-defined]
    version = int(call(_CREATE, None, ctypes.c_size_t(0), 1))
    if version < 1:
        return 0
    handled = ((1 << _RIGHTS.get(version, 16)) - 1) & ~kept
    rules = _Ruleset(handled, 0b11, 0b11 if scoped else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    try:
        for path, rights in beneath:
            _allow(call, ruleset, path, handled if rights is None else handled & rights)
        bound = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and call(_RESTRICT, ctypes.c_int(ruleset), 0) == 0
        return version if bound else 0
    finally:
        os.close(ruleset)


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
