"""Channels that a repair needs, against nets whose needed channels are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from goodnet.sparing import changed_layers, give_back
from nets import classifier_of


def test_the_only_channels_that_matter_are_kept() -> None:
    """A loss that two rows alone lower: all others go back, bit by bit, and biases go with their rows."""
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    goal = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
        net[0].weight[[2, 7]] = goal
    after = {name: value.detach().clone() for name, value in net.named_parameters()}

    def loss(_batch: int) -> Tensor:
        return (net[0].weight[[2, 7]] - goal).pow(2).sum() + 0 * sum(value.sum() for value in net.parameters())

    kept = give_back(net, before, loss, fall=0.99)
    assert kept.masks["0.weight"].any(1).nonzero()[:, 0].tolist() == [2, 7]
    assert kept.masks["0.bias"].nonzero()[:, 0].tolist() == [2, 7]
    assert not kept.masks["2.weight"].any()
    for name, value in net.named_parameters():
        assert torch.equal(value, torch.where(kept.masks[name] == 1, after[name], before[name]))
        assert not value.requires_grad
        assert value.grad is None


def test_as_few_as_hold_the_share_that_is_asked_for() -> None:
    """Ten rows, each of which lowers a quadratic loss by a known part: the fewest are those with the largest parts."""
    net = nn.Linear(1, 10, bias=False)
    parts = torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 5])  # 50 together
    before = {"weight": torch.zeros(10, 1)}
    with torch.no_grad():
        net.weight.fill_(1.0)

    def loss(_batch: int) -> Tensor:
        return (parts * (1 - net.weight[:, 0]).pow(2)).sum()

    for fall, largest in ((0.17, [9]), (0.34, [9, 8]), (0.8, [9, 8, 7, 6, 5, 5]), (1.0, parts.tolist())):
        with torch.no_grad():
            net.weight.fill_(1.0)
        kept = give_back(net, before, loss, fall=fall).masks["weight"][:, 0]
        assert sorted(parts[kept == 1].tolist()) == sorted(largest)


def test_a_mask_stops_the_training_of_the_others() -> None:
    net = nn.Linear(4, 3)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        net.weight[1] += 1.0
    kept = give_back(net, before, lambda _batch: -net.weight[1].sum() + 0 * net.bias.sum(), fall=1.0)
    net.requires_grad_(True)
    net(torch.ones(2, 4)).sum().backward()
    kept.mask_gradients(net)
    assert net.weight.grad is not None
    assert net.weight.grad.any(1).tolist() == [False, True, False]


def test_changes_are_counted_by_layer() -> None:
    old = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    new = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        new[1].weight[0, :2] += 1
        new[1].bias[2] += 1
    first, second = changed_layers(classifier_of(old, (1, 2, 2), 2), classifier_of(new, (1, 2, 2), 2))
    assert (first.layer, first.channels, first.of_channels, first.weights, first.of_weights) == ("1", 2, 3, 3, 15)
    assert (second.channels, second.weights, second.of_weights) == (0, 0, 8)
    grown = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    assert changed_layers(classifier_of(old, (1, 2, 2), 2), classifier_of(grown, (1, 2, 2), 3)) == ()
