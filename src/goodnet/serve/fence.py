"""Keeps a job's process among its own files (Linux 5.13 and later, by landlock): a net that got hold of it could
neither read another job's files, or the user's, nor send them anywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from goodnet.models import landlock

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys", "/nix", "/gnu")


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
    if inside:
        return False
    read = landlock.READ | landlock.RUN  # Python again
    beneath = [*((path, read) for path in readable), (folder, None), (Path("/dev"), None)]
    return landlock.restrict(beneath=beneath) > 0


def _readable() -> Iterator[Path]:
    """What Python, torch and their libraries are read from."""
    named = [*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable), *sys.path]
    named += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    for name in dict.fromkeys(named):
        path = Path(name).resolve()
        if name and path.exists():
            yield path
