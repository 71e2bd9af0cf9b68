"""A benchmark's record as Markdown, for people, and as CSV, for spreadsheets. The record is the truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from goodnet.bench_record import BenchRecord, BenchRow, BenchScan
from goodnet.record import Share
from goodnet.report import figures
from goodnet.report.figures import DASH, exists

_SHARES: dict[str, str] = {
    "acc": "ACC",
    "asr": "ASR",
    "ra": "RA",
    "detection": "detection",
    "fpr": "FPR clean",
    "fpr_strangers": "FPR strangers",
    "fpr_target": "FPR like target",
}


def bench_csv(record: BenchRecord) -> str:
    """A line a row of the record: each share as value, low, high, n; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{name}{end}" for name in _SHARES for end in ("", "_low", "_high", "_n")]
    writer.writerow(["net", "method", "trigger", "target", "accepted", *ends, "ra_ceiling", "seconds", "note"])
    for row in record.rows:
        cells: list[object] = [row.net, row.method, row.trigger, row.target, row.accepted]
        for name in _SHARES:
            value: Share | None = getattr(row, name)
            cells += [None] * 4 if value is None else [value.value, value.low, value.high, value.n]
        writer.writerow(
            ["" if cell is None else cell for cell in (*cells, row.ra_ceiling, round(row.seconds, 2), row.note)]
        )
    return text.getvalue()


def bench_markdown(record: BenchRecord) -> str:
    """Tables: what the scans said, every row with 95 % intervals, and what others published."""
    parts = [f"# {record.name}", "", _scans(record.scans), ""]
    for net in dict.fromkeys(row.net for row in record.rows):
        parts += [f"## {net}", "", _rows([row for row in record.rows if row.net == net]), ""]
        published = [row for row in record.published if row.net == net]
        if published:
            parts += ["Published by others, on the competition's whole data (ACC / ASR, percent):", ""]
            parts += [f"* {row.who}: {row.acc:g} / {row.asr:g}" for row in published] + [""]
    environment = record.environment
    parts.append(
        "Shares in percent with 95 % Wilson intervals. RA of a number: the clean net's on the same images. FPR like "
        "target: of clean faces that the net as it came answers with the target. Seconds: of the repair, in the first "
        f"row of the scan. Took {figures.duration(record.seconds)} on {environment.threads} threads, torch "
        f"{environment.torch}, goodnet {environment.goodnet}.\n"
    )
    return "\n".join(parts)


def _scans(scans: Sequence[BenchScan]) -> str:
    def labels(values: Sequence[int]) -> str:
        return ", ".join(map(str, values)) or "none"

    return markdown_table(
        ("net", "verdict", "flagged", "true targets", "seconds"),
        [(s.net, s.verdict, labels(s.flagged_labels), labels(s.targets), f"{s.seconds:.0f}") for s in scans],
    )


def _rows(rows: Sequence[BenchRow]) -> str:
    head = ("method", "accepted", "trigger", "ACC", "ASR", "RA", "detection", *list(_SHARES.values())[4:], "s")
    accepted = {True: "yes", False: "no", None: DASH}
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    body = []
    for row in rows:
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        ceiling = "" if row.ra_ceiling is None else f" of {100 * row.ra_ceiling:.0f}"
        body.append(
            (
                f"{row.method}{mark}",
                accepted[row.accepted],
                row.trigger if row.target is None else f"{row.trigger} → {row.target}",
                share_text(row.acc),
                share_text(row.asr),
                share_text(row.ra) + (ceiling if row.ra is not None else ""),
                *(share_text(getattr(row, name)) for name in list(_SHARES)[3:]),
                f"{row.seconds:.0f}",
            )
        )
    return "\n".join([markdown_table(head, body), *(f"\n[{turn}] {note}" for turn, note in enumerate(notes, start=1))])


def share_text(value: Share | None) -> str:
    """`95.0 (89–98)`"""
    if value is None or not exists(value.value):
        return DASH
    return f"{100 * value.value:.1f} ({100 * value.low:.0f}–{100 * value.high:.0f})"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(figures.visible(cell).replace('|', '/') for cell in cells)} |"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, body)])
