"""The page of many nets: what it shows, where its links lead, and that no name in it does anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, file_address
from fleet_support import fleet, row
from goodnet.fleet_record import PassedOver
from goodnet.report.fleet_page import link, render_summary, write_summary
from report_records import HOSTILE
from test_report_browser import CUT, NARROW, WIDE

ROWS = (
    row("a clean net.pt", report="nets/a/report.html", seconds=30.0),
    row("bad.pt", "suspect", flagged_labels=(3, 17), report="nets/b/report.html", seconds=9.0,
        reason="2 labels behave like targets."),
    row("cut.pt", "refused", reason="damaged archive (File is not a zip file); fetch it again", seconds=2.0),
    row("died.pt", "crashed", reason="its process was ended by SIGKILL, maybe for want of memory", seconds=None),
    row("doubt.pt", "inconclusive", reason="label 2 stands out", report="nets/d/report.html", seconds=100.0),
)  # fmt: skip


def hostile() -> Any:
    rows = [
        row(HOSTILE + str(n), status, reason=HOSTILE, report=report)
        for n, (status, report) in enumerate(
            [("suspect", "nets/x\"onclick='alert(1)'/report.html"), ("clean", "javascript:alert(1)"), ("refused", None)]
        )
    ]
    odd = dataclasses.replace(rows[2], status=HOSTILE)
    return fleet(*rows[:2], odd, passed_over=(PassedOver(name=HOSTILE, why=HOSTILE),), source=HOSTILE)


def test_no_name_is_more_than_text() -> None:
    page = render_summary(hostile())
    assert page.count("<script>") == 1  # our own
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "javascript:" not in page
    assert "onclick=" not in page.replace("onclick%3D", "")


@pytest.mark.parametrize(
    ("report", "address"),
    [
        ("nets/a-1/report.html", "nets/a-1/report.html"),
        ("nets/a b?c#d%/report.html", "nets/a%20b%3Fc%23d%25/report.html"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("data:text/html,x", "data%3Atext/html%2Cx"),
        ("../../etc/passwd", None),
        ("nets/../../x", None),
        ("//example.org/x", None),
        ("/etc/passwd", None),
        ("\\\\example.org\\x", None),
        ("", None),
        (None, None),
    ],
)
def test_links_lead_below_the_summary_or_nowhere(report: str | None, address: str | None) -> None:
    assert link(row("a", report=report)) == address


def test_the_page_stands_alone_and_says_all(tmp_path: Path) -> None:
    write_summary(fleet(*ROWS, passed_over=(PassedOver(name="notes.txt", why="not named like a net"),)), tmp_path / "s")
    page = (tmp_path / "s").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    for text in ("1 of 5 nets is suspect.", "notes.txt", "SIGKILL", "3 and 17", "damaged archive", "--out out"):
        assert text in page
    order = [page.index(f">{name}<") for name in ("bad.pt", "died.pt", "cut.pt", "doubt.pt", "a clean net.pt")]
    assert order == sorted(order)  # the worst first, without script


def names(tab: Any) -> list[str]:
    return [text.split("\n")[0] for text in tab.locator("table.fleet tbody th").all_inner_texts()]


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    for folder in ("a", "b", "d"):
        (tmp_path / "nets" / folder).mkdir(parents=True)
        (tmp_path / "nets" / folder / "report.html").write_text(f"<!doctype html><title>report {folder}</title>")
    write_summary(fleet(*ROWS), tmp_path / "summary.html")
    looked = browser.open(file_address(tmp_path / "summary.html"), viewport=WIDE, color_scheme="light")
    tab = looked.page
    assert looked.axe(serious=("moderate", "serious", "critical")) == []
    assert names(tab)[0] == "bad.pt"
    tab.get_by_role("button", name="time").click()
    assert names(tab) == ["doubt.pt", "a clean net.pt", "bad.pt", "cut.pt", "died.pt"]  # what has none is last
    tab.get_by_role("button", name="net", exact=True).click()
    assert names(tab) == sorted(names(tab))
    tab.get_by_role("button", name="verdict").click()
    assert names(tab)[0] == "bad.pt"
    assert tab.get_by_role("link", name="bad.pt").evaluate("one => one.href") == file_address(
        tmp_path / "nets" / "b" / "report.html"
    )
    tab.emulate_media(color_scheme="dark")
    assert looked.axe() == []
    for _ in range(2):
        tab.set_viewport_size(NARROW)
        assert tab.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        assert tab.evaluate(CUT) == []
    assert (looked.errors, looked.left) == ([], [])


@pytest.mark.slow
def test_hostile_names_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    write_summary(hostile(), tmp_path / "summary.html")
    looked = browser.open(file_address(tmp_path / "summary.html"), viewport=NARROW)
    assert looked.page.evaluate("document.querySelectorAll('script').length") == 1
    assert looked.page.evaluate(CUT) == []
    assert looked.axe() == []
    assert (looked.errors, looked.left) == ([], [])
