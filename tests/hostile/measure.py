"""Runs `goodnet` on every hostile file in a process of its own, and measures it.

    python tests/hostile/measure.py     prints the table of docs/hostile.md

A warm process forks one child a case, which calls the entry point of the command line; the child's peak of resident
memory, its own readers' included, and its time are the kernel's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from PIL import Image

from cli_support import files_in
from goodnet.cli import run
from hostile.case import CANARY, MLP, SIDE, Case, state
from hostile.corpus import CASES

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a command did with a case: seconds of processor time (with its readers') and by the clock, peak of memory
    in bytes, and in words what is wrong with it, empty if nothing."""

    case: Case
    seconds: float
    clock: float
    peak: int
    wrong: str


def measure(cases: Iterable[Case], *, sandbox: bool) -> list[Measured]:
    return [_measure(case, sandbox) for case in cases]


def _measure(case: Case, sandbox: bool) -> Measured:
    with tempfile.TemporaryDirectory() as place:
        inside = Path(place)
        for name in ("home", "tmp", "work", "said"):
            (inside / name).mkdir()
        work = inside / "work"
        path = case.make(work).relative_to(work)
        torch.save(state(), work / "good.pt")
        Image.new("L", (SIDE, SIDE)).save(work / "good.png")
        before = files_in(inside)
        begun = time.perf_counter()
        child = os.fork()
        if child == 0:
            _command(case, path, inside, sandbox)
        _, status, usage = os.wait4(child, 0)
        clock = time.perf_counter() - begun
        err = (inside / "said" / "err").read_text()
        code = os.waitstatus_to_exitcode(status)
        after = {name: digest for name, digest in files_in(inside).items() if not name.startswith("said/")}
        moved = sorted(set(before.items()) ^ set(after.items()))
    return Measured(
        case=case,
        seconds=usage.ru_utime + usage.ru_stime,
        clock=clock,
        peak=usage.ru_maxrss * 1024,
        wrong=_wrong(case, code, err, moved),
    )


def _command(case: Case, path: Path, inside: Path, sandbox: bool) -> None:
    """The child: never returns."""
    code = 99
    try:
        os.chdir(inside / "work")
        os.environ |= {"HOME": str(inside / "home"), "TMPDIR": str(inside / "tmp"), CANARY: str(inside / "canary"),
                       "GOODNET_SANDBOX": "on" if sandbox else "off"}  # fmt: skip
        tempfile.tempdir = None
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(inside / "said" / name, os.O_CREAT | os.O_WRONLY), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = run(arguments(case, path))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def arguments(case: Case, path: Path) -> list[str]:
    """The command that reads the case."""
    good = ["good.pt", *MLP]
    if case.role == "model":
        options = list(case.options)
        return ["predict", str(path), "good.png", *options] if case.message else ["inspect", str(path), *options]
    return ["predict", *good, str(path)] if case.role == "picture" else ["evaluate", *good, "--clean", str(path)]


def _wrong(case: Case, code: int, err: str, moved: Sequence[object]) -> str:
    lines = err.splitlines()
    if moved:
        return f"files came or went: {moved}"
    if not case.message:
        return "" if (code, lines) == (0, []) else f"expected to be read, got exit code {code}: {err}"
    if code != 3 or len(lines) != 1 or not lines[0].startswith("goodnet: "):
        return f"expected one line and exit code 3, got {code}: {err}"
    return "" if re.search(case.message, lines[0]) else f"expected {case.message!r}, got {lines[0]!r}"


def table(measured: Sequence[Measured]) -> str:
    """One row a kind."""
    kinds: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        kinds[one.case.kind].append(one)
    rows = [
        "| kind | files | refused | read, rightly | most memory | most processor time |",
        "|---|---|---|---|---|---|",
    ]
    for kind, ones in kinds.items():
        read = sum(not one.case.message for one in ones)
        peak, seconds = max(one.peak for one in ones) / MIB, max(one.seconds for one in ones)
        rows.append(f"| {kind} | {len(ones)} | {len(ones) - read} | {read} | {peak:.0f} MiB | {seconds:.1f} s |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sandbox", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("every", type=int, nargs="?", default=1, help="one case in so many, and what needs the sandbox")
    given = parser.parse_args()
    cases = [case for i, case in enumerate(CASES) if i % given.every == 0 or case.sandbox_only]
    measured = measure([case for case in cases if given.sandbox or not case.sandbox_only], sandbox=given.sandbox)
    if given.json:
        print(json.dumps([{**vars(one), "case": f"{one.case.kind}: {one.case.name}"} for one in measured]))
        return 0
    print(table(measured))
    bad = [f"{one.case.kind}: {one.case.name}: {one.wrong}" for one in measured if one.wrong]
    print("\n".join(bad), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
