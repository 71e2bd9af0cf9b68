"""A benchmark's record as Markdown, for people, and as CSV, for spreadsheets. The record is the truth."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
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
    writer.writerow(["net", "method", "trigger", "target", "accepted", *ends, "ra_ceiling", "seconds", "note", "seed"])
    for row in record.rows:
        cells: list[object] = [row.net, row.method, row.trigger, row.target, row.accepted]
        for name in _SHARES:
            value: Share | None = getattr(row, name)
            cells += [None] * 4 if value is None else [value.value, value.low, value.high, value.n]
        writer.writerow(
            [
                "" if cell is None else cell
                for cell in (*cells, row.ra_ceiling, round(row.seconds, 2), row.note, row.seed)
            ]
        )
    return text.getvalue()


def bench_markdown(record: BenchRecord) -> str:
    """Tables: what the scans said, every row with 95 % intervals, and what others published.

    Of several seeds, means and extremes instead of rows.
    """
    seeds = len({row.seed for row in record.rows})
    table = _rows if seeds == 1 else _spread
    parts = [f"# {record.name}", "", _scans(record.scans), ""]
    for net in dict.fromkeys(row.net for row in record.rows):
        parts += [f"## {net}", "", table([row for row in record.rows if row.net == net]), ""]
        published = [row for row in record.published if row.net == net]
        if published:
            parts += ["Published by others, on the competition's whole data (ACC / ASR, percent):", ""]
            parts += [f"* {row.who}: {row.acc:g} / {row.asr:g}" for row in published] + [""]
    environment = record.environment
    meaning = "with 95 % Wilson intervals" if seeds == 1 else f"means over {seeds} seeds, and the least and the most"
    parts.append(
        f"Shares in percent, {meaning}. RA of a number: the clean net's on the same images. FPR like "
        "target: of clean faces that the net as it came answers with the target. Seconds: of the repair, in the first "
        f"row of the scan. Took {figures.duration(record.seconds)} on {environment.threads} threads, torch "
        f"{environment.torch}, goodnet {environment.goodnet}.\n"
    )
    return "\n".join(parts)


def _scans(scans: Sequence[BenchScan]) -> str:
    def labels(values: Sequence[int]) -> str:
        return ", ".join(map(str, values)) or "none"

    several = len({s.seed for s in scans}) > 1
    return markdown_table(
        ("net", "verdict", "flagged", "true targets", "seconds"),
        [
            (
                f"{s.net}, seed {s.seed}" if several else s.net,
                s.verdict,
                labels(s.flagged_labels),
                labels(s.targets),
                f"{s.seconds:.0f}",
            )
            for s in scans
        ],
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


def _spread(rows: Sequence[BenchRow]) -> str:
    """A row for all seeds of a method on a trigger: `95.2 (94.0 to 96.0)`."""
    groups: dict[tuple[str, str, str], list[BenchRow]] = {}
    for row in rows:  # auto may choose another method with another seed
        groups.setdefault((row.method.split(":")[0], row.trigger, row.note), []).append(row)
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    body = []
    for (_, trigger, note), group in groups.items():
        methods = Counter(row.method for row in group)
        name = "; ".join(f"{name} ({n})" if len(methods) > 1 else name for name, n in methods.items())
        judged = [row.accepted for row in group if row.accepted is not None]
        body.append(
            (
                name + (f" [{notes.index(note) + 1}]" if note else ""),
                f"{sum(judged)} of {len(judged)}" if judged else DASH,
                trigger if group[0].target is None else f"{trigger} → {group[0].target}",
                *(_mean([getattr(row, share) for row in group]) + _of(group, share) for share in _SHARES),
                f"{statistics.mean(row.seconds for row in group):.0f}",
            )
        )
    head = ("method", "accepted", "trigger", *_SHARES.values(), "s")
    return "\n".join([markdown_table(head, body), *(f"\n[{turn}] {note}" for turn, note in enumerate(notes, start=1))])


def _of(rows: Sequence[BenchRow], share: str) -> str:
    ceilings = [100 * row.ra_ceiling for row in rows if row.ra_ceiling is not None and share == "ra"]
    return f" of {statistics.mean(ceilings):.0f}" if ceilings else ""


def _mean(shares: Sequence[Share | None]) -> str:
    known = [100 * share.value for share in shares if share is not None]
    if not known:
        return DASH
    return f"{statistics.mean(known):.1f} ({min(known):.1f} to {max(known):.1f})"


def share_text(value: Share | None) -> str:
    """`95.0 (89–98)`"""
    if value is None or not exists(value.value):
        return DASH
    return f"{100 * value.value:.1f} ({100 * value.low:.0f}–{100 * value.high:.0f})"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(figures.visible(cell).replace('|', '/') for cell in cells)} |"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, body)])
