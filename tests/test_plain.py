"""Plain stamps: against closed forms on linear nets and a slow loop over stamps, labels and images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from goodnet.detect import plain_stamps as stage
from goodnet.errors import DataError, UsageError
from goodnet.record import Decision, LabelResult
from goodnet.stamps import SPOT, PlainStamp
from goodnet.triggers.plain import PlainSchedule, _Search, plain_stamps, stamp_trigger, stamps_like
from goodnet.triggers.strong import height
from goodnet.verdicts import flag
from goodnet.work import Work
from nets import classifier_of, linear, small_cnn
from test_strong import planted

FEW = PlainSchedule(images=4, shapes=((0.25, 0.25), (0.25, 0.6)), rounds=12)


def images(shape: tuple[int, int, int], count: int = 24) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_place_size_and_colour_are_those_that_the_label_looks_at(colour: tuple[float, float, float]) -> None:
    net, x = planted(colour), images((3, 8, 8))
    found = plain_stamps(net, x, torch.zeros(24, dtype=torch.int64), FEW, seed=0)
    best = max(found, key=lambda stamp: stamp.worth)
    assert (best.label, best.top, best.left, best.bottom, best.right) == (2, 0, 0, 3, 3)
    assert best.colour == colour
    assert best.asr == 1
    assert best.share == pytest.approx(9 / 64)


def test_surveyed_leads_are_those_of_a_slow_loop() -> None:
    net, x = small_cnn((3, 12, 10), 5), images((3, 12, 10))
    classes = net.predict(x)
    schedule = PlainSchedule(images=2, shapes=((0.4, 0.4), (0.25, 0.6)), levels=2)
    search = _Search(net, x, classes, schedule, 0, lambda count: None)
    leads, stamps = search.survey()
    for row, shape in enumerate(schedule.shapes):
        every = search._placed(shape)
        for label in (0, 3):
            slow = [slow_lead(net, search, stamp, label) for stamp in every]
            assert float(leads[row, label]) == pytest.approx(max(slow), abs=1e-4)
            assert slow_lead(net, search, stamps[row, label], label) == pytest.approx(max(slow), abs=1e-4)


def slow_lead(net, search: _Search, stamp: torch.Tensor, label: int) -> float:
    top, left, bottom, right = (int(side) for side in stamp[:4])
    leads = []
    for image, own in zip(search.images, search.classes):
        if own == label:
            continue
        image = image.clone()
        image[:, top:bottom, left:right] = stamp[4:, None, None]
        logits = net.logits(image[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        leads.append(float(logits[label] - others.max()))
    return sum(leads) / len(leads) / search.height if leads else float("-inf")


def test_refining_never_loses_and_figures_are_those_of_the_stamp() -> None:
    net, x = small_cnn((3, 12, 10), 5), images((3, 12, 10))
    classes = net.predict(x)
    before = {s.label: s for s in plain_stamps(net, x, classes, replace(FEW, rounds=0), seed=0)}
    for stamp in plain_stamps(net, x, classes, FEW, seed=0):
        assert stamp.worth >= before[stamp.label].worth
        assert stamp.worth == pytest.approx(stamp.lead / (stamp.share + SPOT))
        trigger = stamp_trigger(stamp, (3, 12, 10))
        assert trigger.norm == pytest.approx(stamp.share * 120)
        search = _Search(net, x, classes, FEW, 0, lambda count: None)
        kept = search.classes != stamp.label
        logits = net.logits(trigger.apply(search.images[kept]))
        others = logits.clone()
        others[:, stamp.label] = -torch.inf
        lead = logits[:, stamp.label] - others.amax(1)
        assert stamp.lead == pytest.approx(float(lead.mean()) / height(net, x), rel=1e-4)
        assert stamp.asr == pytest.approx(float((lead > 0).float().mean()))


def test_same_seed_same_stamps_whatever_the_threads_and_images_are_counted() -> None:
    net, x = small_cnn((3, 12, 10), 5), images((3, 12, 10))
    classes, threads = net.predict(x), torch.get_num_threads()
    runs, counts = [], []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            seen: list[int] = []
            runs.append(plain_stamps(net, x, classes, FEW, labels=[1, 3], most=5, seed=3, on_images=seen.append))
            counts.append(sum(seen))
    finally:
        torch.set_num_threads(threads)
    assert runs[0] == runs[1]
    assert {stamp.label for stamp in runs[0]} == {1, 3}
    assert counts[0] == counts[1] <= FEW.passes((3, 12, 10))


def test_a_net_of_one_channel_and_a_label_that_all_images_have() -> None:
    net, x = linear((1, 8, 8), 4), images((1, 8, 8))
    found = plain_stamps(net, x, torch.full((24,), 2), FEW, seed=0)
    assert {stamp.label for stamp in found} == {0, 1, 3}
    assert all(len(stamp.colour) == 1 for stamp in found)


def test_stamps_like_one_work_as_well_and_the_stamp_is_among_them() -> None:
    net, x = planted((1.0, 0.0, 0.0)), images((3, 8, 8))
    classes = torch.zeros(24, dtype=torch.int64)
    best = max(plain_stamps(net, x, classes, FEW, seed=0), key=lambda stamp: stamp.worth)
    alike = stamps_like(net, x, classes, [best], seed=0)
    assert len(alike) > 5
    assert torch.equal(alike[0].mask, stamp_trigger(best, (3, 8, 8)).mask)
    assert len({tuple(trigger.mask.flatten().tolist()) for trigger in alike}) > 3
    for trigger in alike:
        assert float((net.predict(trigger.apply(x)) == 2).float().mean()) >= 0.7


@pytest.mark.parametrize("change", [{"bottom": 9}, {"left": 3}, {"colour": (1.0,)}, {"colour": (2.0, 0.0, 0.0)}])
def test_a_stamp_of_a_stranger_s_record_must_fit(change: dict[str, object]) -> None:
    stamp = PlainStamp(label=0, top=0, left=0, bottom=3, right=3, colour=(1.0, 0.0, 0.0), lead=1, asr=1, share=0.1)
    with pytest.raises(DataError, match="expected a rectangle"):
        stamp_trigger(replace(stamp, **change), (3, 8, 8))


def test_settings_and_images_are_checked() -> None:
    with pytest.raises(UsageError, match="levels"):
        PlainSchedule(levels=1)
    with pytest.raises(UsageError, match="sides"):
        PlainSchedule(shapes=((0.0, 0.5),))
    with pytest.raises(DataError, match="at least one clean image"):
        plain_stamps(linear((1, 8, 8), 4), torch.rand(0, 1, 8, 8), torch.zeros(0).long(), FEW, seed=0)


def test_the_stage_measures_on_held_out_images_and_gives_up_where_time_is_over() -> None:
    net, x = planted((1.0, 0.0, 0.0)), images((3, 8, 8))
    fit, held_out = (x, torch.zeros(24, dtype=torch.int64)), (x[:10], torch.tensor([2] * 9 + [0]))
    found, taken = stage.find(net, fit, held_out, FEW, net, [2], 0)
    assert [stamp.label for stamp in found] == [2]
    assert found[0].asr == 1  # of the one image that is not of label 2
    assert 0 < 3 * taken <= FEW.passes((3, 8, 8))
    late = Work(time_limit=1e-9)
    assert stage.find(net, fit, held_out, FEW, net, [2], 0, work=late)[0] == []
    assert late.out_of_time


def test_a_stamp_flags_only_beside_a_flagged_label() -> None:
    stamp = PlainStamp(label=1, top=0, left=0, bottom=3, right=3, colour=(1.0,), lead=1.3, asr=0.95, share=0.1)
    led = LabelResult(label=1, status="searched", p_value=0.5, held_out_asr=0.8, stamp=stamp)
    target = LabelResult(label=0, status="searched", p_value=1e-9, norm_ratio=0.1, held_out_asr=1.0)
    decision = Decision(
        false_alarm_rate=0.01, compared=64, median_norm=9.0, mad=1.0, threshold_norm=3.0, max_norm_ratio=0.5,
        min_held_out_asr=0.6, min_lead=1.2,
    )  # fmt: skip

    def flagged(*rows: LabelResult) -> list[int]:
        return [row.label for row in flag(rows, decision) if row.flagged]

    assert flagged(led) == []
    assert flagged(target, led) == [0, 1]
    assert flagged(target, replace(led, held_out_asr=0.5)) == [0]
    assert flagged(target, replace(led, status="screened")) == [0]
    assert flagged(target, replace(led, stamp=replace(stamp, lead=1.1))) == [0]
    assert flagged(target, replace(led, stamp=replace(stamp, asr=0.8))) == [0]
    assert flagged(target, replace(led, stamp=None)) == [0]


def test_a_net_of_many_labels_shows_where_stamps_lead() -> None:
    weight = torch.zeros(100, 3, 8, 8)
    weight[7, :, :3, :3] = torch.tensor([4.0, -4.0, -4.0])[:, None, None]
    weight[:7] = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.1
    net = classifier_of(torch.nn.Sequential(torch.nn.Flatten(), head(weight)), (3, 8, 8), 100)
    found = plain_stamps(net, images((3, 8, 8)), torch.zeros(24, dtype=torch.int64), FEW, seed=0)
    assert found[0].label == 7
    assert len(found) == 24


def head(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight[0].numel(), len(weight), bias=False)
    layer.weight.data = weight.flatten(1)
    return layer
