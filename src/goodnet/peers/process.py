"""A program's process: started, timed, its memory read, ended with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from goodnet.memory import peak_of

_SOONEST, _EVERY = 0.01, 0.1
"""Seconds between looks: the first are close together, so that a process of a moment is seen, too."""
_PATIENCE = 5.0
"""A process that waits more than it computes is ended after so many times its limit by the clock."""
_LOG = "log.txt"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        out_of_time: it was ended at the limit.
        broke: why it came to no good end of its own, in one line; empty where it did.
        seconds: of processor time, all its threads together, so that what else the machine does counts for nothing;
            by the clock where the system does not tell.
        peak_mib: the most memory that it held at a time, without what it started, as far as it was looked at;
            None where the system does not tell or it was over before.
    """

    out_of_time: bool
    broke: str
    seconds: float
    peak_mib: float | None


def run_child(python: str, folder: Path, limit: float) -> Ended:
    """Runs the child on a folder, its output in the folder's log.txt.

    Args:
        limit: seconds, of that kind, after which it is ended.
    """
    started, seconds, peak = time.monotonic(), 0.0, 0
    before = _ended_seconds()
    with (folder / _LOG).open("wb") as log:
        child = subprocess.Popen(
            [python, "-m", "goodnet.peers.child", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        out_of_time, pause = False, _SOONEST
        try:
            while child.poll() is None:
                peak = max(peak, peak_of(child.pid) or 0)
                clock = time.monotonic() - started
                seconds = max(seconds, _processor_seconds(child.pid, clock))
                out_of_time = seconds > limit or clock > _PATIENCE * limit
                if out_of_time:
                    break
                time.sleep(pause)
                pause = min(2 * pause, _EVERY)
        finally:
            _end(child)
    seconds = max(seconds, _ended_seconds() - before)  # a short one is over before it is looked at
    broke = "" if out_of_time or child.returncode == 0 else _broke(child.returncode, folder / _LOG)
    return Ended(out_of_time=out_of_time, broke=broke, seconds=seconds, peak_mib=peak / 2**20 if peak else None)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends it and whatever it has started; waits, so that the next one has the machine to itself."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def _ended_seconds() -> float:
    """Processor time of all processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system


def _processor_seconds(pid: int, clock: float) -> float:
    """Of all threads since it began; `clock` where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return clock
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _broke(code: int, log: Path) -> str:
    """Its exit code or signal, and the last line that it wrote."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {' '.join(lines[-1].split())[:300]}" if lines else how
