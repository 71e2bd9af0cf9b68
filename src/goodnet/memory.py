"""Sizes in words, and how much memory there is: of the machine, of the container around it, of this process."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from goodnet.errors import UsageError

if sys.platform != "win32":
    import resource

_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"b": 1} | {f"{p}{b}": base**i for b, base in (("b", 1000), ("ib", 1024)) for i, p in enumerate("kmgt", 1)}
_LEAST, _MOST = 1 << 20, 1 << 50
# glibc's mallopt: what is larger is mapped by itself; so much may lie free at a heap's end.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE, _FREE = 4 << 20, 8 << 20
_USUALLY_LARGE, _USUALLY_FREE = 32 << 20, 64 << 20  # what glibc comes to by itself where large tensors come and go


def in_bytes(size: str | int) -> int:
    """`2GiB`, `800MB` or a number of bytes -> bytes, from 1 MiB to 1 PiB. Raises UsageError."""
    wanted = "expected a size from 1MiB to 1PiB, as 2GiB or 800MB"
    if isinstance(size, str):
        match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([a-z]{1,3})", size.strip().lower())
        if match is None or match[2] not in _UNITS:
            raise UsageError(f"memory: {wanted}; got {size!r:.60}")
        value = int(float(match[1]) * _UNITS[match[2]])
    else:
        value = size
    if isinstance(value, bool) or not _LEAST <= value <= _MOST:
        raise UsageError(f"memory: {wanted}; got {size!r:.60}")
    return value


def in_words(size: float) -> str:
    """Bytes -> `640 MiB` or `2.4 GiB`."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


@contextmanager
def giving_back(wanted: bool = True) -> Iterator[None]:
    """While it is open, what is freed goes back to the system at once, of 4 MiB and more, where malloc is glibc's.

    By itself glibc keeps freed blocks of up to 32 MiB in its heaps, and then cannot use them where the next are a bit
    larger: of a scan at 96x96 pixels 260 MiB, where 80 were in use. Giving back costs time (docs/scale.md), so it is
    for scans that would not stay under a bound without.

    Args:
        wanted: False changes nothing.
    """
    if wanted:
        _tell_malloc(_LARGE, _FREE)
    try:
        yield
    finally:
        if wanted:
            _tell_malloc(_USUALLY_LARGE, _USUALLY_FREE)


def _tell_malloc(large: int, free: int) -> None:
    """From which size on blocks are mapped by themselves, and how much may lie free."""
    with suppress(OSError, AttributeError, TypeError):  # another system's, or another C library's, has none of it
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, large)
        libc.mallopt(_TRIM_THRESHOLD, free)
        trim()


def trim() -> None:
    """Gives back what lies free in malloc's heaps now, where it is glibc's."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int | None:
    """Bytes, of the machine and of the container around this process; None where the system does not say."""
    found = [value for value in (_machine(), _container()) if value is not None]
    return min(found) if found else None


def resident() -> int:
    """Bytes that this process has in memory now; the most that it has had, where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak()


def peak_of(process: int | str) -> int | None:
    """The most bytes that a process has had in memory so far, by its number; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


def peak() -> int:
    """The most bytes that this process has had in memory so far; 0 where the system does not say."""
    told = peak_of("self")  # rusage's is at least what the process had that began this one
    if told is not None:
        return told
    if sys.platform == "win32":
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def _machine() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return None


def _container() -> int | None:
    """What is left to a control group; files that it keeps in memory only for speed count as free."""
    with suppress(OSError, ValueError):
        most, taken = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        kept = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        return max(0, most - taken + kept)
    return None
