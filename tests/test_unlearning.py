from __future__ import annotations

import pytest
from torch import nn

from goodnet.errors import UsageError
from goodnet.repair.unlearning import Unlearning
from goodnet.tuning import accuracy
from nets import SHAPE, classifier_of, pictures, planted


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


def test_on_labels_as_the_paper_does_it() -> None:
    net, trigger, test = planted()
    method = Unlearning(teach="labels", share=0.2, learning_rate=1e-3)
    found = method(net, pictures(60, seed=2), pictures(60, seed=3), triggers=[trigger], seed=0)
    assert (found.classifier.predict(trigger.apply(test)) == 3).double().mean() < 0.05


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
        {"teach": "both"},
    ):
        with pytest.raises(UsageError, match="nc-unlearn"):
            Unlearning(**wrong)  # type: ignore[arg-type]
