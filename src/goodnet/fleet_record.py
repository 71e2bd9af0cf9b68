"""The record of a fleet: `summary.json`, what `goodnet scan` says of many nets, a row a net.

Each net that was scanned has its own `scan.json` beside it; a row repeats what a gate asks of it, and says of the
others why they were not scanned.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from goodnet import strict_json
from goodnet.record import Environment

FORMAT = "goodnet.fleet/1"
SUMMARY, PAGE, NETS = "summary.json", "summary.html", "nets"
"""What lies in a fleet's folder: the record, its page, and a folder a net."""
CLEAN, WAITING, INCONCLUSIVE, REFUSED, CRASHED, SUSPECT = (
    "clean", "waiting", "inconclusive", "refused", "crashed", "suspect",
)  # fmt: skip
SEVERITY = (CLEAN, WAITING, INCONCLUSIVE, REFUSED, CRASHED, SUSPECT)
"""From the best to the worst. A finding is worse than not knowing: nobody may read over it because another file is
broken. Of what is not known, a file that was never scanned, or broke the process that scanned it, is worse than a scan
that could not tell."""
EXIT_CODES = {CLEAN: 0, SUSPECT: 1, INCONCLUSIVE: 2, WAITING: 2, REFUSED: 3, CRASHED: 3}


@dataclass(frozen=True, kw_only=True)
class NetRow:
    """One net.

    Attributes:
        name: in its list: the path below the folder, the manifest's word, or `MODEL/VERSION`. Unique in the fleet.
        status: the scan's verdict; else `refused` (wrong or unsafe input, as exit code 3 of a single scan), `crashed`
            (its process was ended by a signal, for want of memory or time, or by a fault of goodnet's) or `waiting`.
        exit_code: of the status.
        model: the net's absolute path, or its address in a registry.
        clean: absolute path of its clean images.
        reason: in one line: the scan's first reason, or why there is no verdict.
        flagged_labels: of the scan.
        model_sha256, data_sha256: of net and images; null where they could not be read.
        key: SHA-256 of all that the row depends on; a later run takes over rows whose key is the same.
        estimated_seconds: of the scan, by its plan; null where none was made.
        turn: in which it was scanned, from 1; null where it was not.
        seconds: that its process took.
        whole: false where the time limit cut the scan short.
        time_limit: seconds that the scan was given.
        record, report: its `scan.json` and page, relative to the summary; null where there are none.
    """

    name: str
    status: str
    exit_code: int
    model: str
    clean: str
    reason: str = ""
    flagged_labels: tuple[int, ...] = ()
    model_sha256: str | None = None
    data_sha256: str | None = None
    key: str = ""
    estimated_seconds: float | None = None
    turn: int | None = None
    seconds: float | None = None
    whole: bool = True
    time_limit: float | None = None
    record: str | None = None
    report: str | None = None


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """Something in the folder that was not taken for a net, and why."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FleetRecord:
    """All of a fleet.

    Attributes:
        finished: false where nets wait that were not looked at yet.
        exit_code: of the worst row (`SEVERITY`).
        counts: rows by status; every status is there.
        nets: in the order of their list.
        jobs: processes at a time.
        seconds: of the clock, all runs on this folder together.
    """

    finished: bool
    exit_code: int
    counts: dict[str, int]
    nets: tuple[NetRow, ...]
    passed_over: tuple[PassedOver, ...]
    source: str
    jobs: int
    seconds: float
    environment: Environment
    format: str = FORMAT


def counts(rows: Iterable[NetRow]) -> dict[str, int]:
    """How many rows there are of each status, the worst first."""
    found = Counter(row.status for row in rows)
    return {status: found[status] for status in reversed(SEVERITY)}


def worst_first(rows: Sequence[NetRow]) -> list[NetRow]:
    """By severity, then as they stand."""
    return sorted(rows, key=lambda row: -severity(row))


def severity(row: NetRow) -> int:
    """0 for the best; a status that is none counts as the worst."""
    return SEVERITY.index(row.status) if row.status in SEVERITY else len(SEVERITY)


def exit_code(rows: Sequence[NetRow]) -> int:
    """The exit code of the worst row; 2 where there is none."""
    return EXIT_CODES.get(worst_first(rows)[0].status, 2) if rows else 2


def read_fleet(path: Path) -> FleetRecord:
    """Reads `summary.json`. Raises DataError where it is not one."""
    return typing.cast(FleetRecord, strict_json.read(path, {FORMAT: FleetRecord}))
