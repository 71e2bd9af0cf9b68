"""The report: one HTML page from records alone, with everything inside it and nothing fetched from anywhere."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from goodnet.errors import DataError
from goodnet.outputs import replacing
from goodnet.record import VERDICTS, EvaluateRecord, LabelResult, Record, RepairRecord, ScanRecord, read_record
from goodnet.report import figures, plot, words
from goodnet.report.answers import AnsweredSet, answered
from goodnet.report.compare import Comparison, compare_evaluate, compare_repair, evaluate_nets, repair_nets
from goodnet.report.curve import curve_plot
from goodnet.report.null_plot import null_plot
from goodnet.report.pictures import Gallery, gallery
from goodnet.report.rates import Rates, rates
from goodnet.verdicts import chances

TOP_LABELS, _NEAREST = 20, 3
MAX_PARTS = 24
MAX_RECORD_BYTES = 64 << 20
_FILES = ("scan.json", "repair.json", "evaluate.json")
_KIND = TypeVar("_KIND", ScanRecord, RepairRecord, EvaluateRecord)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The records of one folder under one title. The scan's pictures are relative to `folder`; commands on the page
    name it only if it is `lasting`."""

    title: str
    folder: Path
    lasting: bool = True
    scan: ScanRecord | None = None
    repair: RepairRecord | None = None
    evaluate: EvaluateRecord | None = None

    @property
    def first(self) -> Record | None:
        """The record that says most about the net."""
        return self.scan or self.repair or self.evaluate


@dataclass(frozen=True, kw_only=True)
class _ScanView:
    record: ScanRecord
    gallery: Gallery
    evidence: tuple[LabelResult, ...]
    null: Markup | None
    plot: Markup | None
    rates: Rates | str
    drawn: int
    ranked: tuple[Any, ...]
    steps: list[words.Step]


@dataclass(frozen=True, kw_only=True)
class _PartView:
    part: Part
    anchor: str
    tone: str
    scan: _ScanView | None
    repair: Comparison | None
    repair_answers: tuple[AnsweredSet, ...]
    evaluate: Comparison | None
    evaluate_answers: tuple[AnsweredSet, ...]
    curve: Markup | None


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page for the records in `folder` and one level below it.

    Args:
        folder: holds scan.json, repair.json and evaluate.json, at least one of them, or folders that do.
        out: the page; by default `folder / "report.html"`. Written to a temporary name beside it, then renamed.

    Returns:
        The page's path.

    Raises:
        DataError: no record found, one that cannot be read, a picture outside its folder, or `out` not writable.
    """
    out = folder / "report.html" if out is None else out
    page = render_report(read_parts(folder))
    try:
        with replacing(out) as part:
            part.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{out}: expected a place to write the report to, but {error.strerror}") from error
    return out


def read_parts(folder: Path) -> list[Part]:
    """The records of `folder` itself first, then those of its folders: suspects before the rest, then by name.

    Raises:
        DataError: see `write_report`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with {', '.join(_FILES)}; there is no such folder")
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    holders = [one for one in (folder, *below) if any((one / name).is_file() for name in _FILES)]
    if not holders:
        raise DataError(f"{folder}: expected {', '.join(_FILES)} here or one folder down, found none; run a scan first")
    if len(holders) > MAX_PARTS:
        raise DataError(f"{folder}: expected at most {MAX_PARTS} folders with records, got {len(holders)}; name one")
    parts = [_read_part(one) for one in holders]
    return sorted(parts, key=lambda part: (part.folder != folder, _tone(part) != "suspect"))


def render_report(parts: Sequence[Part]) -> str:
    """The page as text. Writes nothing; reads only the pictures that the scans name.

    Raises:
        DataError: no part, a part without a record, or a picture outside its folder.
    """
    if not parts or any(part.first is None for part in parts):
        raise DataError("report: expected parts that hold a scan, a repair or an evaluation each; got an empty one")
    style, script = asset("report.css"), asset("report.js")
    return environment().get_template("report.html.j2").render(
        parts=[_view(part, f"part-{turn}") for turn, part in enumerate(parts, start=1)],
        style=Markup(style),
        script=Markup(script),
        policy=policy(),
    )  # fmt: skip


def policy() -> str:
    """What the page may load and run, for a browser: itself."""
    style, script = asset("report.css"), asset("report.js")
    # hashes instead of 'unsafe-inline': even markup that slipped through the escaping could not run
    return (
        f"default-src 'none'; style-src {_hash(style)}; img-src data:; script-src {_hash(script)}; "
        f"base-uri 'none'; form-action 'none'"
    )


def _read_part(folder: Path) -> Part:
    scan = _read(folder / "scan.json", ScanRecord)
    if scan is not None and scan.verdict not in VERDICTS:
        raise DataError(f"{folder / 'scan.json'}: expected verdict {', '.join(VERDICTS)}, got {scan.verdict[:40]!r}")
    return Part(
        title=folder.resolve().name,
        folder=folder,
        scan=scan,
        repair=_read(folder / "repair.json", RepairRecord),
        evaluate=_read(folder / "evaluate.json", EvaluateRecord),
    )


def _read(path: Path, kind: type[_KIND]) -> _KIND | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise DataError(f"{path}: expected a record of at most {MAX_RECORD_BYTES >> 20} MiB, got a larger file")
    record = read_record(path)
    if not isinstance(record, kind):
        raise DataError(f"{path}: expected a {kind.format} record, got {record.format}; rename or remove it")
    return record


def _tone(part: Part) -> str:
    """What colours the part: the scan's verdict, else how the repair came out."""
    if part.scan is not None:
        return part.scan.verdict
    return words.repair_outcome(part.repair).tone if part.repair is not None else "neutral"


def _view(part: Part, anchor: str) -> _PartView:
    return _PartView(
        part=part,
        anchor=anchor,
        tone=_tone(part),
        scan=_scan_view(part.scan, part) if part.scan else None,
        repair=compare_repair(part.repair) if part.repair else None,
        repair_answers=answered(repair_nets(part.repair)) if part.repair else (),
        evaluate=compare_evaluate(part.evaluate) if part.evaluate else None,
        evaluate_answers=answered(evaluate_nets(part.evaluate)) if part.evaluate else (),
        curve=curve_plot(part.repair) if part.repair else None,
    )


def _scan_view(record: ScanRecord, part: Part) -> _ScanView:
    scores = [(result.score if figures.exists(result.score) else None, result) for result in record.labels]
    ranked = sorted(scores, key=lambda pair: (pair[0] is None, -(pair[0] or 0.0), pair[1].label))
    return _ScanView(
        record=record,
        gallery=gallery(record, part.folder),
        evidence=_evidence(record),
        null=null_plot(record),
        plot=plot.norm_plot(record),
        rates=rates(record),
        drawn=sum(plot.drawn_norm(result) is not None for result in record.labels),
        ranked=tuple(result for _, result in ranked),
        steps=words.next_steps(record, part.folder if part.lasting else None, part.repair),
    )


def _evidence(record: ScanRecord) -> tuple[LabelResult, ...]:
    """The flagged labels, the most unlikely first; where none is, the few that stand out most."""
    ranked = [row for row, _ in chances(record)]
    wanted = set(record.flagged_labels)
    flagged = [row for row in ranked if row.label in wanted]
    flagged += [row for row in record.labels if row.label in wanted and not figures.exists(row.p_value)]
    return tuple(flagged[:TOP_LABELS] or ranked[:_NEAREST])


@functools.cache
def environment() -> jinja2.Environment:
    """Of the templates: escapes everything, knows how figures are written, and stops at names that are not there."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("goodnet", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        share=figures.share,
        percent=figures.percent,
        number=figures.number,
        p_value=lambda value: figures.typeset(figures.p_value(value)),
        duration=figures.duration,
        compact=figures.compact,
        chance=lambda value: figures.typeset(figures.chance(value)),
        count=lambda value: figures.DASH if value is None else f"{value:,}",
        times=lambda value, factor: None if value is None else value * factor,
        raw=lambda value: repr(value) if figures.exists(value) else "",
    )
    made.globals.update(
        words=words, figures=figures, marker=plot.marker, top=TOP_LABELS, dash=figures.DASH, br=Markup("\n  ")
    )
    return made


def _finalize(value: Any) -> Any:
    """Every text on its way into the page, before it is escaped."""
    return figures.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> str:
    """A file of the page's own: its style, or its script."""
    return re.sub(r"\r\n?", "\n", resources.files("goodnet.report").joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
