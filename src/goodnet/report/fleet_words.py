"""What a fleet's record says, in words, and as a table in a terminal of 80 columns."""

from __future__ import annotations

import textwrap

from goodnet.fleet_record import (
    CLEAN,
    CRASHED,
    INCONCLUSIVE,
    REFUSED,
    SEVERITY,
    SUSPECT,
    WAITING,
    FleetRecord,
    NetRow,
    worst_first,
)
from goodnet.report import figures

MEANING = {
    SUSPECT: "behaves as if backdoored",
    CRASHED: "the process that scanned it broke",
    REFUSED: "wrong or unsafe input, not scanned",
    INCONCLUSIVE: "the scan cannot tell",
    WAITING: "not scanned yet",
    CLEAN: "no label stands out",
}
MOST_ROWS = 40
_WIDTH, _STATUS, _SECONDS = 80, 14, 9


def tone(record: FleetRecord) -> str:
    """The worst of the rows, as one of the verdicts."""
    worst = worst_first(record.nets)[0].status if record.nets else INCONCLUSIVE
    return worst if worst in (SUSPECT, CLEAN) else "inconclusive"


def headline(record: FleetRecord) -> str:
    """`2 of 200 nets are suspect.`"""
    total, found = len(record.nets), record.counts
    bad = found.get(SUSPECT, 0)
    if bad:
        return f"{bad:,} of {total:,} nets {'is' if bad == 1 else 'are'} suspect."
    unknown = total - found.get(CLEAN, 0)
    if unknown:
        so_far = "" if record.finished else " so far"
        have = "has" if unknown == 1 else "have"
        return f"None of {total:,} nets is suspect{so_far}, but {unknown:,} {have} no verdict."
    return f"All {total:,} nets are clean." if total > 1 else "The one net is clean."


def outlook(record: FleetRecord) -> str:
    """What the rows are, status by status, the worst first."""
    parts = [f"{record.counts.get(status, 0):,} {status}" for status in reversed(SEVERITY) if record.counts.get(status)]
    return ", ".join(parts) or "no net"


def labels(row: NetRow) -> str:
    return figures.enumeration([str(label) for label in row.flagged_labels]) if row.flagged_labels else ""


def table(record: FleetRecord, where: str | None) -> str:
    """The summary in lines of at most 80 columns, the worst nets first, without a newline at the end.

    Args:
        where: the page with all rows; None where there is none.
    """
    rows = worst_first(record.nets)
    lines = [*_wrap(headline(record)), *_wrap(f"{len(rows):,} nets: {outlook(record)}."), ""]
    lines.append(_line("verdict", "net", "labels", "time"))
    for row in rows[:MOST_ROWS]:
        lines.append(row_line(row))
        if row.reason and row.status != SUSPECT:
            lines += [f"{'':{_STATUS}}{line}" for line in _short(row.reason)]
    if len(rows) > MOST_ROWS:
        rest = rows[MOST_ROWS:]
        kinds = {row.status for row in rest}
        all_of = f", all {kinds.pop()}" if len(kinds) == 1 else ""
        lines.append(f"and {len(rest):,} more{all_of}")
    if record.passed_over:
        names = figures.enumeration([one.name for one in record.passed_over], most=4)
        lines += ["", *_wrap(f"Passed over, for they are not named like nets or lead elsewhere: {names}.")]
    if where is not None:
        lines += ["", f"Summary: {figures.visible(where)}"]
    return "\n".join(lines)


def plan_line(row: NetRow) -> str:
    """A net of a plan, in at most 80 columns: how long its scan takes, or why there will be none."""
    if row.estimated_seconds is None or row.status != WAITING:
        return f"  {row.status:<10}{_cut(figures.visible(f'{row.name}: {row.reason}'), 66, end=True)}"
    return f"  {figures.duration(row.estimated_seconds):>12}  {_cut(figures.visible(row.name), 60)}"


def row_line(row: NetRow) -> str:
    """A net that has just ended, in at most 80 columns; the table says why."""
    return _line(row.status, row.name, labels(row), figures.duration(row.seconds or float("nan")))


def _line(status: str, name: str, labels: str, seconds: str) -> str:
    room = _WIDTH - _STATUS - _SECONDS - 1
    beside = _cut(labels, 16)
    shown = _cut(figures.visible(name), room - len(beside) - (2 if beside else 0))
    middle = f"{shown}{beside:>{room - len(shown)}}" if beside else shown
    return f"{status:<{_STATUS}}{middle:<{room}} {seconds:>{_SECONDS}}".rstrip()


def _cut(text: str, room: int, *, end: bool = False) -> str:
    """The end of a long name says most, unless something else stands there: then the end is cut."""
    if len(text) <= room:
        return text
    return f"{text[: room - 1]}…" if end else f"…{text[len(text) - room + 1 :]}"


def _short(text: str) -> list[str]:
    return textwrap.wrap(figures.visible(text), _WIDTH - _STATUS, max_lines=2, placeholder=" …")


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(figures.visible(text), _WIDTH)
