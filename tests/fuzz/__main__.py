"""`python -m tests.fuzz`: a long run over one reader or all of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["GOODNET_SANDBOX"] = "off"  # which would keep what a reader does from being seen
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz import drive, seeds  # under the name that the worker knows them by
from fuzz.targets import TARGETS

_PER_PROCESS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--inputs", type=int, default=1000, help="of each target (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for what was at fault (default: a new one)")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="goodnet-fuzz-"))
    print("| reader | inputs | read | refused | faults | s |\n|---|---|---|---|---|---|")
    faults = 0
    for target in TARGETS if given.target == "all" else [given.target]:
        faults += _one(target, given.first, given.first + given.inputs, given.seed, out)
    if faults:
        print(f"\nWhat was at fault: {out}/faults", file=sys.stderr)
    return int(bool(faults))


def _one(target: str, first: int, stop: int, seed: int, out: Path) -> int:
    """Runs and prints one row; the number of faults."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="goodnet-fuzz-", dir=_quick()) as scratch:
        files = Path(scratch) / "files"
        try:
            seeds.make(target, files / target)
        except ImportError as error:
            print(f"| {target} | not run: {error} | | | | |", flush=True)
            return 0
        total = drive.Outcome()
        for start in range(first, stop, _PER_PROCESS):
            work = Path(scratch) / f"{start}"
            part = drive.run([(target, start, min(start + _PER_PROCESS, stop))], files=files, out=work, seed=seed)[
                target
            ]
            total.inputs += part.inputs
            total.read += part.read
            total.refused += part.refused
            total.faults += part.faults
            _keep(work, out)
    seconds = time.monotonic() - begun
    row = (target, total.inputs, total.read, total.refused, len(total.faults), round(seconds))
    print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
    for fault in total.faults[:20]:
        print(f"  {fault}", file=sys.stderr)
    return len(total.faults)


def _quick() -> str | None:
    """Memory rather than a disk, where there is some."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _keep(work: Path, out: Path) -> None:
    for file in (work / "faults").rglob("*"):
        if file.is_file():
            target = out / file.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    if (work / "faults.jsonl").exists():
        with (out / "faults.jsonl").open("a", encoding="utf-8") as file:
            file.write((work / "faults.jsonl").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
