from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import ModelError, UsageError
from goodnet.repair.gangsweep import Sweep
from goodnet.triggers.generator import GeneratorSchedule
from goodnet.tuning import accuracy
from nets import classifier_of, pictures, planted

QUICK = GeneratorSchedule(turns=60, batch=16, first_weight=0.05)


@pytest.mark.parametrize("teach", ["class-n", "labels"])
def test_a_planted_backdoor_is_swept_out_within_the_limit(teach: str) -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    method = Sweep(teach=teach, rounds=2, schedule=QUICK, learning_rate=1e-3)
    made = method(net, fit, choose, targets=[3], seed=0).classifier
    assert made.refuses == (teach == "class-n")
    answers = made.predict(trigger.apply(test))
    assert (answers == 3).double().mean() < 0.1
    if teach == "class-n":
        assert (answers == 4).double().mean() > 0.9
    assert accuracy(made, choose) >= accuracy(net, choose) - 0.05
    assert (net.predict(trigger.apply(test)) == 3).double().mean() > 0.95  # the net itself is as it was


def test_generator_and_net_take_turns() -> None:
    net, _, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    stages: list[str] = []
    method = Sweep(rounds=2, schedule=GeneratorSchedule(turns=10, batch=16), epochs=1)
    method(net, fit, choose, targets=[3, 0], seed=0, progress=lambda stage, done, total: stages.append(stage))
    order = list(dict.fromkeys(stages))
    assert order[:3] == ["round 1, generator", "round 1, sweep", "round 2, generator"]


def test_it_ends_where_the_generator_finds_nothing_any_more() -> None:
    """A net that gives label 1 to nothing at all: the first round is kept as it is, and no second one follows."""
    head = nn.Linear(64, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([5.0, 0.0]))
    net = classifier_of(nn.Sequential(nn.Flatten(), head), (1, 8, 8), 2)
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = (x, torch.zeros(24, dtype=torch.int64))
    stages: list[str] = []
    schedule = GeneratorSchedule(turns=5, batch=4)
    method = Sweep(schedule=schedule, epochs=2, learning_rate=1e-4)
    made = method(net, data, data, targets=[1], seed=0, progress=lambda stage, *_: stages.append(stage)).classifier
    assert list(dict.fromkeys(stages)) == ["round 1, generator", "round 1, sweep", "round 2, generator"]
    assert accuracy(made, data) >= 0.95


def test_settings_and_nets_without_a_linear_end() -> None:
    net, _, _ = planted()
    fit, choose = pictures(8, seed=0), pictures(8, seed=1)
    for targets in ([], [4], [-1]):
        with pytest.raises(UsageError, match="expected labels to sweep for"):
            Sweep()(net, fit, choose, targets=targets, seed=0)
    for wrong in (
        {"teach": "both"},
        {"rounds": 0},
        {"epochs": 0},
        {"share": 0.0},
        {"max_strength": 0.5},
        {"temperature": 0.5},
        {"max_accuracy_drop": 1.0},
        {"learning_rate": float("nan")},
    ):
        with pytest.raises(UsageError, match="gangsweep"):
            Sweep(**wrong)  # type: ignore[arg-type]
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="last layer is linear"):
        Sweep()(classifier_of(convolution, (1, 8, 8), 4), (torch.rand(8, 1, 8, 8), fit[1]), choose, targets=[3], seed=0)
