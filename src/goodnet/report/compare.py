"""The before/after table as plain data, for the page and the terminal alike.

What is null in the record gets a dash and a note that says why; DER stands in the column of the net after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from goodnet.record import EvaluateRecord, Measured, Poisoned, RepairRecord, Share
from goodnet.report import figures


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure as text; `note` is the 1-based number of the note that says why it is missing."""

    text: str
    note: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of every net; `cells` are in the order of the columns."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The figures on one set of images."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table: columns (one a net), groups of rows, and notes."""

    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Net:
    """A column; `sets` by name and occurrence. `refuses` is null where the record is silent on a class N."""

    column: str
    measured: Measured
    sets: dict[tuple[str, int], Poisoned]
    refuses: bool | None


class _Notes:
    """Numbers the reasons in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def cell(self, text: str, reason: str) -> Cell:
        if text != figures.DASH:
            return Cell(text=text)
        if reason not in self.texts:
            self.texts.append(reason)
        return Cell(text=text, note=self.texts.index(reason) + 1)


def compare_repair(record: RepairRecord) -> Comparison:
    """The nets before and after a repair, on its judging split."""
    return _compare(repair_nets(record), record.data.labelled)


def compare_evaluate(record: EvaluateRecord) -> Comparison:
    """The evaluated net, beside the net before where one was given."""
    return _compare(evaluate_nets(record), record.data.labelled)


def repair_nets(record: RepairRecord) -> list[Net]:
    """Before and after."""
    return [_net("before", record.before, record.model.refuses), _net("after", record.after, None)]


def evaluate_nets(record: EvaluateRecord) -> list[Net]:
    """The net, called `figure`, or before and after."""
    measured = Measured(acc=record.acc, fpr=record.fpr, poisoned=record.poisoned)
    if record.before is None:
        return [_net("figure", measured, record.model.refuses)]
    refuses = record.before_model.refuses if record.before_model else None
    return [_net("before", record.before, refuses), _net("after", measured, record.model.refuses)]


def set_titles(nets: Sequence[Net]) -> dict[tuple[str, int], str]:
    """The poisoned sets of all nets in the order of the last one's, by name and occurrence, with their titles."""
    titles: dict[tuple[str, int], str] = {}
    for net in reversed(nets):
        for key, one in net.sets.items():
            titles.setdefault(key, key[0] if one.target is None else f"{key[0]} → class {one.target}")
    return titles


def _compare(nets: list[Net], labelled: bool) -> Comparison:
    notes = _Notes()
    acc_note = "The record holds no ACC." if labelled else "ACC needs labels, and these images came without."
    rows = (
        Row(name="ACC", cells=tuple(notes.cell(figures.share(net.measured.acc), acc_note) for net in nets)),
        Row(
            name="FPR",
            cells=tuple(notes.cell(figures.share(net.measured.fpr), _refusal_note(net, "FPR")) for net in nets),
        ),
    )
    groups = [Group(title="Clean images", rows=rows)]
    groups += [_poisoned_group(nets, key, title, notes) for key, title in set_titles(nets).items()]
    return Comparison(columns=tuple(net.column for net in nets), groups=tuple(groups), notes=tuple(notes.texts))


def _net(column: str, measured: Measured, refuses: bool | None) -> Net:
    """A column; its poisoned sets by (name, occurrence), so that two files of one name stay two sets."""
    sets: dict[tuple[str, int], Poisoned] = {}
    seen: Counter[str] = Counter()
    for poisoned in measured.poisoned:
        sets[poisoned.name, seen[poisoned.name]] = poisoned
        seen[poisoned.name] += 1
    return Net(column=column, measured=measured, sets=sets, refuses=refuses)


def _poisoned_group(nets: list[Net], key: tuple[str, int], title: str, notes: _Notes) -> Group:
    sets = [net.sets.get(key) for net in nets]
    rows = [
        Row(
            name=name,
            cells=tuple(_cell(net, one, name, notes, last=net is nets[-1]) for net, one in zip(nets, sets)),
        )
        for name in ("ASR", "RA", "detection", "DER")
    ]
    return Group(title=title, rows=tuple(rows))


def _cell(net: Net, poisoned: Poisoned | None, name: str, notes: _Notes, *, last: bool) -> Cell:
    if name == "DER":
        return notes.cell(figures.percent(poisoned.der if poisoned else None), _der_note(net, last))
    if poisoned is None:
        return notes.cell(figures.DASH, "This set was not measured on this net.")
    found: dict[str, tuple[Share | None, str]] = {
        "ASR": (poisoned.asr, "ASR counts images whose true label is not the target; this set has none that is known."),
        "RA": (poisoned.ra, "RA needs the true labels of the triggered images, which are not known."),
        "detection": (poisoned.detection, _refusal_note(net, "detection rate")),
    }
    value, reason = found[name]
    return notes.cell(figures.share(value), reason)


def _refusal_note(net: Net, figure: str) -> str:
    return (
        "This net has no class N, so it refuses nothing." if net.refuses is False else f"The record holds no {figure}."
    )


def _der_note(net: Net, last: bool) -> str:
    if net.column == "figure":
        return "DER compares with the net before, and none was given."
    return "DER needs ACC and ASR of both nets." if last else "DER compares both nets; it stands under “after”."
