"""The detection benchmark's record as Markdown, for people. The record is the truth."""

from __future__ import annotations

from collections.abc import Sequence

from goodnet.detection_record import DetectionRecord, DetectionRow, DetectionSummary
from goodnet.report.bench_table import markdown_table, share_text
from goodnet.report.figures import DASH

_MOST = 5


def detection_markdown(record: DetectionRecord) -> str:
    """Rates with 95 % intervals for each part, then every net."""
    parts = ["# Detection", ""]
    for part in dict.fromkeys(summary.part for summary in record.summaries):
        mine = [summary for summary in record.summaries if summary.part == part]
        parts += [f"## Rates, nets of {part}", "", _rates(mine), ""]
    parts += ["## Nets", "", _nets(record.rows), ""]
    if record.left_out:
        parts += ["Left out:", "", *(f"- {text}" for text in record.left_out), ""]
    return "\n".join(parts)


def _rates(summaries: Sequence[DetectionSummary]) -> str:
    head = ["nets", "clean", "backdoored", "TPR", "missed", "FPR", "inconclusive", "precision", "recall", "AUC", "s"]
    body = [
        [
            row.group,
            str(row.clean),
            str(row.backdoored) + (f" (+{row.not_planted} not planted)" if row.not_planted else ""),
            *map(share_text, (row.tpr, row.missed, row.fpr, row.inconclusive, row.precision, row.recall, row.auc)),
            DASH if row.seconds is None else f"{row.seconds:.0f}",
        ]
        for row in summaries
    ]
    return markdown_table(head, body)


def _nets(rows: Sequence[DetectionRow]) -> str:
    head = ["net", "part", "ACC", "ASR", "targets", "verdict", "flagged", "p x K", "mask of target", "s"]
    body = [
        [
            row.net,
            row.part,
            share_text(row.acc),
            (DASH if row.asr is None else f"{100 * row.asr:.1f}") + ("" if row.planted else " (not planted)"),
            _labels(row.targets),
            row.verdict,
            _labels(row.flagged_labels),
            DASH if row.score is None else f"{row.score:.2g}",
            DASH if row.target_ratio is None else f"{row.target_ratio:.2f}",
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return markdown_table(head, body)


def _labels(labels: Sequence[int]) -> str:
    shown = ", ".join(str(label) for label in labels[:_MOST])
    return DASH if not labels else shown + (f" and {len(labels) - _MOST} more" if len(labels) > _MOST else "")
