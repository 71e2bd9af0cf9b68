"""Starts workers, starts them again after a crash, and counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .worker import CPU_SECONDS, STATUS

_SILENCE, _STILL = 30.0, 600.0  # CPU seconds or seconds with no input done: it hangs where no timer is heard
_TESTS = Path(__file__).resolve().parents[1]

Job = tuple[str, int, int]
"""Target, first input, past the last input."""


@dataclass(kw_only=True)
class Outcome:
    """One target's figures; `faults` in words, crashes and hangs of the process among them."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def run(
    jobs: Sequence[Job],
    *,
    files: Path,
    out: Path,
    seed: int,
    extra: Sequence[str] = (),
    cpu_seconds: float = CPU_SECONDS,
) -> dict[str, Outcome]:
    """Reads the jobs' inputs, made of the whole files in `files/TARGET`; what was at fault is kept in `out/faults`.

    Args:
        extra: modules that add to `TARGETS`.
        cpu_seconds: what one input may take.

    Raises:
        RuntimeError: the worker failed by a fault of its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"files": str(files), "seed": seed, "extra": list(extra), "cpu_seconds": cpu_seconds}
    found = {target: Outcome() for target, _, _ in jobs}
    pending = list(jobs)
    while pending:
        code = _process(pending, out, settings)
        left: list[Job] = []
        for (target, first, stop), (index, read, refused, _, seconds) in zip(pending, _statuses(out)):
            outcome = found[target]
            outcome.inputs += index - first
            outcome.read += read
            outcome.refused += refused
            outcome.seconds += seconds
            left += [(target, index, stop)] if index < stop else []
        if (code == 0) != (not left) or code > 0:
            raise RuntimeError(f"the worker ended with {code}, {left} left: {(out / 'noise').read_text()[-2000:]}")
        if left:
            target, index, stop = left[0]
            _keep_crash(out, target, index, f"the process died of signal {-code}")
            found[target].inputs += 1
            left[0] = (target, index + 1, stop)
        pending = [job for job in left if job[1] < job[2]]
    for fault in _faults(out):
        if fault["target"] in found:
            found[fault["target"]].faults.append(f"{fault['index']}: {fault['what']}")
    return found


def _process(jobs: Sequence[Job], out: Path, settings: dict[str, Any]) -> int:
    """One worker over the jobs; its exit code, below zero for a signal."""
    status = out / "status"
    status.write_bytes(b"".join(STATUS.pack(first, 0, 0, 0, 0.0) for _, first, _ in jobs))
    spec = json.dumps({"jobs": jobs, "out": str(out), **settings})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_TESTS), *sys.path])}
    worker = subprocess.Popen([sys.executable, "-m", "fuzz.worker", spec], env=environment, stdin=subprocess.DEVNULL)
    try:
        last, since, before = b"", time.monotonic(), 0.0
        while True:
            try:
                return worker.wait(timeout=1)
            except subprocess.TimeoutExpired:
                spent = _cpu_seconds(worker.pid)
                if (now := status.read_bytes()) != last:
                    last, since, before = now, time.monotonic(), spent
                elif spent - before > _SILENCE or time.monotonic() - since > _STILL:
                    worker.kill()
    finally:
        worker.kill()
        worker.wait()


def _cpu_seconds(process: int) -> float:
    """What a process has used; a busy machine makes it slow, not guilty."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _statuses(out: Path) -> list[tuple[int, int, int, int, float]]:
    return list(STATUS.iter_unpack((out / "status").read_bytes()))


def _faults(out: Path) -> list[dict[str, str]]:
    path = out / "faults.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _keep_crash(out: Path, target: str, index: int, what: str) -> None:
    folder = out / "faults" / target / "crash"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (out / "work").rglob("*"):
        if file.is_file():
            shutil.copy(file, folder / f"{index}-{file.name}")
    with (out / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"target": target, "index": index, "what": what}) + "\n")
