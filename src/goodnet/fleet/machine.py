"""How many nets at a time this machine can scan."""

from __future__ import annotations

import os
from contextlib import suppress

from goodnet.memory import free_memory

_EACH = 1 << 30
"""Bytes of a process beside its net: Python and torch 0.4 GiB, as much for the one that reads the file, and images."""
_PER_BYTE = 8  # as in models.limits: weights in memory, and once more while they are read


def cores() -> int:
    """Those that this process may use."""
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(jobs: int | None, *, device: str, largest: int, nets: int, memory: int | None = None) -> tuple[int, int]:
    """Processes at a time, and threads of each.

    Args:
        jobs: what the user asked for, or None: as many as there are cores for the threads that `OMP_NUM_THREADS` gives
            each, one by default; one on a GPU.
        largest: bytes of the largest net.
        nets: how many there are.
        memory: bytes that the scan of each may take, where the user says.

    Returns:
        At most as many processes as fit in the memory that is free, and as there are nets; at least one.
    """
    own = own_threads(cores())
    wanted = jobs or (1 if device == "cuda" else max(1, cores() // (own or 1)))
    free = free_memory()
    fitting = wanted if free is None else free // memory_of(memory, largest)
    count = max(1, min(wanted, fitting, nets))
    return count, own or max(1, cores() // count)


def own_threads(most: int) -> int | None:
    """What `OMP_NUM_THREADS` gives each process, if it is a number up to `most`."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isascii() and said.isdecimal() and 0 < int(said) <= most else None


def memory_of(memory: int | None, largest: int) -> int:
    """Bytes that the process of a net may take: what the user says, or by the file of the largest net."""
    return memory or _EACH + _PER_BYTE * largest
