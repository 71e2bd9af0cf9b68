"""A verdict made again from a scan's record, at other false-alarm rates."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goodnet import strict_json
from goodnet.detect.all_to_all import Away
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.record import LabelResult, ScanRecord, read_record
from goodnet.scan import scan
from goodnet.staged import Staged
from goodnet.triggers.generator import GeneratorSchedule
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.margin import MarginSchedule
from goodnet.verdicts import Decided, decided_at, decided_over, is_repeatable
from nets import clean_images, net_with
from report_records import label as row_of
from report_records import scan as record_of

LOW, HIGH = 1e-6, 0.5


def staged(rate: float) -> Staged:
    masks = NeuralCleanse(search=Schedule(steps=120, batch=16), false_alarm_rate=rate)
    margins, away = MaxMargin(climb=MarginSchedule(steps=10)), Away(search=Schedule(steps=10))
    return Staged(margins=margins, masks=masks, away=away, restarts=1)


def gangsweep(rate: float) -> GangSweep:
    return GangSweep(search=GeneratorSchedule(turns=48), false_alarm_rate=rate)


@pytest.mark.parametrize(
    ("method", "targets"),
    [(staged, {2: (1, 6), 9: (5, 0)}), pytest.param(gangsweep, {2: (1, 6)}, marks=pytest.mark.slow)],
)
def test_a_scan_at_another_rate_decides_what_the_record_of_the_first_says(method: Any, targets: Any) -> None:
    net = net_with(16, targets)
    first = scan(net, clean_images(net), method=method(0.01))
    assert first.flagged_labels == tuple(targets)
    assert is_repeatable(first)
    turn = decided_over(first, 1e-12, HIGH, most=50)[1].rate
    for rate, verdict in ((0.9 * turn, "inconclusive"), (1.1 * turn, "suspect"), (0.4, "suspect")):
        other = scan(net, clean_images(net), method=method(rate))
        assert other.verdict == verdict
        assert decided_at(first, rate) == Decided(rate=rate, verdict=other.verdict, flagged=other.flagged_labels)
        assert is_repeatable(other)


def evidence(number: int, p_value: float | None, **changes: Any) -> LabelResult:
    return row_of(
        number, **{"p_value": p_value, "norm_ratio": 0.3, "held_out_asr": 0.9, "margin_ratio": 1.0, **changes}
    )


# p-value times ten labels: 1e-4 (label 3), 0.02 (1), 0.08 (0, which works too seldom), 0.3 (2, no effect), 0.4 (4)
ROWS = (
    evidence(0, 0.008, held_out_asr=0.1), evidence(1, 0.002), evidence(2, 0.03, norm_ratio=0.9), evidence(3, 1e-5),
    evidence(4, 0.04), evidence(5, None), *(evidence(n, 0.9, norm_ratio=1.0) for n in range(6, 10)),
)  # fmt: skip


def of(rows: tuple[LabelResult, ...] = ROWS, **decision: Any) -> ScanRecord:
    made = record_of()
    limits = {"false_alarm_rate": 0.01, "min_margin_ratio": 1.5, **decision}
    changed = replace(made, labels=rows, decision=replace(made.decision, **limits), verdict="suspect")
    changed = replace(changed, model=replace(made.model, classes=len(rows)))
    return replace(changed, flagged_labels=decided_at(changed, limits["false_alarm_rate"]).flagged)


def test_steps_are_where_a_label_more_is_flagged() -> None:
    # alone, label 3 is first; beside it label 1, whose mask is small, needs no more than `further_rate`
    assert decided_over(of(), LOW, HIGH, most=50) == (
        Decided(rate=LOW, verdict="inconclusive", flagged=()),
        Decided(rate=pytest.approx(1e-4), verdict="suspect", flagged=(1, 3)),
        Decided(rate=pytest.approx(0.4), verdict="suspect", flagged=(1, 3, 4)),
    )
    alone = decided_over(of(further_rate=0.0), LOW, HIGH, most=50)
    assert [step.flagged for step in alone] == [(), (3,), (1, 3), (1, 3, 4)]
    assert decided_over(of(further_rate=0.0), LOW, HIGH, most=3) == alone
    assert decided_over(of(further_rate=0.0), LOW, HIGH, most=2) == ()


def test_a_step_just_above_the_lowest_rate_is_not_missed() -> None:
    rows = tuple(replace(row, p_value=5e-7) if row.label == 3 else row for row in ROWS)
    assert [step.rate for step in decided_over(of(rows), LOW, HIGH, most=50)] == pytest.approx([LOW, 5e-6, 0.4])


def test_small_masks_have_a_rate_of_their_own_that_does_not_move() -> None:
    small = tuple(replace(row, mask_share=0.001) if row.label == 1 else row for row in ROWS)
    assert decided_over(of(small), LOW, HIGH, most=50)[0].flagged == (1, 3)


@pytest.mark.parametrize("more", [{}, {"further_rate": 0.0}, {"min_held_out_asr": None}, {"doubt_rate": 0.5}])
def test_between_two_steps_nothing_else_is_decided(more: dict[str, Any]) -> None:
    record = of(**more)
    steps = decided_over(record, LOW, HIGH, most=50)
    rates = [step.rate for step in steps]
    assert rates == sorted(rates)
    for rate in (LOW * (HIGH / LOW) ** (turn / 400) for turn in range(401)):
        step = [step for step in steps if step.rate <= rate * (1 + 1e-12)][-1]
        assert replace(step, rate=rate) == decided_at(record, rate)
    assert all(set(a.flagged) <= set(b.flagged) for a, b in itertools.pairwise(steps))


def test_no_label_is_doubted_away_by_a_low_rate() -> None:
    clean = tuple(evidence(number, 0.9, norm_ratio=1.0) for number in range(10))
    assert [step.verdict for step in decided_over(of(clean), LOW, HIGH, most=50)] == ["clean"]
    missing = tuple(replace(row, status="skipped") if row.label == 7 else row for row in clean)
    assert [step.verdict for step in decided_over(of(missing), LOW, HIGH, most=50)] == ["inconclusive"]


def test_a_record_that_its_own_rule_contradicts_is_not_repeatable() -> None:
    assert is_repeatable(of())
    assert not is_repeatable(replace(of(), flagged_labels=(3,)))
    assert not is_repeatable(replace(of(), verdict="clean"))


def test_a_scan_that_time_cut_short_is_clean_at_no_rate(tmp_path: Path) -> None:
    clean = of(tuple(evidence(number, 0.9, norm_ratio=1.0) for number in range(10)))
    cut = replace(clean, verdict="inconclusive", whole=False)
    assert is_repeatable(cut)
    assert decided_at(cut, LOW).verdict == "inconclusive"
    strict_json.write_record(cut, tmp_path / "scan.json")
    assert read_record(tmp_path / "scan.json") == cut


def test_records_without_a_word_on_time_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    strict_json.write_record(of(), path)
    path.write_text(path.read_text().replace('"whole": true', '"seconds": 1.0').replace('"seconds": 200.0,\n', "", 1))
    found = read_record(path)
    assert isinstance(found, ScanRecord)
    assert found.whole
