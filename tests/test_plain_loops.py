"""The plain loops against nets whose answer is known, and against the paper's rule by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.errors import ModelError
from goodnet.plain_loops import Reversed, fine_prune, outliers, reverse, unlearn
from nets import pictures, planted


def test_the_search_finds_the_planted_corner_and_the_rule_flags_it() -> None:
    torch.manual_seed(0)
    net, trigger, _ = planted()
    x, _ = pictures(256, seed=5)
    told: list[int] = []
    found = reverse(net.logits, x, range(4), steps=150, progress=lambda stage, done, total: told.append(done))
    assert told == [1, 2, 3, 4]
    assert [one.label for one in found] == [0, 1, 2, 3]
    smallest = min(found, key=lambda one: one.norm)
    assert smallest.label == trigger.target
    assert float((net.predict(smallest.apply(x)) == trigger.target).float().mean()) > 0.9
    assert all(0 <= float(one.mask.min()) <= float(one.mask.max()) <= 1 for one in found)


def test_outliers_are_those_far_below_the_median_by_the_papers_rule() -> None:
    rng = np.random.default_rng(0)
    norms = [*rng.normal(100, 5, 20).tolist(), 20.0, 300.0]
    median = float(np.median(norms))
    mad = 1.4826 * float(np.median(np.abs(np.array(norms) - median)))
    expected = [i for i, norm in enumerate(norms) if norm < median and abs(norm - median) / mad > 2]
    assert 20 in expected
    assert 21 not in expected  # far above is no backdoor
    assert outliers(norms) == expected
    assert outliers([3.0, 3.0, 3.0]) == []


def test_unlearning_takes_the_trigger_away_and_leaves_the_net_as_it_was() -> None:
    torch.manual_seed(0)
    net, trigger, _ = planted()
    x, y = pictures(900, seed=6)
    before = [value.clone() for value in net.net.state_dict().values()]
    known = Reversed(label=trigger.target, mask=trigger.mask.reshape(8, 8), pattern=trigger.pattern)
    tuned = net.net
    for _ in range(3):  # the paper's one epoch is of a larger set
        tuned = unlearn(tuned, x, y, [known])
    test, labels = pictures(300, seed=7)

    def reached(of: nn.Module) -> float:
        return float((of(trigger.apply(test)).argmax(1) == trigger.target).float().mean())

    assert reached(net.net) > 0.95
    assert reached(tuned) < 0.5
    assert float((tuned(test).argmax(1) == labels).float().mean()) > 0.9
    assert all(torch.equal(old, new) for old, new in zip(before, net.net.state_dict().values()))


def test_pruning_switches_the_idle_channels_off_and_none_that_costs_accuracy() -> None:
    """Channel c of the convolution is the picture's mean times a weight; the idle ones see nothing of it."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()  # type: ignore[union-attr]
        conv.weight[0, 0, 1, 1] = 1.0
        head.weight.zero_()
        head.weight[1, 0] = 50.0
        head.bias.copy_(torch.tensor([25.0, 0.0]))
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    dark, bright = torch.full((60, 1, 8, 8), 0.2), torch.full((60, 1, 8, 8), 0.8)
    x, y = torch.cat([dark, bright]), torch.cat([torch.zeros(60), torch.ones(60)]).long()
    tuned, off = fine_prune(net, x, y)
    assert off == 5
    assert float((tuned(x).argmax(1) == y).float().mean()) == 1.0
    with pytest.raises(ModelError, match="convolution"):
        fine_prune(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), x, y)
