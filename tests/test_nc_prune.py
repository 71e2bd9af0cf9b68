from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import UsageError
from goodnet.repair.nc_prune import Pruning
from goodnet.tuning import accuracy
from nets import classifier_of, pictures, planted
from test_nc_filter import dim, wired


def test_exactly_the_neuron_that_carries_the_backdoor_goes() -> None:
    net, trigger = wired()
    fit, choose = dim(40, 1), dim(40, 2)
    choose = (choose[0], net.predict(choose[0]))
    found = Pruning(layers=("3",))(net, (fit[0], net.predict(fit[0])), choose, triggers=[trigger], seed=0)
    (cut,) = found.pruned
    assert (cut.layer, cut.side, cut.channels) == ("3", "input", (0,))
    x, _ = dim(200, 3)
    assert torch.equal(found.classifier.predict(x), net.predict(x))
    assert (net.predict(trigger.apply(x)) == 2).all()
    assert torch.equal(found.classifier.predict(trigger.apply(x)) == 2, without_first_feature(x) == 2)


def without_first_feature(x: torch.Tensor) -> torch.Tensor:
    """What the wired net answers to triggered pictures if nothing came from feature 0, by hand."""
    net, trigger = wired()
    pixels = trigger.apply(x).flatten(1)[:, 21:30].clamp_min(0)
    last = net.net[3]  # type: ignore[index]
    return (pixels @ last.weight[:, 1:].T + last.bias).argmax(1)


def test_a_planted_backdoor_goes_within_the_limit() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    found = Pruning()(net, fit, choose, triggers=[trigger], seed=0)
    assert [cut.layer for cut in found.pruned] == ["5", "0"]  # the second-last layer first, then the last convolution
    assert accuracy(found.classifier, choose) >= accuracy(net, choose) - 0.05
    rate = (found.classifier.predict(trigger.apply(test)) == 3).double().mean()
    assert rate < 0.1
    assert (net.predict(trigger.apply(test)) == 3).double().mean() > 0.95


def test_the_curve_is_what_the_cut_was_chosen_from() -> None:
    net, trigger, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    found = Pruning(layers=("5",), max_accuracy_drop=0.02)(net, fit, choose, triggers=[trigger], seed=0)
    limit = accuracy(net, choose) - 0.02 - 1e-9
    allowed = [point for point in found.curve if point.acc >= limit]
    best = min(allowed, key=lambda point: (point.asr or 0.0, point.pruned))
    assert len(found.pruned[0].channels) == best.pruned
    assert [point.pruned for point in found.curve] == list(range(len(found.curve)))
    assert accuracy(found.classifier, choose) == best.acc


def test_no_cut_is_kept_that_costs_too_much() -> None:
    """One feature carries both classes: without it the net is at chance."""
    head = nn.Linear(30, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1, 0] = 10.0
        head.bias.copy_(torch.tensor([5.0, 0.0]))
    net = classifier_of(nn.Sequential(nn.Flatten(), head), (1, 6, 5), 2)
    x = torch.rand(40, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    _, trigger = wired()
    trigger = type(trigger)(mask=trigger.mask, pattern=trigger.pattern, target=1)
    found = Pruning()(net, (x, net.predict(x)), (x, net.predict(x)), triggers=[trigger], seed=0)
    assert [cut.channels for cut in found.pruned] == [()]
    assert torch.equal(found.classifier.predict(x), net.predict(x))


def test_settings() -> None:
    net, trigger = wired()
    with pytest.raises(UsageError, match="expected triggers"):
        Pruning()(net, dim(8, 0), dim(8, 1), triggers=[], seed=0)
    with pytest.raises(UsageError, match="layer: expected one of"):
        Pruning(layers=("nowhere",))(net, dim(8, 0), dim(8, 1), triggers=[trigger], seed=0)
    for wrong in ({"max_accuracy_drop": 1.0}, {"max_share": 0.0}, {"max_share": 1.0}):
        with pytest.raises(UsageError, match="nc-prune"):
            Pruning(**wrong)  # type: ignore[arg-type]
