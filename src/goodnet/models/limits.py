"""What a process that reads a stranger's file may still do: so much processor time and memory, and nothing outside.

Applied by the process to itself, in two steps: `leave` before libraries start threads, `confine` once they are loaded
and before the file is opened. Needs no torch. What the system does not offer is named, not passed over.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from dataclasses import dataclass

from goodnet.models import landlock

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MIB, _GIB = 1 << 20, 1 << 30
_PR_SET_PDEATHSIG = 1
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_CAPABILITIES, _READ_ANY = 0x20080522, 0b110  # version 3 of the call; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one process.

    Attributes:
        cpu_seconds: of processor time, beyond what starting Python and torch has taken.
        wall_seconds: after which it is ended, whatever it waits for.
        memory: bytes of address space beyond what Python and torch reserve themselves; also of the file it writes.
    """

    cpu_seconds: int
    wall_seconds: int
    memory: int

    @classmethod
    def for_file(cls, size: int) -> Limits:
        """For `size` bytes of files: 6 s of processor time, 120 s in all and 2 GiB of memory; for every 10 MiB of it a
        second, four seconds and 80 MiB more. A small net takes a tenth of a second; random float16 weights need
        4 bytes a byte to become one; a file may be packed."""
        blocks = size // (10 * _MIB)
        return cls(cpu_seconds=6 + blocks, wall_seconds=120 + 4 * blocks, memory=2 * _GIB + 8 * size)

    def words(self) -> str:
        """`6 s of processor time, 120 s in all, 2.0 GiB of memory`."""
        seconds = f"{self.cpu_seconds} s of processor time, {self.wall_seconds} s in all"
        return f"{seconds}, {self.memory / _GIB:.1f} GiB of memory"


def leave(parent: int) -> tuple[str, ...]:
    """Cuts the network off, and ends with the process `parent`. Returns what could not be done, in words.

    Called while the process has one thread: Linux refuses it otherwise.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not sys.platform.startswith("linux"):
        return ("network",)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before the line above
        os._exit(1)
    # root needs no user namespace, in which it would lose the right to read other people's files
    cut = libc.unshare(_NEWNET) == 0 or libc.unshare(_NEWUSER | _NEWNET) == 0
    return () if cut else ("network",)


def confine(limits: Limits) -> tuple[str, ...]:
    """Applies the limits and forbids writing, running programs, and more processes. As `leave`."""
    if resource is None:
        return ("processor time", "memory", "writing")
    if hasattr(signal, "alarm"):
        signal.alarm(limits.wall_seconds + 5)  # should nobody be left to end it
    reserved, spent = _reserved(), math.ceil(time.process_time())
    bounds = [
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", spent + limits.cpu_seconds, spent + limits.cpu_seconds + 2),
        ("RLIMIT_FSIZE", limits.memory, limits.memory),
        ("RLIMIT_NOFILE", _FILES, _FILES),
        ("RLIMIT_NPROC", 0, 0),  # no new process; does not bind root
        *([("RLIMIT_AS", reserved + limits.memory, reserved + limits.memory)] if reserved else []),
    ]
    names = {"RLIMIT_CPU": "processor time", "RLIMIT_AS": "memory"}
    failed = [name for name, soft, hard in bounds if not _set(name, soft, hard)]
    missing = [names[name] for name in failed if name in names] + ([] if reserved else ["memory"])
    missing += _forbid_writing()
    _drop_privileges()
    return tuple(missing)


def _drop_privileges() -> None:
    """Of root's, or of the user namespace's, rights only that to read files is kept: none to raise a limit again, or
    to go back to the network."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, sets) == 0:
        kept = sets[1] & _READ_ANY
        libc.capset(head, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


def _set(name: str, soft: int, hard: int) -> bool:
    """Lowers one limit; never above what the process was started with."""
    kind = getattr(resource, name, None)
    if kind is None:
        return False
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):
        return False
    return True


def _reserved() -> int:
    """Bytes of address space that this process has; 0 where the system does not say (or, as macOS, enforces none)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _forbid_writing() -> tuple[str, ...]:
    """No file is opened for writing, made or removed, no program run. Returns what is not forbidden."""
    version = landlock.restrict(kept=landlock.READ, scoped=True)
    return ("writing",) if version == 0 else ("cutting files short",) if version < 3 else ()
