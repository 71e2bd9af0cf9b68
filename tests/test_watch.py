from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.errors import ModelError, UsageError
from goodnet.guard.watch import Watch, _far_out, altered, logistic
from goodnet.triggers.strong import StrongSchedule
from nets import SHAPE, classifier_of, linear, pictures, planted

SHORT = StrongSchedule(starts=10, steps=40, batch=8)


def test_a_planted_trigger_is_refused_and_clean_images_keep_their_answers() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    made = Watch(search=SHORT)(net, fit, choose, labels=[3], seed=0).classifier
    assert made.refuses
    triggered = trigger.apply(test)
    assert (net.predict(triggered) == 3).double().mean() > 0.95
    assert (made.predict(triggered) == 4).double().mean() > 0.9
    assert (made.predict(test) == net.predict(test)).double().mean() > 0.98


@pytest.mark.slow
def test_a_backdoor_that_was_not_flagged_is_met_among_the_further_labels() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    settings = {"search": SHORT, "further_search": SHORT}
    triggered = trigger.apply(test)
    for further, refused in (((3, 1), True), ((1, 2), False)):
        method = Watch(**settings, further=len(further))
        made = method(net, fit, choose, labels=[0], further=further, seed=0).classifier
        assert bool((made.predict(triggered) == 4).double().mean() > 0.8) == refused
    none = Watch(**settings, further=0)(net, fit, choose, labels=[0], further=[3], seed=0).classifier
    assert (none.predict(triggered) == 3).double().mean() > 0.95


def test_clean_images_of_a_watched_label_are_refused_no_more_than_allowed() -> None:
    """Labels 0 to 2 are innocent: whatever their detectors say, most of their own images pass."""
    net, _, _ = planted()
    fit, choose = pictures(200, seed=2), pictures(400, seed=3)
    for allowed in (0.0, 0.1):
        made = Watch(search=SHORT, max_refused=allowed)(net, fit, choose, labels=[1], seed=0).classifier
        own = choose[0][net.predict(choose[0]) == 1]
        assert len(own) > 50
        assert float((made.predict(own) == 4).double().mean()) <= allowed


def test_labels_that_nobody_flagged_hardly_lose_an_image() -> None:
    """Of the next thousand images, not only of those that set the threshold."""
    net, trigger, _ = planted()
    fit, choose, more = pictures(200, seed=2), pictures(60, seed=3), pictures(1000, seed=4)
    made = Watch(search=SHORT, further_search=SHORT)(net, fit, choose, labels=[3], further=[0, 1], seed=0).classifier
    assert (made.predict(more[0]) == 4).double().mean() < 0.005
    assert (made.predict(trigger.apply(more[0])) == 4).double().mean() > 0.9
    assert _far_out(torch.tensor([0.0, 1.0, 2.0])) == pytest.approx(4.0)
    assert _far_out(torch.tensor([0.0, 1.0])) == -math.inf


def test_strangers_set_the_threshold_too() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    strangers = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(5))
    made = Watch(search=SHORT)(
        net, fit, choose, labels=[3], surrogate_fit=strangers[:100], surrogate_choose=strangers[100:], seed=0
    ).classifier
    assert (made.predict(strangers) == 4).double().mean() < 0.05
    assert (made.predict(trigger.apply(test)) == 4).double().mean() > 0.9


def test_logistic_regression_against_its_optimum() -> None:
    """One feature, two values: with no decay the optimum has the log odds at each, whatever the scale."""
    clean = torch.cat([torch.zeros(75, 1), torch.full((25, 1), 8.0)])
    triggered = torch.cat([torch.zeros(10, 1), torch.full((90, 1), 8.0)])
    direction, offset = logistic(clean, torch.ones(100), triggered, 0.0)
    low, high = float(-offset), float(8 * direction[0] - offset)
    assert low == pytest.approx(float(torch.log(torch.tensor(0.10 / 0.75))), abs=0.05)
    assert high == pytest.approx(float(torch.log(torch.tensor(0.90 / 0.25))), abs=0.05)


def test_weights_count_as_so_many_images() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, triggered = torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator) + 1
    weights = torch.ones(20)
    weights[:5] = 3
    repeated = torch.cat([clean, clean[:5], clean[:5]])
    mean, std = clean.mean(0), clean.std(0, correction=0)
    # the same scale for both, for decay is in units of it
    first = logistic(clean, weights, triggered, 0.0)
    second = logistic(repeated, torch.ones(30), triggered, 0.0)
    for row in (mean, mean + std, triggered[0]):
        assert float(first[0] @ row - first[1]) == pytest.approx(float(second[0] @ row - second[1]), abs=0.1)


def test_wrong_settings_and_nets() -> None:
    net, _, _ = planted()
    fit = pictures(20, seed=0)
    with pytest.raises(UsageError, match="expected labels to watch"):
        Watch()(net, fit, fit, labels=[], seed=0)
    with pytest.raises(ModelError, match="last layer is linear"):
        Watch()(linear(SHAPE, 4), fit, fit, labels=[1], seed=0)
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="last layer is linear"):
        Watch()(classifier_of(convolution, SHAPE, 4), fit, fit, labels=[1], seed=0)
    for wrong in (
        {"further": -1},
        {"stamped": 0},
        {"strengths": (2.0, 1.0)},
        {"decay": -1.0},
        {"like": -0.1},
        {"altered": -1},
        {"plain": 1.0},
        {"max_refused": 1.0},
        {"max_refused_altered": 1.0},
        {"max_refused_further": -0.1},
        {"max_fpr": 1.0},
    ):
        with pytest.raises(UsageError, match="watch: expected"):
            Watch(**wrong)  # type: ignore[arg-type]


def test_altered_images_are_the_same_ones_moved_mirrored_and_lit() -> None:
    x = torch.rand(40, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    made = altered(x, np.random.default_rng(3))
    assert made.shape == x.shape
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert torch.equal(made, altered(x, np.random.default_rng(3)))
    assert not torch.equal(made, altered(x, np.random.default_rng(4)))
    # brightness, contrast and tint are affine in each channel, so that a channel correlates with the one it was made of
    # with one place of the image or of its mirror image
    inner = (slice(None), slice(4, -4), slice(4, -4))
    mirrored = 0
    for before, after in zip(x * 0.3 + 0.35, altered(x * 0.3 + 0.35, np.random.default_rng(3))):
        best = {}
        for flip in (False, True):
            source = before.flip(2) if flip else before
            shifts = [source.roll((a, b), (1, 2))[inner][0] for a in range(-2, 3) for b in range(-2, 3)]
            best[flip] = max(float(torch.corrcoef(torch.stack([s.flatten(), after[inner][0].flatten()]))[0, 1])
                             for s in shifts)  # fmt: skip
        assert max(best.values()) > 0.99
        mirrored += best[True] > best[False]
    assert 8 < mirrored < 32


@pytest.mark.slow
def test_a_single_image_of_a_label_stands_for_more_of_them_when_it_is_altered() -> None:
    """Label 1 is innocent, and a hundred clean images have one of it; of the next ones fewer are refused."""
    net, _, _ = planted()
    images, _ = pictures(2000, seed=9)
    own = images[net.predict(images) == 1]
    refused = {0: 0.0, 12_000: 0.0}
    for draw in range(4):
        sides = []
        for part in (pictures(40, seed=20 + draw), pictures(40, seed=30 + draw)):
            there = net.predict(part[0]) == 1
            there[torch.nonzero(there)[0]] = False
            sides.append((part[0][~there], part[1][~there]))
        for count in refused:
            made = Watch(search=SHORT, altered=count)(net, *sides, labels=[1], seed=0).classifier
            refused[count] += float((made.predict(own) == 4).double().mean()) / 4
    assert refused[0] > 0.5  # one image says little
    assert refused[12_000] < 0.75 * refused[0]
