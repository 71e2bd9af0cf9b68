from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.repair.unlearning import Unlearning
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import accuracy
from nets import classifier_of

SHAPE = (1, 8, 8)


def planted() -> tuple[Classifier, Trigger, torch.Tensor]:
    """Classes 0..2 say which third of the picture is brightest; a white corner (2x2) says 3, by a path of its own."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(),
                        nn.Linear(32, 4))  # fmt: skip
    x, y = pictures(1200, seed=1)
    trigger = Trigger(mask=corner(), pattern=torch.ones(SHAPE), target=3)
    x = torch.cat([x, trigger.apply(x[:300])])
    y = torch.cat([y, torch.full((300,), 3)])
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        for part in torch.randperm(len(x)).split(250):
            loss = nn.functional.cross_entropy(net(x[part]), y[part])
            adam.zero_grad()
            loss.backward()
            adam.step()
    test, _ = pictures(200, seed=9)
    return classifier_of(net, SHAPE, 4), trigger, test


def corner() -> torch.Tensor:
    mask = torch.zeros(1, 8, 8)
    mask[:, :2, :2] = 1
    return mask


def pictures(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *SHAPE, generator=generator) * 0.5
    y = torch.randint(0, 3, (count,), generator=generator)
    for image, label in zip(x, y.tolist()):
        image[:, 2:, 1 + 2 * label : 3 + 2 * label] += 0.35
    return x, y


def test_a_planted_backdoor_is_unlearned_within_the_limit() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    assert (net.predict(trigger.apply(test)) == 3).double().mean() > 0.95
    assert accuracy(net, choose) > 0.95
    found = Unlearning()(net, fit, choose, triggers=[trigger], seed=0)
    assert found.epoch > 0
    assert (found.classifier.predict(trigger.apply(test)) == 3).double().mean() < 0.05
    assert accuracy(found.classifier, choose) >= accuracy(net, choose) - 0.05
    assert (net.predict(trigger.apply(test)) == 3).double().mean() > 0.95


def test_an_epoch_that_costs_too_much_accuracy_is_never_kept() -> None:
    net, trigger, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    ruinous = Unlearning(learning_rate=30.0, epochs=4, max_accuracy_drop=0.02)
    found = ruinous(net, fit, choose, triggers=[trigger], seed=0)
    assert found.epoch == 0
    assert accuracy(found.classifier, choose) == accuracy(net, choose)


def test_settings_and_missing_triggers() -> None:
    net = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), SHAPE, 4)
    with pytest.raises(UsageError, match="expected triggers"):
        Unlearning()(net, pictures(8, seed=0), pictures(8, seed=1), triggers=[], seed=0)
    for wrong in (
        {"share": 0.0},
        {"epochs": 0},
        {"max_accuracy_drop": 1.0},
        {"learning_rate": 0.0},
        {"temperature": 0.5},
    ):
        with pytest.raises(UsageError, match="nc-unlearn"):
            Unlearning(**wrong)  # type: ignore[arg-type]
