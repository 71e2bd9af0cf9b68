from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from goodnet.data.images import Images
from goodnet.errors import UsageError
from goodnet.judging import Limits, held_out_triggers, judge_repair, search_again, triggered
from goodnet.record import LabelResult, Measured, Poisoned, Share
from goodnet.triggers.inversion import Schedule, invert
from nets import pictures, planted


def share(value: float, n: int = 100) -> Share:
    return Share(value=value, low=max(0, value - 0.1), high=min(1, value + 0.1), n=n)


def measured(acc: float | None, **poisoned: float | None) -> Measured:
    rates = {name: None if value is None else share(value) for name, value in poisoned.items()}
    figures = Poisoned(name="t", target=3, asr=rates.get("asr"), ra=None, detection=rates.get("detection"))
    return Measured(acc=None if acc is None else share(acc), fpr=None, poisoned=(figures,) if poisoned else ())


BEFORE = measured(0.95, asr=1.0)
GOOD = measured(0.93, asr=0.02, detection=0.9)
SMALL = LabelResult(label=3, status="searched", mask_norm=5.0, norm_ratio=0.3, held_out_asr=0.9)


@pytest.mark.parametrize(
    ("after", "again", "limits", "accepted", "reason"),
    [
        (GOOD, (), {}, True, "all limits are kept"),
        (measured(0.89, asr=0.0), (), {}, False, "--max-accuracy-drop"),
        (measured(0.90, asr=0.0), (), {}, True, "all limits are kept"),  # exactly the limit
        (measured(0.95, asr=0.11), (), {}, False, "--max-asr"),
        (measured(0.95, asr=0.10), (), {}, True, "all limits are kept"),
        (GOOD, (), {"min_detection": 0.95}, False, "--min-detection"),
        (GOOD, (SMALL,), {}, False, "still there"),
        (GOOD, (replace(SMALL, norm_ratio=0.51),), {}, True, "all limits are kept"),
        (GOOD, (replace(SMALL, held_out_asr=0.5),), {}, True, "all limits are kept"),
        (GOOD, (replace(SMALL, status="failed", mask_norm=None, norm_ratio=None),), {}, True, "all limits are kept"),
        (measured(0.95), (), {}, None, "backdoor was not judged"),
        (measured(None, asr=0.0), (), {}, None, "ACC was not judged"),
        (measured(None, asr=0.5), (), {}, False, "--max-asr"),  # what fails fails, whatever else is unknown
    ],
)
def test_acceptance(after: Measured, again: tuple[LabelResult, ...], limits: dict[str, float], accepted: bool | None,
                    reason: str) -> None:  # fmt: skip
    verdict, reasons = judge_repair(BEFORE, after, again, Limits(**limits))
    assert verdict is accepted
    assert any(reason in text for text in reasons)


@pytest.mark.parametrize("name", ["max_accuracy_drop", "max_asr", "min_detection"])
def test_limits_are_shares(name: str) -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
            Limits(**{name: value})


def test_a_judges_trigger_is_none_that_the_scan_found() -> None:
    net, _, _ = planted()
    fit, schedule = pictures(60, seed=2), Schedule(steps=60, batch=8)
    found = invert(net, *fit, [3], schedule, seed=0)[0].trigger
    (judge,) = held_out_triggers(net, [3], fit, schedule, seed=0)
    assert judge.target == 3
    assert not torch.allclose(judge.mask, found.mask, atol=0.05)
    assert held_out_triggers(net, [], fit, schedule, seed=0) == []


def test_what_is_measured_is_twice_the_trigger_on_images_of_other_classes() -> None:
    _, trigger, _ = planted()
    faint = replace(trigger, mask=trigger.mask * 0.3)
    x, y = pictures(30, seed=5)
    y[:4] = 3
    images = Images(pixels=x.numpy(), labels=y.numpy(), name="judge")
    made = triggered(faint, images, y, name="mine")
    assert len(made) == 26
    assert made.true_labels is not None
    assert torch.equal(torch.from_numpy(made.true_labels), y[4:])
    assert (made.labels == 3).all()
    torch.testing.assert_close(torch.from_numpy(made.pixels[:, 0, 0, 0]), x[4:, 0, 0, 0] * 0.4 + 0.6)


def test_a_backdoor_that_is_still_there_is_found_again() -> None:
    net, _, _ = planted()
    schedule = Schedule(steps=80, batch=8)
    fit, judge = pictures(60, seed=2), pictures(30, seed=4)
    (row,) = search_again(net, [3], schedule, 40.0, fit, judge, seed=0)
    assert row.status == "searched"
    assert row.norm_ratio is not None
    assert row.norm_ratio < 0.5
    assert judge_repair(BEFORE, GOOD, [row], Limits())[0] is False
    assert search_again(net, [3], schedule, None, fit, judge, seed=0) == ()
