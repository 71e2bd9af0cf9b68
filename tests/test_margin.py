"""The largest margin of a linear net is known in closed form: every pixel at the end that its weights ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import UsageError
from goodnet.triggers.blocks import block_size
from goodnet.triggers.margin import MarginSchedule, margins
from nets import Linear, classifier_of, linear, small_cnn

SHAPE = (2, 5, 4)


def test_two_classes_reach_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(2, *SHAPE, generator=generator), torch.tensor([0.3, -0.2])
    net = classifier_of(Linear(weight, bias), SHAPE, 2)
    found = margins(net, [0, 1], MarginSchedule(steps=60), seed=0)
    for label in (0, 1):
        gap = weight[label] - weight[1 - label]
        exact = float(gap.clamp(min=0).sum() + bias[label] - bias[1 - label])
        assert found[label] == pytest.approx(exact, abs=1e-4)


def test_many_classes_do_not_pass_the_bound_and_come_near_it() -> None:
    net = linear(SHAPE, 6)
    weight = net.net.weight.detach()
    found = margins(net, range(6), MarginSchedule(starts=4, steps=150, learning_rate=0.02), seed=0)
    for label, margin in enumerate(found):
        # the margin over all is at most that over any single rival
        bound = min(float((weight[label] - weight[k]).clamp(min=0).sum()) for k in range(6) if k != label)
        assert margin <= bound + 1e-4
        assert margin > 0.6 * bound


def test_a_label_has_the_same_margin_whatever_else_is_asked_for() -> None:
    net = small_cnn()
    schedule = MarginSchedule(starts=3, steps=12)
    together = margins(net, [4, 0, 2, 3], schedule, seed=5, block=6)
    assert [margins(net, [label], schedule, seed=5, block=6)[0] for label in (4, 0, 2, 3)] == together
    assert margins(net, [4], schedule, seed=6, block=6) != together[:1]
    further = margins(net, [4], schedule, seed=5, restart=1, block=6)
    assert further != together[:1]
    assert further == margins(net, [2, 4], schedule, seed=5, restart=1, block=6)[1:]


def test_results_are_told_as_they_come_and_the_net_is_left_alone() -> None:
    net = small_cnn()
    before = [value.clone() for value in net.net.state_dict().values()]
    told: dict[int, float] = {}
    steps: list[int] = []
    found = margins(net, range(5), MarginSchedule(steps=4), seed=0, on_steps=steps.append, on_result=told.__setitem__)
    assert [told[label] for label in range(5)] == found
    assert sum(steps) == 5 * 4
    assert all(torch.equal(a, b) for a, b in zip(before, net.net.state_dict().values()))


def test_settings_are_checked() -> None:
    for wrong in ({"starts": 0}, {"steps": 0}, {"learning_rate": 0.0}):
        with pytest.raises(UsageError, match="expected starts"):
            MarginSchedule(**wrong)


@pytest.mark.slow
def test_blocks_keep_a_layer_in_the_cache() -> None:
    wide = classifier_of(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 64 * 64, 2)),
                         (3, 64, 64), 2)  # fmt: skip
    assert block_size(wide) == 16  # a megabyte an image
    assert block_size(linear(SHAPE, 3)) == 256
    assert block_size(small_cnn((3, 90, 90))) == 16
