"""Processes side by side, each of one net: started, heard, ended in time, and what became of each."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from goodnet.fleet.worker import Job, work

GRACE = 120.0
"""Seconds for reading, judging and drawing, beyond half as much again as the time limit of the scan itself."""
_MAX_MESSAGE = 1 << 16
_PATIENCE = 5.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a process.

    Attributes:
        scanned: it came to its end, and the record is written.
        waits: it planned, and left the scan to another.
        error: what it said was wrong with its input, in one line; empty where nothing was.
        broke: why it came to no end of its own, in one line; empty where it did.
        planned: seconds of the scan by its plan; None where it made none.
        seconds: that it ran.
    """

    scanned: bool = False
    waits: bool = False
    error: str = ""
    broke: str = ""
    planned: float | None = None
    seconds: float = 0.0


@dataclass(eq=False)
class _Running:
    job: Job
    log: Path
    process: BaseProcess
    pipe: connection.Connection
    started: float
    ends: float
    said: dict[str, Any] = field(default_factory=dict)
    broke: str = ""


def run_each(
    jobs: Iterable[Job], at_once: int, tick: Callable[[], object] = lambda: None
) -> Generator[tuple[Job, Outcome], None, None]:
    """Runs a process a job, `at_once` of them at a time, in the order given; gives each as it ends.

    Whatever ends the iteration ends all processes: first by asking, so that a scan keeps what it has done.

    Args:
        tick: called a few times a second.
    """
    context = _context()
    waiting, numbers = iter(jobs), itertools.count()
    running: list[_Running] = []
    with TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        try:
            while True:
                while len(running) < at_once and (job := next(waiting, None)) is not None:
                    running.append(_start(context, job, Path(folder, f"{next(numbers)}.log")))
                if not running:
                    return
                for ended in _wait(running):
                    running.remove(ended)
                    outcome = _outcome(ended)
                    ended.log.unlink(missing_ok=True)
                    yield ended.job, outcome
                tick()
        finally:
            _end(running)


def _context() -> multiprocessing.context.BaseContext:
    """Where a fork of a process that has only imported things is safe, it saves each net two seconds of imports."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["goodnet.fleet.worker"])
    return context


def _start(context: multiprocessing.context.BaseContext, job: Job, log: Path) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, theirs, log))  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    now = time.monotonic()
    ends = now + 1.5 * job.settings.time_limit + GRACE
    return _Running(job=job, log=log, process=process, pipe=ours, started=now, ends=ends)


def _wait(running: list[_Running]) -> list[_Running]:
    """Hears what is said, for at most a fraction of a second; those that have ended by then."""
    pipes = {one.pipe: one for one in running if not one.pipe.closed}
    sentinels = {one.process.sentinel: one for one in running}
    for ready in connection.wait([*pipes, *sentinels], timeout=0.2):
        if ready in pipes:
            _hear(pipes[ready])
    for one in running:
        if time.monotonic() > one.ends and one.process.is_alive() and not one.broke:
            one.broke = f"its process came to no end in {one.ends - one.started:.0f} s and was ended"
            _kill(one.process)
    ended = [one for one in running if not one.process.is_alive()]
    for one in ended:
        while not one.pipe.closed and one.pipe.poll():
            _hear(one)
        one.pipe.close()
    return ended


def _hear(one: _Running) -> None:
    """One message; a process that says what ours never do is ended."""
    try:
        said = json.loads(one.pipe.recv_bytes(_MAX_MESSAGE))
        if not isinstance(said, dict):
            raise ValueError
        one.said.update(said)
    except EOFError:
        one.pipe.close()
    except (OSError, ValueError, RecursionError):
        one.pipe.close()
        one.broke = "its process said what none of goodnet's says, and was ended"
        _kill(one.process)


def _outcome(one: _Running) -> Outcome:
    one.process.join()
    said, code = one.said, one.process.exitcode
    planned = said.get("seconds")
    seconds = float(planned) if isinstance(planned, int | float) and 0 <= planned < float("inf") else None
    took = time.monotonic() - one.started
    error = " ".join(str(said.get("error", "")).split())
    broke = one.broke or ("" if code == 0 else _why(code, _last_line(one.log)))
    if not broke and error and said.get("again") is True:
        error, broke = "", error
    if not broke and not error and not (said.get("scanned") is True or said.get("waits") is True):
        broke = "its process ended without a word"
    return Outcome(
        scanned=not broke and said.get("scanned") is True,
        waits=not broke and said.get("waits") is True,
        error="" if broke else error,
        broke=broke,
        planned=seconds,
        seconds=took,
    )


def _why(code: int | None, printed: str) -> str:
    if code is not None and code < 0:
        known = -code in set(signal.Signals)
        name = signal.Signals(-code).name if known else f"signal {-code}"
        return f"its process was ended by {name}" + (", maybe for want of memory" if name == "SIGKILL" else "")
    return f"its process failed, by a fault in goodnet ({printed or f'exit code {code}'})"


def _last_line(log: Path) -> str:
    with suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""
    return ""


def _end(running: list[_Running]) -> None:
    """Ends them all: scans write down what they have done, and get a few seconds for it."""
    for one in running:
        one.process.terminate()
    patient = time.monotonic() + _PATIENCE
    for one in running:
        one.process.join(max(0.0, patient - time.monotonic()))
        _kill(one.process)
        one.process.join()
        one.pipe.close()


def _kill(process: BaseProcess) -> None:
    """With all that it has started."""
    if hasattr(os, "killpg") and process.pid is not None and process.is_alive():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # which has no group of its own before its first moments are over
    process.kill()
