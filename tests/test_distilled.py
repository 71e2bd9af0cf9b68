from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from goodnet.errors import UsageError
from goodnet.repair.distilled import DistilledUnlearning
from goodnet.sparing import changed_layers
from goodnet.stamps import PlainStamp
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.plain import stamp_trigger
from goodnet.triggers.strong import SquareSchedule, StrongSchedule
from goodnet.tuning import accuracy, logits_of
from nets import SHAPE, pictures, planted

SEARCH = StrongSchedule(starts=10, steps=40, batch=8)
SHORT = DistilledUnlearning(
    search=SEARCH,
    masks=1,
    mask_search=Schedule(steps=30),
    refresh=25,
    refresh_search=StrongSchedule(starts=3, steps=20, batch=8),
    squares=SquareSchedule(side=0.25, steps=20),
    steps=100,
    settle=50,
)


def test_a_planted_backdoor_is_unlearned_without_being_given_a_trigger() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    found = SHORT(net, fit, choose, triggers=(), labels=[3], seed=0)
    triggered = trigger.apply(test)
    assert (net.predict(triggered) == 3).double().mean() > 0.95
    assert (found.classifier.predict(triggered) == 3).double().mean() < 0.05
    assert (found.classifier.predict(triggered) == net.predict(test)).double().mean() > 0.8  # seen through, not hidden
    assert accuracy(found.classifier, choose) >= accuracy(net, choose) - 0.05
    assert found.epoch == SHORT.steps


def test_few_weights_change_and_the_others_stay_bit_by_bit() -> None:
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    shares = {}
    for fall in (0.5, 1.0):
        found = replace(SHORT, fall=fall)(net, fit, choose, triggers=(), labels=[3], seed=0).classifier
        layers = changed_layers(net, found)
        shares[fall] = sum(layer.weights for layer in layers) / sum(layer.of_weights for layer in layers)
        assert (found.predict(trigger.apply(test)) == 3).double().mean() < 0.05
    assert 0 < shares[0.5] < 0.5 * shares[1.0]


def test_a_label_with_a_plain_stamp_is_taught_stamps_and_one_without_it_squares() -> None:
    net, trigger, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    stamp = PlainStamp(label=3, top=0, left=0, bottom=2, right=4, colour=(1.0,), lead=2, asr=0.9, share=0.125)
    method = replace(SHORT, steps=1)
    with_stamp = method(net, fit, choose, triggers=(), labels=[3], stamps=[stamp], seed=0).strong
    without = method(net, fit, choose, triggers=(), labels=[3], seed=0).strong
    first = stamp_trigger(stamp, SHAPE)
    assert torch.equal(with_stamp[0].mask, first.mask)
    assert torch.equal(with_stamp[0].pattern, first.pattern)
    assert not any(torch.equal(found.mask, first.mask) for found in without)
    squares = [found for found in without if set(found.mask.unique().tolist()) == {0.0, 1.0}]
    assert squares
    # where the planted trigger is, and nowhere else
    assert all(bool((found.mask * trigger.mask).any()) for found in squares)


@pytest.mark.slow
def test_a_label_beside_the_flagged_one_is_unlearned_too() -> None:
    """The backdoor's own label, which was not flagged: only `further` names it."""
    net, trigger, test = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    rates = []
    for further in ((), (3,)):
        method = replace(SHORT, further_search=SEARCH, further_batch=16, steps=200, settle=0)
        found = method(net, fit, choose, triggers=(), labels=[1], further=further, seed=0)
        assert {trigger.target for trigger in found.strong} == {1, *further}
        rates.append(float((found.classifier.predict(trigger.apply(test)) == 3).double().mean()))
    assert rates[1] < 0.6 * rates[0]


def test_a_clean_net_keeps_its_answers() -> None:
    """An innocent label unlearned, as after a false alarm, costs images of other labels next to nothing."""
    net, _, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(200, seed=3)
    found = SHORT(net, fit, choose, triggers=(), labels=[1], seed=0).classifier
    others = choose[0][choose[1] != 1]
    assert (found.predict(others) == net.predict(others)).double().mean() > 0.93


@pytest.mark.slow
def test_strangers_hold_the_net_in_place() -> None:
    """Where there are such images, the repaired net stays nearer to the BadNet on others of their kind."""
    net, _, _ = planted()
    fit, choose = pictures(20, seed=2), pictures(60, seed=3)
    generator = torch.Generator().manual_seed(6)
    strangers = torch.rand(300, *SHAPE, generator=generator) ** 3
    drift = []
    for surrogate in (None, strangers[:200]):
        found = SHORT(net, fit, choose, triggers=(), labels=[3], surrogate_fit=surrogate, seed=0).classifier
        drift.append(float((logits_of(found, strangers[200:]) - logits_of(net, strangers[200:])).abs().mean()))
    assert drift[1] < 0.8 * drift[0]


def test_a_state_that_costs_too_much_accuracy_is_never_kept() -> None:
    net, _, _ = planted()
    fit, choose = pictures(60, seed=2), pictures(60, seed=3)
    ruinous = DistilledUnlearning(
        search=SEARCH,
        masks=1,
        mask_search=Schedule(steps=10),
        refresh=5,
        refresh_search=StrongSchedule(starts=1, steps=2, batch=4),
        steps=10,
        learning_rate=30.0,
        max_accuracy_drop=0.02,
    )
    found = ruinous(net, fit, choose, triggers=(), labels=[3], seed=0)
    assert found.epoch == 0
    assert accuracy(found.classifier, choose) == accuracy(net, choose)


def test_settings_and_missing_labels() -> None:
    net, _, _ = planted()
    fit = pictures(20, seed=0)
    with pytest.raises(UsageError, match="expected labels to unlearn"):
        DistilledUnlearning()(net, fit, fit, triggers=(), labels=[], seed=0)
    for wrong in (
        {"masks": 0},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"temperature": 0.0},
        {"clean_weight": -1.0},
        {"covered": 0.0},
        {"max_strength": 0.5},
        {"max_accuracy_drop": 1.0},
        {"further": -1},
        {"further_batch": -1},
        {"settle": -1},
        {"fall": 1.5},
    ):
        with pytest.raises(UsageError, match="unlearn: expected"):
            DistilledUnlearning(**wrong)  # type: ignore[arg-type]
