from __future__ import annotations

import pytest
import torch

from goodnet.errors import UsageError
from goodnet.repair.retrain import Retraining
from goodnet.triggers.trigger import Trigger
from goodnet.tuning import accuracy
from nets import SHAPE, pictures, planted

QUICK = Retraining(epochs=15)


def test_known_poison_becomes_class_n_and_accuracy_stays() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    poisoned = trigger.apply(pictures(60, seed=4)[0])
    found = QUICK(net, fit, choose, poisoned_fit=[poisoned[:30]], poisoned_choose=[poisoned[30:]], seed=0)
    made = found.classifier
    assert made.refuses
    assert made.logits(test[:1]).shape == (1, 5)
    assert (made.predict(trigger.apply(test)) == 4).double().mean() > 0.95
    assert (made.predict(test) == 4).double().mean() < 0.05
    assert accuracy(made, choose) >= accuracy(net, choose) - 0.05
    assert (net.predict(trigger.apply(test)) == 3).double().mean() > 0.95  # the net itself is as it was


def test_several_sets_of_unequal_size() -> None:
    net, trigger, test = planted()
    mask = torch.zeros(1, 8, 8)
    mask[:, 5:, 5:] = 1
    other = Trigger(mask=mask, pattern=torch.ones(SHAPE), target=0)
    x = pictures(80, seed=4)[0]
    made = QUICK(
        net,
        pictures(60, seed=2),
        pictures(60, seed=3),
        poisoned_fit=[trigger.apply(x[:40]), other.apply(x[40:56])],
        poisoned_choose=[trigger.apply(x[56:68]), other.apply(x[68:])],
        seed=0,
    ).classifier
    assert (made.predict(trigger.apply(test)) == 4).double().mean() > 0.95
    assert (made.predict(other.apply(test)) == 4).double().mean() > 0.6  # 16 pictures, and no backdoor to ride on
    assert (made.predict(test) == 4).double().mean() < 0.1


def test_clean_images_are_held_against_poison_that_cannot_be_told_from_them() -> None:
    """Poison without a trigger: refusing it would refuse everything, which the limit on ACC does not allow."""
    net, _, _ = planted()
    choose = pictures(60, seed=3)
    x = pictures(60, seed=4)[0]
    made = QUICK(net, pictures(60, seed=2), choose, poisoned_fit=[x[:30]], poisoned_choose=[x[30:]], seed=0).classifier
    assert accuracy(made, choose) >= accuracy(net, choose) - 0.05


def test_settings_and_missing_poison() -> None:
    net, _, _ = planted()
    with pytest.raises(UsageError, match="expected triggered images"):
        QUICK(net, pictures(8, seed=0), pictures(8, seed=1), poisoned_fit=[], poisoned_choose=[], seed=0)
    for wrong in ({"epochs": 0}, {"max_accuracy_drop": 1.0}, {"learning_rate": 0.0}, {"temperature": 0.5}):
        with pytest.raises(UsageError, match="retrain"):
            Retraining(**wrong)  # type: ignore[arg-type]
