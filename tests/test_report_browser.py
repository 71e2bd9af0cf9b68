"""The report in a browser: what it shows to eye, keyboard and screen reader, and on paper; and what it never does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, Looked, file_address
from goodnet.report import Part, render_report
from report_records import evaluation, examples, hostile_parts, label, many_labels, model, page, repair, scan

pytestmark = pytest.mark.slow

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
A4 = {"width": 672, "height": 1000}  # 210 mm less margins of 16 mm, in CSS pixels

Show = Callable[..., Looked]


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Show:
    def shown(source: str, **options: Any) -> Looked:
        where = tmp_path / "report.html"
        where.write_text(source, encoding="utf-8")
        return browser.open(file_address(where), **{"viewport": WIDE, **options})

    return shown


def suspect(tmp_path: Path, labels: int = 60) -> Any:
    return scan(
        labels=many_labels(labels),
        examples=examples(tmp_path),
        model=dataclasses.replace(model(), classes=labels),
    )


def source_of(kind: str, tmp_path: Path) -> str:
    whole = {"scan": suspect(tmp_path), "repair": repair(), "evaluate": evaluation()}
    clean = scan(verdict="clean", flagged_labels=(), labels=tuple(label(n) for n in range(5)))
    kinds: dict[str, list[dict[str, Any]]] = {
        "all of one net": [whole],
        "a clean net": [{"scan": clean}],
        "an inconclusive scan": [{"scan": dataclasses.replace(clean, verdict="inconclusive", labels=clean.labels[:3])}],
        "a repair alone": [{"repair": repair(accepted=None)}],
        "an evaluation alone": [{"evaluate": evaluation()}],
        "several nets": [whole, {"scan": clean}, {"scan": clean}],
        "hostile names": [hostile_parts()],
    }
    return render_report([Part(title=f"net {n}", folder=tmp_path, **part) for n, part in enumerate(kinds[kind])])


KINDS = (
    "all of one net", "a clean net", "an inconclusive scan", "a repair alone", "an evaluation alone", "several nets",
    "hostile names",
)  # fmt: skip

# what reaches over the right edge and is not in a box that can be scrolled; what only screen readers see aside
CUT = """[...document.querySelectorAll("body *")].filter(one => {
  const box = one.getBoundingClientRect();
  const scrolls = one.closest(".scroll") && getComputedStyle(one.closest(".scroll")).overflowX === "auto";
  return box.width > 0 && box.right > innerWidth + 1 && !scrolls && !one.closest(".unseen");
}).map(one => one.tagName + "." + one.className)"""


# on paper nobody scrolls
HIDDEN = """[...document.querySelectorAll(".scroll, pre")].filter(one => one.scrollWidth > one.clientWidth + 1)
  .map(one => one.getAttribute("aria-label") || one.textContent)"""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_reads_well_everywhere(show: Show, tmp_path: Path, kind: str) -> None:
    looked = show(source_of(kind, tmp_path), color_scheme="light")
    tab = looked.page
    assert looked.axe(serious=("moderate", "serious", "critical")) == []
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert looked.axe() == []
    tab.set_viewport_size(NARROW)
    assert tab.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert tab.evaluate(CUT) == []
    tab.emulate_media(media="print", color_scheme="dark")
    tab.set_viewport_size(A4)
    assert tab.evaluate(CUT) == []
    assert tab.evaluate(HIDDEN) == []
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf(format="A4", print_background=True).startswith(b"%PDF")
    assert looked.errors == []
    assert looked.left == []


def test_what_is_cut_off_is_seen(show: Show, tmp_path: Path) -> None:
    looked = show(page(tmp_path, scan=scan()).replace("</main>", f"<p><code>{'x' * 900}</code></main>"))
    looked.page.evaluate("document.querySelectorAll('main > p code').forEach(one => one.style.whiteSpace = 'nowrap')")
    assert looked.page.evaluate(CUT)


def test_the_first_screen_answers_what_a_reader_asks(show: Show, tmp_path: Path) -> None:
    tab = show(page(tmp_path, scan=suspect(tmp_path))).page
    for text in (
        "Suspect",  # is it safe
        "Label 2 behaves like the target of a backdoor.",
        "By chance alone, fewer than 1 in",  # how sure
        "Any image that carries this pattern is answered as class 2",  # what would happen
        "Do not use this net as it is: repair it.",  # what to do
        "What to do next",
    ):
        box = tab.get_by_text(text).first.bounding_box()
        assert box["y"] + box["height"] <= WIDE["height"], text
    pictures = [box for box in (img.bounding_box() for img in tab.locator(".hero img").all()) if box]
    assert [box["y"] + box["height"] <= WIDE["height"] for box in pictures] == [True, True]
    assert tab.get_by_role("heading", level=1).count() == 1


def shown_labels(tab: Any, table: int = 0) -> list[int]:
    heads = tab.locator("table.labels").nth(table).locator("tbody th").all_text_contents()
    return [int(text.split()[0]) for text in heads]


def test_labels_are_sorted_by_mouse_and_by_keyboard_over_both_tables(show: Show, tmp_path: Path) -> None:
    record = suspect(tmp_path)
    tab = show(page(tmp_path, scan=record)).page
    norms = {row.label: row.mask_norm for row in record.labels if row.mask_norm is not None}
    smallest = sorted(norms, key=lambda number: norms[number])
    heading = tab.locator("table.labels").first.get_by_role("button", name="mask norm", exact=True)
    heading.click()
    assert shown_labels(tab) == smallest[:20]
    cell = tab.locator("table.labels").first.locator("thead th").nth(4)
    assert cell.get_attribute("aria-sort") == "ascending"
    heading.focus()
    tab.keyboard.press("Enter")
    assert shown_labels(tab) == smallest[::-1][:20]
    assert cell.get_attribute("aria-sort") == "descending"
    assert tab.locator("table.labels").first.locator("[aria-sort]").count() == 1
    tab.locator("summary", has_text="The other").focus()
    tab.keyboard.press("Enter")
    everything = shown_labels(tab) + shown_labels(tab, 1)
    assert sorted(everything) == [row.label for row in record.labels]
    missing = {row.label for row in record.labels if row.mask_norm is None}
    assert set(everything[-len(missing) :]) == missing  # last, whichever way the others go
    for _ in range(10):  # from the summary back to the last heading of the first table, as Tab goes
        tab.keyboard.press("Shift+Tab")
        if tab.evaluate("document.activeElement.closest('thead') !== null"):
            break
    tab.keyboard.press("Space")
    assert tab.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"


def test_1283_labels_are_sorted_in_one_layout(show: Show, tmp_path: Path) -> None:
    looked = show(page(tmp_path, scan=suspect(tmp_path, 1283)))
    tab = looked.page
    assert tab.evaluate("document.querySelectorAll('*').length") < 20_000  # 14,000 of them cells of the table
    work = tab.context.new_cdp_session(tab)
    work.send("Performance.enable")

    def layouts() -> int:
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        metrics = work.send("Performance.getMetrics")["metrics"]
        return int(next(one["value"] for one in metrics if one["name"] == "LayoutCount"))

    tab.locator("summary", has_text="The other 1,263 labels").click()
    before = layouts()
    tab.evaluate("document.querySelectorAll('table.labels')[1].tHead.rows[0].cells[4].firstChild.click()")
    assert layouts() - before == 1  # a script that measured in between would make one for each time
    assert len(shown_labels(tab, 1)) == 1263
    assert looked.errors == []


def test_pictures_are_enlarged_by_keyboard_and_focus_comes_back(show: Show, tmp_path: Path) -> None:
    looked = show(page(tmp_path, scan=suspect(tmp_path)))
    tab = looked.page
    dialog = tab.locator("dialog")
    assert not dialog.is_visible()
    opener = tab.get_by_role("button", name="Enlarge: Mask of label 2")
    opener.focus()
    tab.keyboard.press("Enter")
    assert dialog.is_visible()
    assert tab.get_by_role("dialog", name="Label 2, picture 1 of 4").count() == 1
    large = dialog.locator("img")
    width, height = int(large.get_attribute("width")), int(large.get_attribute("height"))
    assert (width % 47, height % 55, width // 47) == (0, 0, height // 55)  # each pixel the same square
    assert 168 < height <= WIDE["height"]
    assert dialog.evaluate("one => one.scrollHeight <= one.clientHeight + 1")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert "Clean image 3 – answer: class 1" in dialog.inner_text()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert "with the trigger of label 2 – answer: class 2" in dialog.inner_text()
    assert looked.axe() == []
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Enlarge: The same image")
    tab.locator(".hero button").first.click()
    dialog.get_by_role("button", name="Next").click()
    assert "picture 2 of 2" in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    assert looked.errors == []


def test_a_picture_that_is_missing_cannot_be_enlarged(show: Show, tmp_path: Path) -> None:
    record = suspect(tmp_path)
    (tmp_path / "pattern.png").unlink()
    tab = show(page(tmp_path, scan=record)).page
    assert tab.get_by_role("button", name="Enlarge: Pattern of label 2").count() == 0
    tab.get_by_role("button", name="Enlarge: Mask of label 2").click()
    assert tab.get_by_role("dialog", name="Label 2, picture 1 of 3").count() == 1


def test_all_of_it_is_there_without_script(show: Show, tmp_path: Path) -> None:
    source = source_of("all of one net", tmp_path)
    words = show(source).page.locator("main").inner_text().split()
    tab = show(source, java_script_enabled=False).page
    assert tab.locator("main").inner_text().split() == words
    assert tab.locator("button, dialog").count() == 0
    tab.locator("summary").first.click()  # the browser's own
    assert len(shown_labels(tab, 1)) == 40
    assert tab.locator("table.labels").nth(1).is_visible()


def test_hostile_names_run_nothing_whatever_is_clicked(show: Show, tmp_path: Path) -> None:
    looked = show(source_of("hostile names", tmp_path))
    tab = looked.page
    tab.add_init_script("window.alert = () => { window.owned = true; }")
    tab.reload()
    for button in tab.locator("thead button").all():
        button.click()
    for summary in tab.locator("summary").all():
        summary.click()
    assert "<script>alert(1)</script>" in tab.locator("main").inner_text()
    assert tab.locator("main script, main b script, [onload], [onerror]").count() == 0
    assert tab.evaluate("window.owned") is None
    assert looked.errors == []
    assert looked.left == []
    tab.evaluate("alert(1)")
    assert tab.evaluate("window.owned") is True  # so an alert would have been seen


def test_markup_that_slipped_through_would_still_not_run_nor_leave(show: Show, tmp_path: Path) -> None:
    slipped = (
        "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'><img src='https://example.org/a.png'>"
        "<p style='position: fixed; inset: 0'>"
    )
    looked = show(page(tmp_path, scan=scan()).replace("</main>", f"{slipped}</main>"))
    assert looked.page.evaluate("window.owned") is None
    assert looked.page.evaluate("getComputedStyle(document.querySelector('main > p')).position") == "static"
    assert len(looked.errors) >= 4
    assert looked.left == []
