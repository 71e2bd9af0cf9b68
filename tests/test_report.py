"""The report page and the terminal: what they say of a record."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from goodnet import record as rec
from goodnet import strict_json
from goodnet.errors import DataError
from goodnet.report import Part, figures, plot, render_report, terminal, words, write_report
from goodnet.report.compare import compare_evaluate, compare_repair
from goodnet.stamps import PlainStamp
from report_records import (
    AFTER,
    SHA,
    SHARE,
    Reader,
    backdoor,
    evaluation,
    examples,
    label,
    many_labels,
    measured,
    model,
    page,
    repair,
    save_png,
    scan,
)


def test_first_screen_says_verdict_evidence_consequence_and_next_step(tmp_path: Path) -> None:
    text = Reader(page(tmp_path, scan=scan())).text
    assert "Suspect" in text
    assert "Label 2 behaves like the target of a backdoor." in text
    assert "answered as class 2, whatever it shows" in text
    for figure in ("1.1 × 10⁻⁸", "fewer than 1 in 1,000,000", "41.3 px", "0.125", "98.3 %", "label 2 stands out"):
        assert figure in text
    assert "--clean 'my data/clean.h5'" in text
    assert "Do not use this net as it is: repair it." in text
    assert text.index("What to do next") < text.index("Every label against")


@pytest.mark.parametrize(
    ("changes", "word", "sentence"),
    [
        ({"verdict": "clean", "flagged_labels": (), "labels": (label(0), label(1))}, "Clean", "None of the 2 labels"),
        ({"verdict": "inconclusive", "flagged_labels": ()}, "Inconclusive", "cannot tell"),
        ({"flagged_labels": (1, 5, 8)}, "Suspect", "Labels 1, 5 and 8 behave like targets"),
    ],
)
def test_every_verdict_has_its_words(tmp_path: Path, changes: dict[str, Any], word: str, sentence: str) -> None:
    source = page(tmp_path, scan=scan(**changes))
    assert f'data-tone="{word.lower()}"' in source
    assert word in Reader(source).text
    assert sentence in Reader(source).text


def test_record_that_contradicts_itself_is_called_out(tmp_path: Path) -> None:
    skipped = (label(0), label(1, status="skipped", mask_norm=None))
    lying = scan(verdict="clean", flagged_labels=(), labels=skipped)
    assert (
        "Do not rely on this record: the verdict is clean, yet not every label was searched (1 skipped"
        in Reader(page(tmp_path, scan=lying)).text
    )
    assert "Do not rely" in terminal.scan_summary(lying)
    assert "Do not rely" not in Reader(page(tmp_path, scan=scan())).text


def test_links_inside_the_page_lead_somewhere_and_ids_are_unique(tmp_path: Path) -> None:
    part = Part(title="a", folder=tmp_path, scan=scan(), repair=repair(), evaluate=evaluation())
    tags = Reader(render_report([part, part])).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = " ".join(a[key] or "" for _, a in tags for key in ("href", "aria-labelledby") if key in a).split()
    assert wanted
    assert {name.removeprefix("#") for name in wanted} <= set(ids)


def test_pictures_are_embedded_with_answers_and_alternative_text(tmp_path: Path) -> None:
    reader = Reader(page(tmp_path, scan=scan(examples=examples(tmp_path))))
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 6  # two on the first screen, four among the triggers
    assert all(image["alt"] and image["width"] == "141" and image["height"] == "165" for image in images)
    assert "answer: class 1" in reader.text
    assert "answer: class 2" in reader.text
    raw = base64.b64decode(str(images[0]["src"]).split(",")[1])
    with Image.open(io.BytesIO(raw)) as image:
        assert image.size == (47, 55)
        assert image.getpixel((0, 0)) == (128, 0, 128)


def test_a_plain_rectangle_is_shown_with_what_it_does(tmp_path: Path) -> None:
    stamp = PlainStamp(
        label=2, top=20, left=12, bottom=32, right=40, colour=(1.0, 0.0, 0.5), lead=1.5, asr=1, share=0.13
    )
    save_png(tmp_path / "stamped.png")
    shown = (*examples(tmp_path), rec.Example(label=2, kind="stamped", file="stamped.png", index=0, answer=2))
    row = dataclasses.replace(backdoor(2), stamp=stamp)
    reader = Reader(page(tmp_path, scan=scan(labels=(row, label(1)), examples=shown)))
    assert "one colour, #ff0080, over rows 20 to 31 and columns 12 to 39 (13.0 % of the image)" in reader.text
    assert "leads 100.0 % of the held-out images there" in reader.text
    alts = [values.get("alt") for tag, values in reader.tags if tag == "img"]
    assert "An image with the plain rectangle of label 2" in alts
    without = Reader(page(tmp_path, scan=scan(labels=(row, label(1)), examples=shown[:-1])))
    assert "plain rectangle does it" not in without.text


@pytest.mark.parametrize("colour", [(), (float("inf"), -3.0, 0.5), (0.2,), (0.1,) * 5])
def test_odd_colours_of_a_stranger_s_stamp_do_not_fail(colour: tuple[float, ...]) -> None:
    stamp = PlainStamp(label=2, top=-9, left=0, bottom=10**30, right=1, colour=colour, lead=1, asr=9.0, share=-1.0)
    assert "plain rectangle" in words.stamp(stamp)


def test_before_and_after_stand_side_by_side_with_intervals(tmp_path: Path) -> None:
    for part in ({"repair": repair()}, {"evaluate": evaluation()}):
        text = Reader(page(tmp_path, **part)).text
        for figure in (
            "95.0 % (88.8–97.8, n=100)", "93.0 % (86.3–96.6, n=100)", "3.0 % (1.0–8.5, n=100)",
            "62.0 % (52.2–70.9, n=100)", "glasses.h5 → class 0",
        ):  # fmt: skip
            assert figure in text
    assert "The repair was accepted." in Reader(page(tmp_path, repair=repair())).text


def test_null_is_a_dash_with_a_reason_and_never_zero(tmp_path: Path) -> None:
    nothing = measured(None, None, asr=None)
    table = compare_evaluate(
        evaluation(acc=None, fpr=None, poisoned=nothing.poisoned, before=None, before_model=None, model=model())
    )
    cells = [cell for group in table.groups for row in group.rows for cell in row.cells]
    assert [cell.text for cell in cells] == ["–"] * 6
    assert all(cell.note is not None and table.notes[cell.note - 1] for cell in cells)
    assert any("no class N" in note for note in table.notes)
    source = page(tmp_path, evaluate=evaluation(acc=None, fpr=None, poisoned=nothing.poisoned, before=nothing))
    body = source[source.index('<table class="compare"') : source.index("</table>")]
    assert "0.0 %" not in body
    assert body.count("–<sup>") == 12


def test_zero_is_zero_and_not_a_dash() -> None:
    zero = rec.Share(value=0.0, low=0.0, high=0.037, n=100)
    table = compare_evaluate(evaluation(fpr=zero))
    assert table.groups[0].rows[1].cells[-1].text == "0.0 % (0.0–3.7, n=100)"


def test_sets_of_one_name_and_sets_of_one_net_alone_are_kept_apart() -> None:
    first, second = measured(SHARE, None).poisoned[0], AFTER.poisoned[0]
    alone = dataclasses.replace(first, name="only before")
    record = repair(
        before=rec.Measured(acc=SHARE, fpr=None, poisoned=(first, second, alone)),
        after=rec.Measured(acc=SHARE, fpr=None, poisoned=(second, first)),
    )
    groups = compare_repair(record).groups
    asr = [[cell.text[:4] for cell in group.rows[0].cells] for group in groups[1:]]
    assert asr == [["95.0", "3.0 "], ["3.0 ", "95.0"], ["95.0", "–"]]


def test_not_a_number_in_a_record_is_shown_as_missing(tmp_path: Path) -> None:
    broken = label(0, score=math.nan, p_value=math.inf, mask_norm=math.nan, held_out_asr=-math.inf)
    source = page(tmp_path, scan=scan(labels=(broken, backdoor(2), label(1))))
    assert not re.search(r">\s*-?(nan|inf)", source)
    assert not re.search(r'[ "][Mm]?-?(nan|inf)', source[source.index('<svg class="plot"') :])


def test_1283_labels_are_all_drawn_and_tabled_best_first(tmp_path: Path) -> None:
    record = scan(labels=many_labels())
    source = page(tmp_path, scan=record)
    drawings = re.findall(r'<svg class="plot" .*?</svg>', source)
    assert [drawing.count("<title>") for drawing in drawings[:2]] == [1, 1283]  # of the first, flagged labels alone
    top, rest = re.findall(r'<table class="labels".*?</table>', source, re.DOTALL)
    assert top.count("<tr") == 1 + 20
    assert rest.count("<tr") == 1 + 1263
    assert source.index("<details>") < source.index(rest) < source.index("</details>")
    shown = [int(number) for number in re.findall(r'<th scope="row">(\d+)', top)]
    scores = {result.label: result.score for result in record.labels if result.score is not None}
    assert shown == sorted(scores, key=lambda number: -scores[number])[:20]


def test_norm_plot_puts_points_where_their_norms_are_and_tells_kinds_apart_by_shape() -> None:
    record = scan(labels=many_labels(60))
    drawing = str(plot.norm_plot(record))
    kinds = {}
    for kind in ("flagged", "searched", "screened", "failed"):
        group = re.search(f'<g class="{kind}">(.*?)</g>', drawing)
        assert group is not None
        kinds[kind] = {re.sub(r"^M[\d.]+ [\d.]+", "", path) for path in re.findall(r'd="(.*?)"', group[1])}
    assert all(len(shapes) == 1 for shapes in kinds.values())
    assert len({shape for shapes in kinds.values() for shape in shapes}) == 4
    points = re.findall(r"M([\d.]+) ([\d.]+)\S*?\"><title>label (\d+), searched: norm ([\d.]+)", drawing)
    by_label = sorted(points, key=lambda point: int(point[2]))
    assert [float(point[0]) for point in by_label] == sorted(float(point[0]) for point in points)
    by_norm = sorted(points, key=lambda point: -float(point[3]))
    assert [float(point[1]) for point in by_norm] == sorted(float(point[1]) for point in points)
    assert ">median</text>" in drawing
    assert ">threshold</text>" in drawing
    assert ">label 2</text>" in drawing


def test_axis_maps_its_ends_and_its_ticks_are_round_and_inside() -> None:
    log = plot.Axis(low=10, high=1000, start=300, end=0, log=True)
    assert [log(10), log(100), log(1000), log(5), log(5000)] == [300, 150, 0, 300, 0]
    assert log.ticks() == [10, 20, 50, 100, 200, 500, 1000]
    flat = plot.Axis(low=0, high=47, start=0, end=100)
    assert flat.ticks(5) == [0, 10, 20, 30, 40]
    assert plot.Axis(low=0.0, high=1.0, start=0, end=1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("norms", [[], [0.0], [5.0], [0.0, 1e-9], [1e12, 1.0], [7.0, 7.0, 7.0]])
def test_plots_of_odd_norms_do_not_fail(norms: list[float]) -> None:
    labels = tuple(label(number, mask_norm=norm) for number, norm in enumerate(norms))
    drawn = plot.norm_plot(scan(labels=labels, flagged_labels=()))
    assert (drawn is None) == (not norms)
    assert drawn is None or drawn.count("<title>") == len(norms)


def test_page_holds_what_is_needed_to_run_it_again(tmp_path: Path) -> None:
    text = Reader(page(tmp_path, scan=scan())).text
    for needed in (
        "goodnet scan nets/net.h5",
        SHA,
        "a1" * 32,
        "2.2.0",
        "3.11.7",
        "nc",
        "steps",
        "default",
        "lr",
    ):
        assert needed in text
    assert "triggers that warp the image" in text
    assert re.search(r"seed\s*7", text)


def test_write_report_reads_the_folder_and_one_level_below(tmp_path: Path) -> None:
    for name, record in {
        "a-clean": scan(verdict="clean", flagged_labels=(), labels=(label(0),)),
        "b-bad": scan(),
    }.items():
        (tmp_path / name / "deeper").mkdir(parents=True)
        strict_json.write_record(record, tmp_path / name / "scan.json")
        strict_json.write_record(record, tmp_path / name / "deeper" / "scan.json")
    strict_json.write_record(evaluation(), tmp_path / "b-bad" / "evaluate.json")
    strict_json.write_record(repair(), tmp_path / "repair.json")
    out = write_report(tmp_path)
    assert out == tmp_path / "report.html"
    titles = re.findall(r'<p class="eyebrow" id=".*?"><b>(.*?)</b>', out.read_text(encoding="utf-8"))
    assert titles == [tmp_path.name, "b-bad", "a-clean"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-clean", "b-bad", "repair.json", "report.html"]
    assert write_report(tmp_path, tmp_path / "other.html").read_text() == out.read_text()


def test_what_cannot_be_reported_is_one_line_of_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run a scan first"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        write_report(tmp_path / "none")
    strict_json.write_record(repair(), tmp_path / "scan.json")
    with pytest.raises(DataError, match=r"expected a goodnet.scan/1 record, got goodnet.repair/1"):
        write_report(tmp_path)
    strict_json.write_record(scan(verdict="fine"), tmp_path / "scan.json")
    with pytest.raises(DataError, match="expected verdict clean, suspect, inconclusive"):
        write_report(tmp_path)
    strict_json.write_record(scan(), tmp_path / "scan.json")
    with pytest.raises(DataError, match="place to write"):
        write_report(tmp_path, tmp_path / "none" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.json"]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2 (from sRGB hex)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_of_light_dark_and_print_reach_wcag_aa() -> None:
    style = Path(plot.__file__).with_name("report.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        for ink, ground in itertools.product(
            ("ink", "soft", "suspect", "clean", "inconclusive", "link"), ("paper", "field")
        ):
            bright, dark = sorted((luminance(scheme[ink]), luminance(scheme[ground])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, scheme[ink])


def test_figures_are_written_the_way_a_reader_expects() -> None:
    assert [figures.number(v) for v in (0.0612, 6.123, 61.23, 6120.4, 0, None)] == [
        "0.0612",
        "6.12",
        "61.2",
        "6,120",
        "0",
        "–",
    ]
    assert [figures.p_value(v) for v in (0.314, 0.0123, 2.1e-9, 0.0, None)] == [
        "0.31",
        "0.012",
        "2.1e-09",
        "< 1e-300",
        "–",
    ]
    assert [figures.typeset(t) for t in ("2.1e-09", "< 1e-300", "0.31", "–")] == ["2.1 × 10⁻⁹", "< 10⁻³⁰⁰", "0.31", "–"]
    assert [figures.duration(s) for s in (4.21, 200, 10200, math.nan)] == ["4.2 s", "3 min 20 s", "2 h 50 min", "–"]
    assert figures.enumeration([str(n) for n in range(20)]) == "0, 1, 2, 3, 4, 5, 6 and 13 more"


def printed(what: Table) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def test_terminal_fits_80_columns_and_says_the_same() -> None:
    long = rec.Share(value=1.0, low=1.0, high=1.0, n=11547)
    record = evaluation(acc=long, before=measured(long, long, name="a_rather_long_name_of_a_poisoned_set.h5"))
    texts = [
        terminal.scan_summary(scan()),
        printed(terminal.evaluate_table(record)),
        printed(terminal.repair_table(repair())),
    ]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    assert "SUSPECT" in texts[0]
    assert "p = 2.1e-09, held-out ASR 98.3 %" in texts[0]
    assert texts[1].count("100.0 % (100.0–100.0, n=11,547)") == 3
    assert "95.0 % (88.8–97.8, n=100)" in texts[2]
    assert "The repair was accepted." in texts[2]
    assert "– [1]" in texts[2]
    assert "[1] This net has no class N" in texts[2]


def test_what_auto_tried_and_whom_the_goodnet_refuses_are_on_the_page(tmp_path: Path) -> None:
    tried = (
        rec.Tried(name="unlearn, watch", accepted=False, reasons=("ACC falls",), acc=SHARE, asr=SHARE, seconds=9.4),
        rec.Tried(name="watch", accepted=None, reasons=("not tried: no time was left",)),
    )
    guard = rec.MethodInfo(name="watch", passed={}, resolved={}, seed=0)
    layers = [
        rec.ChangedLayer(layer=name, channels=3, of_channels=60, weights=weights, of_weights=10_000)
        for name, weights in (("conv_1", 900), ("conv_2", 1100))
    ]
    done = repair(tried=tried, guard=guard, fpr_target=SHARE, changed=tuple(layers))
    text = Reader(page(tmp_path, repair=done)).text
    assert "fine_pruning, guard watch; judged on" in text
    assert f"unlearn, watch: not accepted; ACC {SHARE.value:.1%}, worst ASR {SHARE.value:.1%}, 9 s ACC falls" in text
    assert "watch: not tried: no time was left" in text
    assert f"the hardest to tell from triggered ones, {SHARE.value:.1%} are refused." in text
    assert "Changed in the repaired net: 6 of 120 channels, 10.0 % of the weights." in text
    plain = Reader(page(tmp_path, repair=repair())).text
    assert "Changed in" not in plain
    assert "What was tried" not in plain
    assert "are refused" not in plain
