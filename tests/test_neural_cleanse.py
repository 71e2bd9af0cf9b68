from __future__ import annotations

from typing import Any

import pytest

from goodnet.data.images import Images
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection import Detection
from goodnet.errors import UsageError
from goodnet.record import Decision, LabelResult, ScanRecord, read_record
from goodnet.scan import scan
from goodnet.triggers.files import read_triggers
from goodnet.triggers.inversion import Schedule
from goodnet.verdicts import decide
from nets import clean_images, net_with

QUICK = NeuralCleanse(search=Schedule(steps=150, batch=16))


@pytest.mark.parametrize("targets", [{}, {2: (1, 6)}, {2: (1, 6), 9: (5, 0)}])
def test_planted_labels_are_flagged_and_no_others(targets: dict[int, tuple[int, int]]) -> None:
    net = net_with(16, targets)
    record = scan(net, clean_images(net), method=QUICK)
    assert record.flagged_labels == tuple(sorted(targets))
    assert record.verdict == ("suspect" if targets else "clean")
    for label in targets:
        found = record.labels[label]
        assert found.label == label
        assert found.held_out_asr is not None
        assert found.held_out_asr > 0.6
        assert found.norm_ratio is not None
        assert found.norm_ratio < 0.5


def test_two_passes_score_every_label_and_search_the_strongest() -> None:
    net = net_with(60, {7: (3, 3)})
    method = NeuralCleanse(
        search=Schedule(steps=120, batch=8), screen=Schedule(steps=30, batch=8), candidates=4, controls=20
    )
    record = scan(net, clean_images(net), method=method)
    assert [row.label for row in record.labels] == list(range(60))
    assert record.flagged_labels == (7,)
    status = [row.status for row in record.labels]
    assert 20 <= status.count("searched") <= 24
    assert status.count("searched") + status.count("screened") == 60
    assert all(row.screen_norm is not None and row.score is not None for row in record.labels)
    assert all(row.mask_norm is None for row in record.labels if row.status == "screened")
    assert record.decision.compared == 20
    alone = scan(net, clean_images(net), method=method, labels=[7])
    assert alone.verdict == "inconclusive"


def test_the_trigger_found_is_where_it_was_planted(tmp_path: Any) -> None:
    net = net_with(16, {2: (1, 6)})
    record = scan(net, clean_images(net), method=QUICK, out=tmp_path / "out")
    triggers = {trigger.target: trigger for trigger in read_triggers(tmp_path / "out" / "triggers.npz")}
    assert int(triggers[2].mask.argmax()) == 1 * 8 + 6
    assert float(triggers[2].pattern[0, 1, 6]) > 0.9
    assert read_record(tmp_path / "out" / "scan.json") == record
    assert {example.kind for example in record.examples} == {"mask", "pattern", "clean", "triggered"}
    assert all((tmp_path / "out" / example.file).is_file() for example in record.examples)
    shown = [example.answer for example in record.examples if example.kind == "triggered"]
    assert shown.count(2) >= 3


def test_same_seed_same_record_and_other_seed_other() -> None:
    net = net_with(12, {2: (1, 6)})
    first, second, other = (scan(net, clean_images(net), method=QUICK, seed=seed) for seed in (3, 3, 4))
    assert first.labels == second.labels
    assert first.labels != other.labels


def row(label: int, **changes: Any) -> LabelResult:
    good: dict[str, Any] = {
        "status": "searched", "score": 5.0, "p_value": 1e-9, "mask_norm": 3.0, "norm_ratio": 0.2, "held_out_asr": 0.99,
    }  # fmt: skip
    return LabelResult(label=label, **{**good, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"p_value": 2e-3},
        {"p_value": None},
        {"norm_ratio": 0.51},
        {"norm_ratio": None},
        {"held_out_asr": 0.59},
        {"held_out_asr": None},
        {"status": "failed"},
        {"status": "screened"},
    ],
)
def test_every_evidence_is_needed(changes: dict[str, Any]) -> None:
    method = detection().decision
    assert method.flags(row(0), 10)
    assert not method.flags(row(0, **changes), 10)


def test_the_p_value_knows_the_number_of_labels() -> None:
    method = detection().decision
    assert method.flags(row(0, p_value=5e-4), 10)
    assert not method.flags(row(0, p_value=5e-4), 1283)


def test_a_tiny_mask_is_evidence_of_its_own_but_not_enough() -> None:
    method = detection().decision
    borderline = {"p_value": 5e-3, "mask_share": 0.004}
    assert method.flags(row(0, **borderline), 10)
    assert not method.flags(row(0, **{**borderline, "mask_share": 0.02}), 10)
    assert not method.flags(row(0, **{**borderline, "p_value": 0.02}), 10)
    assert not method.flags(row(0, **{**borderline, "norm_ratio": 0.6}), 10)
    assert not method.flags(row(0, **{**borderline, "held_out_asr": 0.5}), 10)


def detection(*rows: LabelResult, threshold: float | None = 1.0) -> Detection:
    decision = Decision(
        false_alarm_rate=0.01, compared=len(rows), median_norm=1.0, mad=1.0, threshold_norm=threshold,
        max_norm_ratio=0.5, min_held_out_asr=0.6,
    )  # fmt: skip
    return Detection(labels=rows, triggers={}, decision=decision, forward_passes=0)


def test_what_was_skipped_or_failed_never_ends_in_clean() -> None:
    fine = [row(label, p_value=0.5, norm_ratio=0.9) for label in range(5)]
    assert decide(detection(*fine), 5)[0] == "clean"
    assert decide(detection(*fine[:4]), 5)[0] == "inconclusive"
    assert decide(detection(*fine[:4], row(4, status="failed", mask_norm=None)), 5)[0] == "inconclusive"
    assert decide(detection(*fine[:4], row(4, status="skipped", mask_norm=None)), 5)[0] == "inconclusive"
    assert decide(detection(*fine, threshold=None), 5)[0] == "inconclusive"
    outlier = row(4, held_out_asr=0.3)
    verdict, reasons = decide(detection(*fine[:4], outlier), 5)
    assert verdict == "inconclusive"
    assert "label 4" in reasons[0]
    assert decide(detection(*fine[:4], row(4, p_value=0.015)), 5)[0] == "inconclusive"
    assert decide(detection(*fine[:4], row(4, p_value=0.015, norm_ratio=0.6)), 5)[0] == "clean"
    assert decide(detection(*fine[:4], row(4, p_value=0.03)), 5)[0] == "clean"
    verdict, reasons = decide(detection(*fine[:3], row(4, flagged=True)), 5)
    assert verdict == "suspect"
    assert "label 4" in reasons[0]


def test_two_classes_are_too_few_to_compare() -> None:
    net = net_with(2, {})
    record = scan(net, clean_images(net), method=NeuralCleanse(search=Schedule(steps=20, batch=8)))
    assert record.verdict == "inconclusive"
    assert "too few labels" in " ".join(record.reasons)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="false_alarm_rate"):
        NeuralCleanse(false_alarm_rate=0)
    with pytest.raises(UsageError, match="controls"):
        NeuralCleanse(controls=2)


def test_unlabelled_images_stand_on_the_nets_own_answers() -> None:
    net = net_with(16, {2: (1, 6)})
    labelled = clean_images(net)
    bare = Images(pixels=labelled.pixels)
    record: ScanRecord = scan(net, bare, method=QUICK)
    assert record.verdict == "suspect"
    assert record.preflight_acc is None
    assert not record.data.labelled


def test_beside_a_flagged_label_a_small_mask_needs_less() -> None:
    method = detection().decision
    further = {"p_value": 3e-3, "norm_ratio": 0.4, "held_out_asr": 0.8}
    assert not method.flags(row(0, **further), 10)
    assert method.flags(row(0, **further), 10, beside_another=True)
    for less in ({"p_value": 0.02}, {"norm_ratio": 0.6}, {"held_out_asr": 0.5}):
        assert not method.flags(row(0, **{**further, **less}), 10, beside_another=True)
