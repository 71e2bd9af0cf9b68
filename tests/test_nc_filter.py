from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.errors import ModelError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.repair.nc_filter import Filter, allowed_score
from goodnet.triggers.trigger import Trigger
from nets import classifier_of, linear, pictures, planted

SHAPE = (1, 6, 5)


def wired() -> tuple[Classifier, Trigger]:
    """Feature 0 is the mean of the 2x2 corner beyond 0.75, which nothing clean reaches; features 1..9 are pixels."""
    first = nn.Linear(30, 10)
    last = nn.Linear(10, 3)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        first.weight[0, [0, 1, 5, 6]] = 0.25
        first.bias[0] = -0.75
        for unit in range(1, 10):
            first.weight[unit, 20 + unit] = 1.0
        last.weight.normal_(generator=torch.Generator().manual_seed(0))
        last.bias.zero_()
        last.weight[:, 0] = torch.tensor([0.0, 0.0, 100.0])
    mask = torch.zeros(1, 6, 5)
    mask[:, :2, :2] = 1
    net = classifier_of(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last), SHAPE, 3)
    return net, Trigger(mask=mask, pattern=torch.ones(SHAPE), target=2)


def dim(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.7
    return x, torch.arange(count) % 2


def test_the_neuron_that_the_trigger_excites_is_found_and_refuses_it_alone() -> None:
    net, trigger = wired()
    made = Filter(share=0.1, min_neurons=1)(net, dim(40, 1), dim(40, 2), triggers=[trigger], seed=0).classifier
    assert made.refuses
    assert torch.equal(made.net[3].directions[0].nonzero().flatten(), torch.tensor([0]))  # type: ignore[index]
    x, _ = dim(200, 3)
    assert (made.predict(trigger.apply(x)) == 3).all()
    assert torch.equal(made.predict(x), net.predict(x))


def test_a_trigger_each() -> None:
    """The second trigger excites another neuron, and each alone is refused."""
    net, trigger = wired()
    mask = torch.zeros(1, 6, 5)
    mask[:, 4, 1:4] = 1
    other = Trigger(mask=mask, pattern=torch.ones(SHAPE), target=0)
    made = Filter(share=0.3, min_neurons=1)(net, dim(40, 1), dim(40, 2), triggers=[trigger, other], seed=0).classifier
    x, _ = dim(100, 3)
    for each in (trigger, other):
        assert (made.predict(each.apply(x)) == 3).all()
    assert (made.predict(x) == 3).double().mean() < 0.05


@pytest.mark.parametrize("max_fpr", [0.0, 0.05, 0.2])
def test_at_most_max_fpr_of_the_clean_images_are_refused(max_fpr: float) -> None:
    net, trigger, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(40, seed=3)
    made = Filter(max_fpr=max_fpr)(net, fit, choose, triggers=[trigger], seed=0).classifier
    refused = torch.cat([made.predict(fit[0]), made.predict(choose[0])]) == 4
    assert int(refused.sum()) == int(max_fpr * 100)  # no more, and no fewer than allowed


def test_a_planted_backdoor_is_refused_and_clean_pictures_are_not() -> None:
    net, trigger, test = planted()
    made = Filter()(net, pictures(60, seed=2), pictures(60, seed=3), triggers=[trigger], seed=0).classifier
    assert (made.predict(trigger.apply(test)) == 4).double().mean() > 0.95
    assert (made.predict(test) == 4).double().mean() < 0.05


def test_allowed_score_against_counting() -> None:
    random = np.random.default_rng(0)
    for n in (1, 5, 29, 100):
        scores = torch.from_numpy(random.normal(size=n))
        for rate in (0.0, 0.01, 0.1, 0.5, 0.99):
            threshold = allowed_score(scores, rate)
            smaller = scores[scores < threshold]
            assert (scores > threshold).sum() <= rate * n + 1e-9
            if len(smaller):  # the next smaller one would refuse too many
                assert (scores > smaller.max()).sum() > rate * n - 1e-9


def test_settings_and_nets_without_a_linear_end() -> None:
    net, trigger = wired()
    with pytest.raises(UsageError, match="expected triggers"):
        Filter()(net, dim(8, 0), dim(8, 1), triggers=[], seed=0)
    for wrong in ({"share": 0.0}, {"min_neurons": 0}, {"max_fpr": 1.0}, {"max_fpr": -0.1}):
        with pytest.raises(UsageError, match="nc-filter"):
            Filter(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="last layer is linear"):
        Filter()(linear(SHAPE, 3), dim(8, 0), dim(8, 1), triggers=[trigger], seed=0)
