from __future__ import annotations

import math

import pytest
import torch

from goodnet.errors import UsageError
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import disagreement
from goodnet.guard.watch import Watch
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import seconded_from
from goodnet.triggers.strong import StrongSchedule
from nets import pictures, planted

WATCH = Watch(search=StrongSchedule(starts=10, steps=40, batch=8), further=0)


def pair() -> tuple[Classifier, Classifier, Classifier]:
    """The planted net, a twin that says 0 or something else at random wherever the net is unsure, and a watch."""
    net, _, _ = planted()
    good = surgery.clone(net)
    with torch.no_grad():
        last = good.net[-1]  # type: ignore[index]
        last.weight.add_(0.05 * torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(0)))
        last.weight[3] = 0.0
        last.bias[3] = -100.0
    watched = WATCH(net, pictures(60, seed=2), pictures(60, seed=3), labels=[1], seed=0).classifier
    return net, good, watched


@pytest.mark.parametrize("max_fpr", [0.0, 0.02, 0.1])
def test_both_together_keep_to_the_share_on_each_set_and_use_it_up(max_fpr: float) -> None:
    net, good, watched = pair()
    sets = [pictures(200, seed=5)[0], pictures(400, seed=6)[0] * 0.8]
    made = Combined(watch=WATCH, max_fpr=max_fpr)(net, good, watched, sets)
    shares = [float((made.predict(images) == 4).double().mean()) for images in sets]
    assert max(shares) <= max_fpr
    threshold = made.recipe.options["threshold"]
    if threshold > 0:  # the next smaller one that changes anything would break the bound
        lower = seconded_from(watched, good, threshold=threshold - 1e-4)
        assert max(float((lower.predict(images) == 4).double().mean()) for images in sets) > max_fpr


def test_a_backdoor_that_is_not_watched_is_met_by_disagreement() -> None:
    net, good, watched = pair()
    _, trigger, test = planted()
    triggered = trigger.apply(test)
    alone = seconded_from(watched, good)
    made = Combined(watch=WATCH, max_fpr=0.05)(net, good, watched, [pictures(400, seed=5)[0]])
    assert (alone.predict(triggered) == 3).double().mean() > 0.9  # label 1 is watched, the trigger leads to 3
    assert (made.predict(triggered) == 4).double().mean() > 0.9
    threshold = made.recipe.options["threshold"]
    refused = (made.predict(test) == 4).numpy()
    expected = (disagreement(net, good, test) > threshold) | (watched.predict(test) == 4).numpy()
    assert (refused == expected).all()
    kept = torch.from_numpy(~expected)
    assert torch.equal(made.predict(test)[kept], alone.predict(test)[kept])


def test_detectors_that_refuse_too_much_are_held_to_the_share() -> None:
    net, good, watched = pair()
    with torch.no_grad():
        watched.net[-1].offsets.fill_(-50.0)  # type: ignore[index, operator]
    images = pictures(200, seed=5)[0]
    assert (watched.predict(images) == 4).double().mean() > 0.2
    made = Combined(watch=WATCH, max_fpr=0.02)(net, good, watched, [images])
    assert int((made.predict(images) == 4).sum()) <= 4
    assert (watched.net[-1].offsets == -50.0).all()  # type: ignore[index, union-attr]


def test_wrong_settings() -> None:
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="--max-fpr"):
            Combined(max_fpr=wrong)
