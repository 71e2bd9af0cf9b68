"""The page of a fleet, from its record alone: `summary.html`, a row a net, with links to the single reports."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from goodnet.fleet_record import FleetRecord, NetRow, severity, worst_first
from goodnet.outputs import replacing
from goodnet.report import fleet_words, page, words

_TONES = {"clean": "clean", "suspect": "suspect"}


def write_summary(record: FleetRecord, path: Path) -> None:
    """Writes the page under a temporary name, then renames. Raises OSError."""
    text = render_summary(record)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def render_summary(record: FleetRecord) -> str:
    """The page as text; everything in it is in the record."""
    return page.environment().get_template("fleet.html.j2").render(
        record=record,
        rows=worst_first(record.nets),
        tone=fleet_words.tone(record),
        headline=fleet_words.headline(record),
        command=words.command_line(record.environment.command),
        said=fleet_words,
        tone_of=tone_of,
        severity=severity,
        link=link,
        style=Markup(page.asset("report.css")),
        script=Markup(page.asset("report.js")),
        policy=page.policy(),
    )  # fmt: skip


def tone_of(row: NetRow) -> str:
    """What colours a row."""
    return _TONES.get(row.status, "inconclusive" if row.status != "waiting" else "neutral")


def link(row: NetRow) -> str | None:
    """The report's address, which leads to a place below the summary or nowhere; None where there is none."""
    parts = (row.report or "").split("/")
    if row.report is None or any(part in ("", ".", "..") for part in parts) or "\\" in row.report:
        return None
    # a colon in the first part would make a scheme of it
    return "/".join(quote(part.encode("utf-8", "surrogateescape"), safe="") for part in parts)
