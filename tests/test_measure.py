"""ACC, FPR, ASR, RA, detection and DER against a slow count, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from goodnet.data.images import Images
from goodnet.errors import DataError
from goodnet.measure import der, measure, share
from goodnet.models.classifier import Classifier
from nets import classifier_of

CLASSES = 4


class Reader(nn.Module):
    """Answers with the number that is written in the first pixel, in steps of 1/255."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        written = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(written, self.outputs).float()


def reader(*, refuses: bool) -> Classifier:
    return classifier_of(Reader(CLASSES + refuses), (1, 2, 2), CLASSES, refuses=refuses)


def answering(answers: Any, **columns: Any) -> Images:
    """Images on which the reader gives `answers`."""
    pixels = np.zeros((len(answers), 1, 2, 2), np.uint8)
    pixels[:, 0, 0, 0] = answers
    return Images(pixels=pixels, **columns)


def count(hits: list[bool]) -> tuple[int, int] | None:
    return (sum(hits), len(hits)) if hits else None


def counted(share: Any) -> tuple[int, int] | None:
    return None if share is None else (round(share.value * share.n), share.n)


@pytest.mark.parametrize("seed", range(40))
def test_figures_against_a_slow_count(seed: int) -> None:
    random = np.random.default_rng(seed)
    refuses, n = bool(seed % 2), int(random.integers(0, 9))
    answers = random.integers(0, CLASSES + refuses, n)
    targets = random.integers(0, CLASSES, n) if seed % 3 else np.full(n, 1)
    true = random.integers(0, CLASSES, n) if seed % 5 else None
    present = random.random(n) < 0.7 if seed % 7 else None
    poisoned = answering(answers, labels=targets, true_labels=true, trigger_present=present, name="set")
    clean_answers, labels = random.integers(0, CLASSES + refuses, 12), random.integers(0, CLASSES, 12)
    found = measure(reader(refuses=refuses), answering(clean_answers, labels=labels), [poisoned])
    assert counted(found.acc) == count([a == b for a, b in zip(clean_answers, labels)])
    assert counted(found.fpr) == (count([a == CLASSES for a in clean_answers]) if refuses else None)
    asr, ra, detection, seen = [], [], [], set()
    for i in range(n):
        if present is not None and not present[i]:
            continue
        seen.add(int(targets[i]))
        detection.append(answers[i] == CLASSES)
        if true is None or true[i] != targets[i]:
            asr.append(answers[i] == targets[i])
        if true is not None:
            ra.append(answers[i] == true[i])
    (figures,) = found.poisoned
    assert counted(figures.asr) == count(asr)
    assert counted(figures.ra) == count(ra)
    assert counted(figures.detection) == (count(detection) if refuses else None)
    assert figures.target == (seen.pop() if len(seen) == 1 else None)
    assert figures.der is None


def test_der_by_hand() -> None:
    """ASR 3/4 -> 1/4 and ACC 4/4 -> 3/4: (1/2 - 1/4 + 1) / 2; a gain in ACC or in ASR counts as nothing."""
    clean = answering([0, 1, 2, 3], labels=np.arange(4))
    poisoned = answering([0, 0, 0, 2], labels=np.zeros(4, np.int64), true_labels=np.array([1, 2, 3, 2]))
    before = measure(reader(refuses=False), clean, [poisoned])
    clean = answering([0, 1, 2, 4], labels=np.arange(4))
    poisoned = answering([0, 4, 4, 2], labels=np.zeros(4, np.int64), true_labels=np.array([1, 2, 3, 2]))
    after = measure(reader(refuses=True), clean, [poisoned], before=before)
    assert after.poisoned[0].der == pytest.approx((1 / 2 - 1 / 4 + 1) / 2)
    assert (before.poisoned[0].der, counted(after.poisoned[0].detection)) == (None, (2, 4))
    assert der(0.9, 0.1, 0.8, 0.95) == pytest.approx((0.8 + 1) / 2)
    assert der(0.1, 0.9, 0.8, 0.8) == pytest.approx(0.5)
    assert (der(1, 0, 1, 1), der(0, 0, 1, 0)) == (1, 0)


def test_what_is_not_known_is_none() -> None:
    unlabelled = answering([0, 4])
    targets = np.zeros(2, np.int64)
    own_class = answering([0, 0], labels=targets, true_labels=targets)
    found = measure(reader(refuses=True), unlabelled, [own_class])
    assert (found.acc, counted(found.fpr)) == (None, (1, 2))
    assert (found.poisoned[0].asr, counted(found.poisoned[0].ra)) == (None, (2, 2))
    assert measure(reader(refuses=True), None).acc is None
    assert share(np.empty(0, np.bool_)) is None


def test_sets_that_do_not_fit() -> None:
    net = reader(refuses=False)
    with pytest.raises(DataError, match="attacker's targets"):
        measure(net, None, [answering([0, 1])])
    with pytest.raises(DataError, match=r"labels 0\.\.3"):
        measure(net, answering([0], labels=np.array([4])))
    with pytest.raises(DataError, match=r"labels 0\.\.3"):
        measure(net, None, [answering([0], labels=np.array([0]), true_labels=np.array([9]))])
    with pytest.raises(DataError, match="1x3x3"):
        measure(net, Images(pixels=np.zeros((1, 1, 3, 3), np.uint8)))


def test_batches_and_progress() -> None:
    random = np.random.default_rng(0)
    answers = random.integers(0, CLASSES, 2500)
    told: list[tuple[int, int]] = []
    poisoned = answering(answers[:700], labels=np.zeros(700, np.int64))
    found = measure(
        reader(refuses=False),
        answering(answers, labels=answers),
        [poisoned],
        progress=lambda stage, done, total: told.append((done, total)),
    )
    assert found.acc is not None
    assert (found.acc.value, found.acc.n) == (1, 2500)
    assert counted(found.poisoned[0].asr) == (int((answers[:700] == 0).sum()), 700)
    assert told == [(2500, 3200), (3200, 3200)]


def test_nothing_of_the_net_is_changed() -> None:
    weight = torch.randn(CLASSES, 4)
    layer = nn.Linear(4, CLASSES)
    layer.weight.data.copy_(weight)
    net = classifier_of(nn.Sequential(nn.Flatten(), layer), (1, 2, 2), CLASSES)
    measure(net, answering([0, 1, 2]))
    assert torch.equal(layer.weight, weight)
    assert layer.weight.grad is None
