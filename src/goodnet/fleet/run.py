"""Scans a fleet: the cheapest nets first, each in a process of its own, going on where an earlier run stopped.

Cheapest first, because most answers come early so, and a fleet that is stopped has as many as it can have. The first
estimate of what a net costs is its size on the disk, which is known before anything of it is read: nets are read and
planned in that order. A net whose scan will take no longer than it took to read it is scanned at once, for to come back
would cost as much; all others wait until every net is planned, and are scanned in the order of their plans.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from goodnet.about import machine
from goodnet.errors import DataError, GoodnetError, UsageError
from goodnet.fleet.away import Away
from goodnet.fleet.keys import DataSets, Known, known
from goodnet.fleet.nets import Fleet, Net
from goodnet.fleet.processes import Outcome, run_each
from goodnet.fleet.worker import LOOK, PLAN, SCAN, Job, Settings
from goodnet.fleet_record import (
    CRASHED,
    EXIT_CODES,
    NETS,
    PAGE,
    REFUSED,
    SUMMARY,
    WAITING,
    FleetRecord,
    NetRow,
    counts,
    exit_code,
    read_fleet,
)
from goodnet.outputs import check_writable, claimed
from goodnet.progress import Progress, silent
from goodnet.record import VERDICTS, ScanRecord, read_record
from goodnet.report import words
from goodnet.report.fleet_page import write_summary
from goodnet.report.page import MAX_RECORD_BYTES
from goodnet.strict_json import write_record

_WRITE_EVERY, _DRAW_EVERY = 1.0, 10.0
_CHANGED = "the file changed while it was scanned; scan again"

Told = Callable[[NetRow], None]


def check_out(out: Path | None, source: str, *, overwrite: bool) -> FleetRecord | None:
    """What an earlier run has left in `out`; None where it is new, or is to be replaced. Writes nothing.

    Raises:
        UsageError: something is there that is no fleet's, or another fleet's, and would be lost.
        DataError: a summary that cannot be read.
    """
    if out is None:
        return None
    check_writable(out)
    if (out / SUMMARY).exists():
        try:
            earlier = read_fleet(out / SUMMARY)
        except DataError as error:
            raise DataError(f"--out: {error}; name another folder") from error
        if overwrite:
            return None
        if earlier.source != source:
            raise UsageError(
                f"--out: {out} holds the scan of {earlier.source}; name another folder, or pass --overwrite"
            )
        return earlier
    for name in (PAGE, NETS):
        if (out / name).exists() or (out / name).is_symlink():
            raise UsageError(f"--out: {out / name} is there already, and of no fleet's scan; name another folder")
    return None


@dataclass(eq=False)
class _State:
    """The fleet as it stands."""

    fleet: Fleet
    settings: Settings
    out: Path
    jobs: int
    command: tuple[str, ...]
    earlier_seconds: float
    away: Away | None
    rows: dict[str, NetRow] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    turn: int = 0
    dirty: bool = True
    written: float = 0.0
    drawn: float = 0.0

    def record(self) -> FleetRecord:
        rows = tuple(self.rows[net.name] for net in self.fleet.nets)
        return FleetRecord(
            finished=all(row.status != WAITING for row in rows),
            exit_code=exit_code(rows),
            counts=counts(rows),
            nets=rows,
            passed_over=self.fleet.passed_over,
            source=self.fleet.source,
            jobs=self.jobs,
            seconds=self.earlier_seconds + time.monotonic() - self.started,
            environment=replace(machine(self.settings.device, self.command), threads=self.settings.threads),
        )

    def take(self, row: NetRow) -> None:
        self.rows[row.name] = row
        self.dirty = True

    def each(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Outcome], None, None]:
        """A process a job, here or away."""
        if self.away is not None:
            return self.away.each(jobs, self.keep, self.out)
        return run_each(jobs, self.jobs, self.keep)

    def keep(self, *, now: bool = False) -> FleetRecord | None:
        """Writes the summary, but not more often than makes sense."""
        clock = time.monotonic()
        if not now and (not self.dirty or clock - self.written < _WRITE_EVERY):
            return None
        record = self.record()
        write_record(record, self.out / SUMMARY)
        if now or clock - self.drawn >= _DRAW_EVERY:
            write_summary(record, self.out / PAGE)
            self.drawn = time.monotonic()
        self.written, self.dirty = time.monotonic(), False
        return record


def scan_fleet(
    fleet: Fleet,
    settings: Settings,
    *,
    out: Path,
    jobs: int,
    away: Away | None = None,
    earlier: FleetRecord | None = None,
    command: Sequence[str] = (),
    progress: Progress = silent,
    told: Told = lambda row: None,
    begins: Callable[[int], None] = lambda count: None,
) -> FleetRecord:
    """Scans all nets of a fleet; a file that breaks its process harms only its own row.

    Args:
        out: folder for `summary.json`, `summary.html` and a folder a net in `nets`.
        jobs: processes at a time.
        away: where they are started; None for this machine.
        earlier: what `check_out` gave: rows of it are taken over where net, images and settings are the same. None
            scans every net.
        command: what the user typed, for the record.
        progress: told how much is done.
        told: each row, as it comes.
        begins: called once nothing is wrong, with how many rows are taken over from the earlier run.

    Returns:
        The summary, as it stands in `out`; after a KeyboardInterrupt it stands there, too, unfinished.

    Raises:
        GoodnetError: no images can be read, and nothing has been written then; or a machine does not see a folder.
    """
    data = DataSets()
    data.check(fleet.nets)
    before = {} if earlier is None else {row.name: row for row in earlier.nets}
    with claimed(out):
        state = _State(
            fleet=fleet, settings=settings, out=out, jobs=jobs, command=tuple(command), away=away,
            earlier_seconds=0.0 if earlier is None else earlier.seconds,
        )  # fmt: skip
        state.turn = max((row.turn or 0 for row in before.values()), default=0)
        facts = {}
        for turn, net in enumerate(fleet.nets):
            progress("looking", turn, len(fleet.nets))
            facts[net.name] = known(net, settings, data)
            state.rows[net.name] = _first_row(net, facts[net.name], before.get(net.name), settings, out)
            if net.name not in before or before[net.name].key != facts[net.name].key:
                shutil.rmtree(out / NETS / net.folder, ignore_errors=True)  # of another file of this name, or of none
        progress("looking", len(fleet.nets), len(fleet.nets))
        begins(sum(row.status != WAITING and bool(row.key) for row in state.rows.values()))
        for row in state.rows.values():
            if row.status == REFUSED and not row.key:
                told(row)
        state.keep(now=True)
        try:
            _scan_all(state, facts, progress, told)
        finally:
            record = state.keep(now=True)
    assert record is not None
    return record


def _scan_all(state: _State, facts: dict[str, Known], progress: Progress, told: Told) -> None:
    def left() -> list[Net]:
        return [net for net in state.fleet.nets if state.rows[net.name].status == WAITING]

    unplanned = [net for net in left() if state.rows[net.name].estimated_seconds is None]
    unplanned.sort(key=lambda net: facts[net.name].size)
    _phase("planning", LOOK, unplanned, state, facts, progress, told)
    planned = sorted(left(), key=lambda net: state.rows[net.name].estimated_seconds or 0.0)
    _phase("scanning", SCAN, planned, state, facts, progress, told)


def _phase(
    name: str, task: str, nets: Sequence[Net], state: _State, facts: dict[str, Known], progress: Progress, told: Told
) -> None:
    """A process a net, in this order."""
    if not nets:
        return
    turns: dict[str, int] = {}
    # by estimates, in milliseconds: the last nets take far longer than the first
    costs = {net.name: 1 + round(1000 * (state.rows[net.name].estimated_seconds or 0.0)) for net in nets}
    done, whole = 0, sum(costs.values())

    def starting() -> Iterator[Job]:
        for net in nets:
            state.turn += 1
            turns[net.name] = state.turn
            yield _job(net, state.settings, state.out, task)

    progress(name, 0, max(1, whole))
    with closing(state.each(starting())) as ended:
        for job, outcome in ended:
            net = job.net
            row = _row(net, facts[net.name], outcome, state, turns[net.name])
            state.take(row)
            state.keep()
            done += costs[net.name]
            progress(name, done, max(1, whole))
            if row.status != WAITING:
                told(row)


def plan_fleet(
    fleet: Fleet, settings: Settings, *, jobs: int, away: Away | None = None, progress: Progress = silent
) -> list[NetRow]:
    """A row a net, with the seconds that its scan will take; `waiting` where it can be scanned. Writes nothing.

    Raises:
        GoodnetError: no images can be read, or a machine does not see a net.
    """
    data = DataSets()
    data.check(fleet.nets)
    nowhere = Path(os.devnull)
    facts = {net.name: known(net, settings, data) for net in fleet.nets}
    rows = {net.name: _first_row(net, facts[net.name], None, settings, nowhere) for net in fleet.nets}
    nets = [net for net in fleet.nets if rows[net.name].status == WAITING]
    nets.sort(key=lambda net: facts[net.name].size)
    work = (_job(net, settings, nowhere, PLAN) for net in nets)
    started = run_each(work, jobs) if away is None else away.each(work, lambda: None, None)
    with closing(started) as ended:
        for turn, (job, outcome) in enumerate(ended, start=1):
            rows[job.net.name] = _without_scan(rows[job.net.name], job.net, outcome)
            progress("planning", turn, len(nets))
    return [rows[net.name] for net in fleet.nets]


def _job(net: Net, settings: Settings, out: Path, task: str) -> Job:
    return Job(net=net, settings=settings, task=task, out=out.absolute() / NETS / net.folder, command=net.command)


def _first_row(net: Net, facts: Known, earlier: NetRow | None, settings: Settings, out: Path) -> NetRow:
    """What stands of a net before this run does anything with it."""
    row = NetRow(
        name=net.name,
        status=WAITING,
        exit_code=EXIT_CODES[WAITING],
        model=net.origin or str(net.path),
        clean=str(net.clean),
        model_sha256=facts.model_sha256,
        data_sha256=facts.data_sha256,
        key=facts.key,
        time_limit=settings.time_limit,
    )
    if facts.problem:
        return _ended(row, REFUSED, _in_users_words(facts.problem, net))
    if earlier is None or earlier.key != facts.key:
        return row
    if earlier.status == WAITING:
        return replace(row, estimated_seconds=earlier.estimated_seconds)
    longer = not earlier.whole and settings.time_limit > (earlier.time_limit or 0.0)
    there = earlier.record is None or _scanned(out, net) is not None
    if not there or longer or earlier.status == CRASHED:
        return row
    return replace(earlier, model=row.model, clean=row.clean)  # which may have moved


def _row(net: Net, facts: Known, outcome: Outcome, state: _State, turn: int) -> NetRow:
    row = state.rows[net.name]
    if not outcome.scanned:
        return _without_scan(row, net, outcome)
    record = _scanned(state.out, net)
    row = replace(row, estimated_seconds=_estimate(row, outcome), turn=turn, seconds=outcome.seconds)
    if record is None:
        return _ended(row, CRASHED, "left no record that can be read")
    status = record.verdict if words.exit_code(record) == EXIT_CODES.get(record.verdict) else "inconclusive"
    folder = f"{NETS}/{net.folder}"
    row = replace(
        row,
        flagged_labels=record.flagged_labels,
        model_sha256=record.model.sha256,
        data_sha256=record.data.sha256,
        whole=record.whole,
        record=f"{folder}/scan.json",
        report=f"{folder}/report.html" if (state.out / folder / "report.html").is_file() else None,
    )
    if (record.model.sha256, record.data.sha256) != (facts.model_sha256, facts.data_sha256):
        return replace(_ended(row, "inconclusive", _CHANGED), key="")
    return _ended(row, status, _reason(record, status))


def _reason(record: ScanRecord, status: str) -> str:
    if status == "clean":
        return ""
    if status == "suspect":
        return words.headline(record)
    conflict = words.contradiction(record)
    said = record.reasons[-1] if not record.whole and record.reasons else "; ".join(record.reasons[:1])
    return f"do not rely on this record: {conflict}" if conflict else said


def _without_scan(row: NetRow, net: Net, outcome: Outcome) -> NetRow:
    row = replace(row, estimated_seconds=_estimate(row, outcome))
    if outcome.broke:
        return _ended(replace(row, seconds=outcome.seconds), CRASHED, _in_users_words(outcome.broke, net))
    if outcome.error:
        return _ended(replace(row, seconds=outcome.seconds), REFUSED, _in_users_words(outcome.error, net))
    return row


def _estimate(row: NetRow, outcome: Outcome) -> float | None:
    return row.estimated_seconds if outcome.planned is None else outcome.planned


def _ended(row: NetRow, status: str, reason: str) -> NetRow:
    return replace(row, status=status, exit_code=EXIT_CODES[status], reason=reason)


def _scanned(out: Path, net: Net) -> ScanRecord | None:
    """The net's record; None where there is none that can be read."""
    path = out / NETS / net.folder / "scan.json"
    try:
        record = read_record(path) if path.stat().st_size <= MAX_RECORD_BYTES else None
    except (GoodnetError, OSError):
        return None
    return record if isinstance(record, ScanRecord) and record.verdict in VERDICTS else None


def _in_users_words(text: str, net: Net) -> str:
    """Its own name instead of our paths."""
    for path, name in ((str(net.path), net.name), (str(net.clean), net.clean.name)):
        text = text.replace(path, name)
    return " ".join(text.split()).removeprefix(f"{net.name}: ")
