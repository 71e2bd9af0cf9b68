"""The report's views of a record: labels against the null, other false-alarm rates, how images were answered."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goodnet import measure
from goodnet import record as rec
from goodnet.data.images import Images
from goodnet.report import figures, words
from goodnet.report.answers import KINDS, Answers, answered
from goodnet.report.compare import evaluate_nets, repair_nets
from goodnet.report.null_plot import null_plot
from goodnet.report.plot import LEFT, RIGHT, WIDTH, Axis
from goodnet.report.rates import MAX_STEPS, Rates, rates
from goodnet.verdicts import chances, decided_at
from report_records import SHARE, Reader, backdoor, evaluation, label, many_labels, measured, model, page, repair, scan


def drawn(found: Rates | str) -> Rates:
    assert isinstance(found, Rates)
    return found


def graded(*p_values: float, **decision: Any) -> rec.ScanRecord:
    """Labels with these p-values times labels, all with a mask small enough to be flagged."""
    rows = tuple(label(n, p_value=p / len(p_values), norm_ratio=0.3, mask_share=0.1) for n, p in enumerate(p_values))
    made = scan(labels=rows)
    limits = {"false_alarm_rate": 0.01, "further_rate": 0.0, **decision}
    made = dataclasses.replace(
        made,
        decision=dataclasses.replace(made.decision, **limits),
        model=dataclasses.replace(made.model, classes=len(rows)),
    )
    now = decided_at(made, limits["false_alarm_rate"])
    return dataclasses.replace(made, verdict=now.verdict, flagged_labels=now.flagged)


def test_other_rates_are_a_table_with_the_rate_in_use_marked(tmp_path: Path) -> None:
    record = graded(4e-5, 2e-3, 0.3, 9.0, 9.0)
    found = drawn(rates(record))
    assert [(step.span, step.verdict, step.flagged, step.used) for step in found.steps] == [
        ("lower than 1 in 25,000", "inconclusive", "none", False),
        ("1 in 25,000 up to 1 in 500", "suspect", "0", False),
        ("1 in 500 up to 1 in 3.3", "suspect", "0 and 1", True),
        ("1 in 3.3 and higher", "suspect", "0, 1 and 2", False),
    ]
    assert found.steady == "The verdict is suspect from 1 in 25,000 up to 1 in 2, the highest shown."
    text = Reader(page(tmp_path, scan=record)).text
    for step in found.steps:
        assert step.span in text
    assert "1 in 500 up to 1 in 3.3 in use" in text
    assert text.count("in use") == 1


def test_each_label_is_a_bar_from_its_rate_on_and_the_verdict_a_band() -> None:
    record = graded(4e-5, 2e-3, 0.3, 9.0, 9.0)
    plot = str(drawn(rates(record)).plot)
    x = Axis(low=1e-6, high=0.5, start=LEFT + 40, end=WIDTH - RIGHT + 40, log=True)
    bars = re.findall(r'class="lane" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', plot)
    assert [float(start) for start, _ in bars] == [x(4e-5), x(2e-3), x(0.3)]
    assert all(float(start) + float(width) == pytest.approx(x.end, abs=0.2) for start, width in bars)
    bands = re.findall(r'data-tone="(\w+)"><rect class="band" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', plot)
    assert [(tone, float(start)) for tone, start, _ in bands] == [("inconclusive", x(1e-6)), ("suspect", x(4e-5))]
    assert sum(float(width) for *_, width in bands) == pytest.approx(x.end - x.start, abs=0.3)
    assert f'class="line used" d="M{x(0.01)} ' in plot


def test_rates_without_any_turn_are_one_row() -> None:
    found = drawn(rates(graded(9.0, 9.0, 9.0, 9.0)))
    assert [(step.span, step.verdict, step.used) for step in found.steps] == [("every rate", "clean", True)]
    assert found.steady == "The verdict is clean at every rate shown."


def test_other_rates_are_not_shown_where_they_would_not_be_the_truth(tmp_path: Path) -> None:
    edited = dataclasses.replace(graded(4e-5, 9.0, 9.0, 9.0), verdict="clean", flagged_labels=())
    assert "does not give its verdict again" in str(rates(edited))
    assert "does not give its verdict again" in Reader(page(tmp_path, scan=edited)).text
    many = graded(*np.linspace(0.02, 0.4, MAX_STEPS + 1), *[9.0] * MAX_STEPS)
    assert "too many to show" in str(rates(many))
    assert len(drawn(rates(graded(*np.linspace(0.02, 0.4, MAX_STEPS), *[9.0] * MAX_STEPS))).steps) == MAX_STEPS + 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, 0.0, -1.0, 7.0])
def test_rates_of_a_record_with_an_odd_rate_do_not_fail(odd: float) -> None:
    record = scan()
    assert isinstance(
        rates(dataclasses.replace(record, decision=dataclasses.replace(record.decision, false_alarm_rate=odd))), str
    )


def test_null_plot_ranks_labels_and_names_the_flagged() -> None:
    record = scan(labels=(label(0, p_value=0.4), label(1, p_value=0.9), backdoor(2), label(3, p_value=None)))
    assert [(row.label, chance) for row, chance in chances(record)] == [
        (2, pytest.approx(8.4e-9)), (0, pytest.approx(1.6)), (1, pytest.approx(3.6)),
    ]  # fmt: skip
    plot = str(null_plot(record))
    x = Axis(low=0.8, high=3 * 1.05, start=LEFT, end=WIDTH - RIGHT, log=True)
    found = re.search(r'<g class="searched"><path d="(.*?)"', plot)
    assert found is not None
    points = [(float(a), float(b)) for a, b in re.findall(r"M([\d.]+) ([\d.]+)", found[1])]
    assert [point[0] for point in points] == [x(2), x(3)]
    assert points[0][1] < points[1][1]  # the more unlikely, the higher
    assert ">label 2: 8.4 × 10⁻⁹</text>" in plot
    assert "flag: 5 %" in plot
    assert null_plot(scan(labels=(label(0, p_value=None),), flagged_labels=())) is None


@pytest.mark.parametrize("p_value", [0.0, 1e-320, 1e-30, math.nan, math.inf, -1.0, 1.0])
def test_null_plot_of_odd_p_values_stays_inside_its_frame(p_value: float) -> None:
    record = scan(labels=(label(0), label(1), label(2, p_value=p_value, flagged=True), label(3, p_value=1.0)))
    plot = str(null_plot(record))
    heights = [float(height) for height in re.findall(r"M[\d.]+ (-?[\d.]+)", plot)]
    assert heights
    assert all(0 <= height <= 350 for height in heights)
    assert "nan" not in plot


def test_1283_labels_add_little_to_the_page() -> None:
    plot = str(null_plot(scan(labels=many_labels())))
    assert plot.count("<path") < 40
    assert plot.count(figures.DASH) == 0


class Fixed:
    """A net whose answers are given; with class N (4) or without."""

    def __init__(self, answers: list[int], refuses: bool):
        self.answers, self.refuses, self.classes = np.array(answers), refuses, 4


def sets_of(monkeypatch: pytest.MonkeyPatch, answers: list[int], true: list[int] | None, **net: bool) -> rec.Poisoned:
    """What `measure` says of a net that gives these answers to images of these classes, target 0."""
    monkeypatch.setattr(measure, "answer", lambda classifier, images: classifier.answers)
    pixels = np.zeros((len(answers), 1, 1, 1), np.uint8)
    images = Images(
        pixels=pixels,
        labels=np.zeros(len(answers), np.int64),
        true_labels=None if true is None else np.array(true),
        name="set",
    )
    given: Any = Fixed(answers, net["refuses"])
    return measure.measure(given, None, [images]).poisoned[0]


def counted(poisoned: rec.Poisoned) -> Answers:
    net = rec.Measured(acc=None, fpr=None, poisoned=(poisoned,))
    return answered(evaluate_nets(evaluation(acc=None, fpr=None, poisoned=net.poisoned, before=None)))[0].nets[0]


def test_answers_are_counted_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    true = [1, 1, 2, 3, 0, 0, 2, 3]
    answers = [0, 1, 4, 2, 0, 4, 0, 0]  # of class 0, one is answered rightly and one is refused
    found = counted(sets_of(monkeypatch, answers, true, refuses=True))
    assert (found.right, found.target, found.other, found.refused, found.n) == (2, 3, 1, 2, 8)
    plain = counted(sets_of(monkeypatch, [0, 1, 3, 2, 0, 0, 0, 0], true, refuses=False))
    assert (plain.right, plain.target, plain.other, plain.refused, plain.n) == (3, 3, 2, None, 8)
    unknown = counted(sets_of(monkeypatch, answers, None, refuses=True))
    assert (unknown.right, unknown.target, unknown.other, unknown.refused, unknown.n) == (None, 4, 2, 2, 8)
    own = counted(sets_of(monkeypatch, [0, 4], [0, 0], refuses=True))
    assert (own.right, own.target, own.other, own.refused) == (1, 0, 0, 1)


def test_a_bar_is_as_long_as_its_counts() -> None:
    bar = str(Answers(net="after", n=200, right=20, target=0, other=80, refused=100).bar)
    found = re.findall(r'class="(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', bar)
    assert [(kind, float(x)) for kind, x, _ in found] == [("right", 0.0), ("other", 40.0), ("refused", 200.0)]
    assert [float(width) for *_, width in found] == [38.0, 158.0, 198.0]


def test_answers_stand_beside_each_other_before_and_after(tmp_path: Path) -> None:
    sets = answered(repair_nets(repair()))
    assert [one.title for one in sets] == ["Clean images", "glasses.h5 → class 0"]
    assert [net.net for net in sets[0].nets] == ["before", "after"]
    assert [(net.right, net.target, net.other, net.refused) for net in sets[0].nets] == [
        (95, None, 5, None), (93, None, 5, 2),
    ]  # fmt: skip
    assert [(net.right, net.target, net.other, net.refused) for net in sets[1].nets] == [
        (None, 95, 5, None), (None, 3, 35, 62),
    ]  # fmt: skip
    for part in ({"repair": repair()}, {"evaluate": evaluation()}):
        source = page(tmp_path, **part)
        table = source[source.index('<table class="answered">') :]
        cells = re.sub(r"<.*?>", " ", table[: table.index("</table>")]).split()
        assert " ".join(cells).endswith("100 images before – 95 5 – after – 3 35 62")
        assert all(words.ANSWERS[kind] in " ".join(cells) for kind in KINDS)


@pytest.mark.parametrize(
    "odd",
    [
        {"asr": dataclasses.replace(SHARE, value=math.nan)},
        {"asr": dataclasses.replace(SHARE, value=7.0)},
        {"ra": dataclasses.replace(SHARE, value=0.9)},  # with ASR 95 %, more than there are
        {"detection": dataclasses.replace(SHARE, n=3)},
        {"ra": dataclasses.replace(SHARE, value=0.0), "detection": dataclasses.replace(SHARE, value=0.0, n=50)},
        {"asr": dataclasses.replace(SHARE, n=0)},
        {"asr": dataclasses.replace(SHARE, n=-5)},
    ],
)
def test_shares_that_cannot_be_counts_are_not_drawn(tmp_path: Path, odd: dict[str, Any]) -> None:
    net = measured(None, None, **odd)
    record = evaluation(acc=None, fpr=None, poisoned=net.poisoned, before=None, model=model())
    assert answered(evaluate_nets(record)) == ()
    assert "How the images were answered" not in Reader(page(tmp_path, evaluate=record)).text


@pytest.mark.parametrize(
    ("p_values", "said"),
    [
        ((1e-9, 9.0), "By chance alone, fewer than 1 in 1,000,000 clean nets show a label like 0."),
        (
            (2e-3, 9e-3),
            "By chance alone, about 1 in 500 clean nets show a label like 0 and about 1 in 110 a label like 1.",
        ),
        ((0.8, 1.9), "No label stands out more than chance gives; label 0 comes nearest."),
        ((1.9, 0.2), "Label 1 stands out most. By chance alone, about 1 in 5 clean nets show a label like it."),
    ],
)
def test_how_sure_is_one_sentence(p_values: tuple[float, ...], said: str) -> None:
    assert words.certainty(graded(*p_values)) == said


def test_how_sure_says_nothing_where_nothing_is_known() -> None:
    assert words.certainty(scan(labels=(label(0, p_value=None),), flagged_labels=(), verdict="inconclusive")) == ""


@pytest.mark.parametrize(
    ("accepted", "said"),
    [(True, "the repaired one was accepted"), (False, "Use neither"), (None, "could not be judged")],
)
def test_what_to_do_is_one_sentence(tmp_path: Path, accepted: bool | None, said: str) -> None:
    text = Reader(page(tmp_path, scan=scan(), repair=repair(accepted=accepted))).text
    assert said in text
    assert "repair it" not in text


def test_figures_in_short() -> None:
    assert words.in_short(repair().before, repair().after) == (
        "ACC 95.0 % → 93.0 %, worst ASR 95.0 % → 3.0 %, least detection 62.0 %, FPR 2.0 %"
    )
    assert words.in_short(None, rec.Measured(acc=None, fpr=None)) == ""


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.01, "1 in 100"), (4.76e-6, "1 in 210,000"), (0.4, "1 in 2.5"), (0.5, "1 in 2"), (1e-6, "1 in 1,000,000"),
     (1.0, "1 in 1"), (3e-12, "1 in 3 × 10¹¹"), (0.0, "–"), (math.nan, "–")],
)  # fmt: skip
def test_rates_are_written_as_one_in_so_many(rate: float, text: str) -> None:
    assert figures.one_in(rate) == text
