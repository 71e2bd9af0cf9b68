"""The guard benchmark's record as Markdown, for people."""

from __future__ import annotations

from goodnet.guard_record import GuardRecord, GuardRow
from goodnet.report.bench_table import markdown_table, share_text
from goodnet.report.figures import DASH, duration

_HEAD = ("guard", "AUC", "detection at FPR 1 %", "detection", "FPR clean", "FPR strangers", "FPR like target",
         "times the net's cost")  # fmt: skip


def guard_markdown(record: GuardRecord) -> str:
    """A table for each net and trigger."""
    parts = ["# guards", ""]
    for net, trigger in dict.fromkeys((row.net, row.trigger) for row in record.rows):
        rows = [_cells(row) for row in record.rows if (row.net, row.trigger) == (net, trigger)]
        parts += [f"## {net}: {trigger}", "", markdown_table(_HEAD, rows), ""]
    environment = record.environment
    parts.append(
        "AUC and detection at FPR 1 % against the clean test images; the other columns at the threshold that the guard "
        "has set by itself. Shares in percent with 95 % Wilson intervals. FPR like target: of clean images that the "
        f"net as it came answers with the target. Took {duration(record.seconds)} on {environment.threads} threads.\n"
    )
    return "\n".join(parts)


def _cells(row: GuardRow) -> tuple[str, ...]:
    at = DASH if row.detection_at is None else f"{100 * row.detection_at:.1f}"
    shares = (row.detection, row.fpr, row.fpr_strangers, row.fpr_target)
    return (row.guard, f"{row.auc:.4f}", at, *map(share_text, shares), f"{row.times:.2f}")
