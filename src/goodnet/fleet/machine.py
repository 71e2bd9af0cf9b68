"""How many nets at a time this machine can scan."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_EACH = 1 << 30
"""Bytes of a process beside its net: Python and torch 0.4 GiB, as much for the one that reads the file, and images."""
_PER_BYTE = 8  # as in models.limits: weights in memory, and once more while they are read
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Those that this process may use."""
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(jobs: int | None, *, device: str, largest: int, nets: int) -> tuple[int, int]:
    """Processes at a time, and threads of each.

    Args:
        jobs: what the user asked for, or None: as many as there are cores for the threads that `OMP_NUM_THREADS` gives
            each, one by default; one on a GPU.
        largest: bytes of the largest net.
        nets: how many there are.

    Returns:
        At most as many processes as fit in the memory that is free, and as there are nets; at least one.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    own = int(said) if said.isascii() and said.isdecimal() and 0 < int(said) <= cores() else None
    wanted = jobs or (1 if device == "cuda" else max(1, cores() // (own or 1)))
    free = free_memory()
    fitting = wanted if free is None else free // (_EACH + _PER_BYTE * largest)
    count = max(1, min(wanted, fitting, nets))
    return count, own or max(1, cores() // count)


def free_memory() -> int | None:
    """Bytes, of the machine and of the container around this process; None where the system does not say."""
    found = [value for value in (_machine(), _container()) if value is not None]
    return min(found) if found else None


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
