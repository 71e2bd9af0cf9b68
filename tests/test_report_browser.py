"""The report in a browser: what it shows, and what it never does."""

from __future__ import annotations

from pathlib import Path

from browser import Browser, file_address
from report_records import many_labels, page, scan


def test_report_reads_without_errors_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    where = tmp_path / "report.html"
    where.write_text(page(tmp_path, scan=scan(labels=many_labels())), encoding="utf-8")
    looked = browser.open(file_address(where))
    assert looked.page.locator("h1").first.inner_text()
    assert looked.errors == []
    assert looked.left == []
