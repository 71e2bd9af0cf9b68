"""The same records in a terminal of 80 columns. Names from outside reach it as text: no markup, no control codes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from goodnet.record import EvaluateRecord, RepairRecord, ScanRecord
from goodnet.report import figures, words
from goodnet.report.compare import Cell, Comparison, compare_evaluate, compare_repair

WIDTH = 80
MAX_FLAGGED = 10


def scan_summary(record: ScanRecord) -> str:
    """The verdict, what it means and why: plain lines of at most 80 columns, without a newline at the end.

    Plain text, not markup: print it with `click.echo`, or with rich as `Text(...)`.
    """
    paragraphs = [words.headline(record), words.consequence(record)]
    conflict = words.contradiction(record)
    if conflict:
        paragraphs.append(f"Do not rely on this record: {conflict}.")
    lines = [
        *_wrap(record.verdict.upper()),
        *_wrap(record.model.name),
        *(line for text in paragraphs for line in _wrap(text)),
    ]
    if record.all_to_all is not None and record.all_to_all.flagged:
        lines += _wrap(f"all to all: {words.mapping(record.all_to_all)}", indent="  ")
    flagged = words.flagged_results(record)
    for result in flagged[:MAX_FLAGGED]:
        lines += _wrap(f"label {result.label}: {words.evidence(result)}", indent="  ")
    if len(flagged) > MAX_FLAGGED:
        lines.append(f"  and {len(flagged) - MAX_FLAGGED:,} more flagged labels")
    for reason in record.reasons:
        lines += _wrap(f"- {reason}", indent="", further="  ")
    if record.not_tested:
        lines += _wrap(f"Not tested: {'; '.join(record.not_tested)}.")
    lines += _wrap(
        f"{words.counts(record)}; {figures.duration(record.seconds)}, {record.forward_passes:,} forward passes"
    )
    return "\n".join(lines)


def next_step(steps: Sequence[words.Step]) -> str:
    """The first of `steps`: its sentence, and its command to copy, whose lines are as long as its names."""
    lines = [line for step in steps[:1] for line in _wrap(step.text)]
    command = " \\\n    ".join(figures.visible(line) for step in steps[:1] for line in step.command)
    return "\n".join([*lines, *([f"  {command}"] if command else [])])


def evaluate_table(record: EvaluateRecord) -> Table:
    """ACC, FPR, and per poisoned set ASR, RA, detection, DER; the net before beside it, where there was one."""
    return _table(compare_evaluate(record), record.model.name)


def repair_table(record: RepairRecord) -> Table:
    """The net before and after a repair on its judging split, and whether the repair was accepted."""
    return _table(compare_repair(record), words.repair_outcome(record).text)


def _wrap(text: str, indent: str = "", further: str | None = None) -> list[str]:
    further = indent + "  " if further is None and indent else further or ""
    tied = figures.visible(text).replace(" %", "\u00a0%")  # a figure stays on one line with its sign
    wrapped = textwrap.wrap(tied, WIDTH, initial_indent=indent, subsequent_indent=further)
    return [line.replace("\u00a0", " ") for line in wrapped]


def _table(comparison: Comparison, title: str) -> Table:
    table = Table(
        title=Text(figures.visible(title)), title_justify="left", box=box.SIMPLE_HEAD, width=None, pad_edge=False
    )
    table.add_column("", overflow="fold", min_width=11, max_width=WIDTH)
    for column in comparison.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for group in comparison.groups:
        table.add_row(Text(figures.visible(group.title), style="bold"))
        for turn, row in enumerate(group.rows, start=1):
            cells = [_cell(cell) for cell in row.cells]
            table.add_row(Text(f"  {row.name}"), *cells, end_section=turn == len(group.rows))
    if comparison.notes:
        notes = "\n".join(f"[{turn}] {note}" for turn, note in enumerate(comparison.notes, start=1))
        table.caption, table.caption_justify = Text(notes, justify="left", style="dim"), "left"
    return table


def _cell(cell: Cell) -> Text:
    return Text(cell.text if cell.note is None else f"{cell.text} [{cell.note}]")
