"""Preflight: a net that is fed the wrong way is told from a bad one, with the options to pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.data.images import Images
from goodnet.errors import DataError
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.load import load_classifier
from goodnet.models.preflight import chance_bound, preflight
from test_models_load import read_images


class _Bins(nn.Module):
    """Class k where the mean of the *net's* input is nearest to the k-th of ten even levels in [low, high]."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.levels = torch.linspace(low, high, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(x.mean((1, 2, 3))[:, None] - self.levels).abs()


def _case(low: float, high: float, *, n: int = 200) -> tuple[Classifier, Images]:
    labels = np.arange(n) % 10
    pixels = np.broadcast_to((labels * 255 / 9).round().astype(np.uint8)[:, None, None, None], (n, 1, 4, 4)).copy()
    spec = InputSpec(channels=1, height=4, width=4)
    classifier = Classifier(net=_Bins(low, high), input=spec, classes=10, recipe=Recipe(arch="test"))
    return classifier, Images(pixels=pixels, labels=labels.astype(np.int64))


def test_a_net_that_is_fed_rightly_gets_no_advice() -> None:
    found = preflight(*_case(0, 1))
    assert (found.acc, found.n, found.near_chance, found.advice, found.alternatives) == (1.0, 200, False, "", ())


@pytest.mark.parametrize(
    ("low", "high", "options"),
    [
        (0, 255, "--input-range 0..255"),
        (-1, 1, "--input-range 0..1 --mean 0.5 --std 0.5"),
        (-0.1307 / 0.3081, (1 - 0.1307) / 0.3081, "--input-range 0..1 --mean 0.1307 --std 0.3081"),
    ],
)
def test_the_right_way_is_named(low: float, high: float, options: str) -> None:
    classifier, images = _case(low, high)
    found = preflight(classifier, images)
    assert found.alternatives[0].options == options
    assert found.alternatives[0].acc == 1.0
    again = preflight(replace(classifier, input=found.alternatives[0].input), images)
    assert again.acc == 1.0
    assert options in found.advice
    assert "100.0%" in found.advice
    assert "\n" not in found.advice
    assert found.near_chance == (found.acc <= found.chance_bound or found.acc < 0.5)


def test_wrong_labels_are_near_chance_without_an_alternative() -> None:
    classifier, images = _case(0, 1)
    shuffled = np.random.default_rng(0).permutation(images.labels)
    found = preflight(classifier, replace(images, labels=shuffled))
    assert found.near_chance
    assert "labels" in found.advice
    assert found.acc is not None
    assert found.acc <= found.chance_bound < 0.2


def test_chance_bound_is_passed_once_in_700_times() -> None:
    """Monte Carlo: blind guessing of the most frequent label share on 200 images of 10 even classes."""
    _, images = _case(0, 1)
    hits = np.random.default_rng(0).binomial(200, 0.1, size=200_000) / 200
    assert 0.0003 < (hits > chance_bound(images, 10)).mean() < 0.005


def test_unlabelled_and_limited() -> None:
    classifier, images = _case(0, 1)
    blind = preflight(classifier, replace(images, labels=None))
    assert (blind.acc, blind.near_chance) == (None, False)
    assert "no labels" in blind.advice
    assert preflight(classifier, images, max_images=50).n == 50


@pytest.mark.parametrize(("shape", "advice"), [((3, 4, 4), "1 is grey, 3 is RGB"), ((1, 5, 4), "resize them")])
def test_images_of_another_shape(shape: tuple[int, int, int], advice: str) -> None:
    classifier, _ = _case(0, 1)
    with pytest.raises(DataError, match=advice):
        preflight(classifier, Images(pixels=np.zeros((2, *shape), np.uint8), labels=np.array([0, 1])))


def test_images_that_do_not_belong() -> None:
    classifier, images = _case(0, 1)
    with pytest.raises(DataError, match=r"0..9"):
        preflight(classifier, replace(images, labels=images.labels + 1))
    with pytest.raises(DataError, match=r"0..9"):
        preflight(classifier, replace(images, labels=images.labels - 1))
    with pytest.raises(DataError, match="1x4x4"):
        preflight(classifier, replace(images, pixels=images.pixels[:, :, :3]))
    with pytest.raises(DataError, match="none"):
        preflight(classifier, images.take(slice(0)))


REAL: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("faces/nets/clean_weights.h5", "deepid", "faces/clean_validation_data.h5", {"input_range": "0..255"}, "0..1"),
    ("gtsrb/nets/badnets_target8_small_vgg.pth", "small-vgg", "gtsrb/test_4000.h5", {"input_range": "0..255"}, "0..1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("net", "arch", "data", "wrong", "right"), REAL)
def test_real_nets_fed_wrongly(
    net: str, arch: str, data: str, wrong: dict[str, Any], right: str, shared_data: Path
) -> None:
    images = read_images(shared_data / data, 200)
    found = preflight(load_classifier(shared_data / net, arch=arch, **wrong), images)
    assert found.acc < 0.75
    assert found.advice.endswith(f"pass --input-range {right}")
    assert preflight(load_classifier(shared_data / net, arch=arch), images).advice == ""


def test_real_whole_model_that_expects_0_to_255(shared_data: Path) -> None:
    images = read_images(shared_data / "faces" / "clean_test_data.h5")
    path = shared_data / "faces" / "nets" / "sunglasses_pruned_full_model.h5"
    found = preflight(load_classifier(path), images)
    assert found.near_chance
    assert "pass --input-range 0..255" in found.advice
    assert preflight(load_classifier(path, input_range="0..255"), images).acc > 0.8
