"""Strong triggers: against closed forms on linear nets, and one colour, many starts, same seed same triggers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.triggers.plain import PlainSchedule, refined
from goodnet.triggers.strong import SquareSchedule, StrongSchedule, height, square_triggers, strong_triggers
from goodnet.triggers.trigger import Trigger
from nets import small_cnn

SHORT = StrongSchedule(starts=6, steps=60, batch=8)


def linear_net(weight: torch.Tensor) -> Classifier:
    """Logits are weight (K, C, H, W) times the image."""
    classes, c, h, w = weight.shape
    layer = nn.Linear(c * h * w, classes, bias=False)
    layer.weight.data = weight.flatten(1)
    return Classifier(
        net=nn.Sequential(nn.Flatten(), layer),
        input=InputSpec(channels=c, height=h, width=w),
        classes=classes,
        recipe=Recipe(arch="x"),
    )


def planted(colour: tuple[float, float, float]) -> Classifier:
    """Label 2 looks at a 3x3 spot in a corner: how near `colour` is, of those at the corners of the colour cube."""
    weight = torch.zeros(4, 3, 8, 8)
    weight[2, :, :3, :3] = (2 * torch.tensor(colour) - 1)[:, None, None] * 4
    weight[0, :, 5:, 5:] = 1
    return linear_net(weight)


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_the_spot_and_the_colour_are_those_that_the_label_looks_at(colour: tuple[float, float, float]) -> None:
    net = planted(colour)
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(24, dtype=torch.int64)
    schedule = StrongSchedule(
        starts=54, steps=100, batch=8, learning_rate=0.1, prices=(1.0, 3.0), ceiling=9.0, keep=0.9
    )
    found = strong_triggers(net, x, y, [2], schedule, seed=0)
    for trigger in found:
        inside, outside = trigger.mask[0, :3, :3], trigger.mask[0].clone()
        outside[:3, :3] = outside[5:, 5:] = 0  # where label 0 looks, a mask may pay, too
        assert inside.mean() > 0.8
        assert outside.max() < 0.1
        assert torch.allclose(trigger.pattern[:, 0, 0], torch.tensor(colour), atol=0.1)


def test_a_trigger_is_of_one_colour_and_every_other_keeps_that_of_its_start() -> None:
    net = small_cnn((3, 12, 10), 5)
    x = torch.rand(20, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    y = torch.arange(20) % 5
    found = strong_triggers(net, x, y, [1, 3], StrongSchedule(starts=6, steps=20, batch=8, keep=1e-9), seed=0)
    assert {trigger.target for trigger in found} == {1, 3}
    grid = torch.tensor([0.02, 0.5, 0.98])
    kept = 0
    for trigger in found:
        assert float(trigger.pattern.std((1, 2)).max()) < 1e-6
        kept += bool(((trigger.pattern[:, 0, 0, None] - grid).abs().amin(1) < 1e-4).all())
    assert 0 < kept < len(found) or len(found) < 4


def test_the_same_seed_gives_the_same_whatever_else_is_searched() -> None:
    net = small_cnn((1, 9, 14), 5)
    x = torch.rand(20, 1, 9, 14, generator=torch.Generator().manual_seed(1))
    y = torch.arange(20) % 5
    both = strong_triggers(net, x, y, [1, 3], SHORT, seed=0)
    alone = strong_triggers(net, x, y, [3], SHORT, seed=0)
    ours = [trigger for trigger in both if trigger.target == 3]
    assert len(ours) == len(alone)
    assert all(torch.allclose(a.mask, b.mask, atol=1e-4) for a, b in zip(ours, alone))
    other = strong_triggers(net, x, y, [3], SHORT, seed=1)
    assert not all(torch.allclose(a.mask, b.mask, atol=1e-4) for a, b in zip(other, alone))


def test_settings_are_in_units_of_the_nets_own_answers() -> None:
    net = planted((1.0, 0.0, 0.0))
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(24, dtype=torch.int64)
    louder = planted((1.0, 0.0, 0.0))
    louder.net[1].weight.data *= 50
    assert height(louder, x) == pytest.approx(50 * height(net, x), rel=1e-4)
    quiet, loud = (strong_triggers(which, x, y, [2], SHORT, seed=0) for which in (net, louder))
    assert len(quiet) == len(loud)
    assert all(abs(a.norm - b.norm) < 1 for a, b in zip(quiet, loud))


def test_a_mask_costs() -> None:
    net = planted((1.0, 0.0, 0.0))
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(24, dtype=torch.int64)
    cheap, dear = (
        strong_triggers(net, x, y, [2], StrongSchedule(starts=6, steps=60, batch=8, prices=(p, p)), seed=0)
        for p in (0.01, 1e4)
    )
    assert max(t.norm for t in dear) < 1 < min(t.norm for t in cheap)


def test_wrong_settings_and_images() -> None:
    for wrong in (
        {"starts": 0},
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"prices": (0.0, 1.0)},
        {"prices": (2.0, 1.0)},
        {"keep": 0.0},
        {"ceiling": 0.0},
    ):
        with pytest.raises(UsageError, match="strong triggers: expected"):
            StrongSchedule(**wrong)
    net = small_cnn((3, 12, 10), 5)
    x = torch.rand(4, 3, 12, 10)
    with pytest.raises(DataError, match="add images of others"):
        strong_triggers(net, x, torch.ones(4, dtype=torch.int64), [1], SHORT, seed=0)


def test_of_squares_at_every_place_the_one_is_kept_that_the_label_looks_at() -> None:
    net, x = planted((1.0, 0.0, 0.0)), torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = SquareSchedule(side=0.375, steps=40)
    told: list[int] = []
    found = square_triggers(net, x, torch.zeros(24, dtype=torch.int64), [2], schedule, seed=0, on_steps=told.append)
    corner = torch.zeros(8, 8)
    corner[:3, :3] = 1
    assert torch.equal(found[0].mask[0], corner)
    assert all(set(trigger.mask.unique().tolist()) == {0.0, 1.0} for trigger in found)
    assert torch.allclose(found[0].pattern[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.1)
    assert sum(told) * schedule.batch == schedule.passes((3, 8, 8))
    again = square_triggers(net, x, torch.zeros(24, dtype=torch.int64), [2], schedule, seed=0)
    assert all(torch.equal(a.pattern, b.pattern) for a, b in zip(found, again))


def test_a_square_is_refined_to_what_the_label_looks_at() -> None:
    net, x = planted((1.0, 0.0, 0.0)), torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(24, dtype=torch.int64)
    mask, pattern = torch.zeros(1, 8, 8), torch.full((3, 8, 8), 0.2)
    mask[:, :5, :5], pattern[0] = 1, 0.8
    (stamp,) = refined(net, x, classes, [Trigger(mask=mask, pattern=pattern, target=2)], PlainSchedule(), seed=0)
    assert (stamp.label, stamp.top, stamp.left, stamp.bottom, stamp.right) == (2, 0, 0, 3, 3)
    assert stamp.colour == pytest.approx((1.0, 0.0, 0.0), abs=0.15)
    assert refined(net, x, classes, [], PlainSchedule(), seed=0) == []


def test_settings_of_squares_are_checked() -> None:
    with pytest.raises(UsageError, match="squares: expected side"):
        SquareSchedule(side=0.0)
