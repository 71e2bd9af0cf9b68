"""GoodNets of one net: grown by a row for class N, with a filter in front of the last layer, or watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.export import save_goodnet
from goodnet.models import arch, surgery
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import filtered_from, grown_from, seconded_from, strip_from, ted_from, watched_from
from nets import classifier_of, linear
from test_goodnet_net import mutate, put, tensor

SPECS = {
    "mlp": (
        {"classes": 4, "hidden": [5], "channels": 1, "height": 3, "width": 3},
        InputSpec(channels=1, height=3, width=3),
    ),
    "deepid": ({"classes": 7}, InputSpec(channels=3, height=55, width=47, scale=255.0)),
    "wrn-16-1": ({"classes": 5}, InputSpec(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.2,) * 3)),
}


def net_of(name: str) -> Classifier:
    options, spec = SPECS[name]
    recipe = Recipe(arch=name, options=options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Classifier(
            net=arch.build(recipe), input=spec, classes=int(str(options["classes"])), recipe=recipe, name=name
        )


def a_filter(net: Classifier) -> tuple[Tensor, Tensor]:
    width = surgery.features(net, surgery.output_layer(net), torch.rand(1, *net.input.shape)).shape[1]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, width, generator=generator), torch.tensor([0.1, -0.2])


@pytest.mark.parametrize("name", SPECS)
def test_a_grown_net_is_the_net_and_a_row_of_zeros(name: str) -> None:
    net = net_of(name)
    x = torch.rand(16, *net.input.shape)
    grown = grown_from(net)
    assert (grown.refuses, grown.classes) == (True, net.classes)
    torch.testing.assert_close(grown.logits(x)[:, :-1], net.logits(x))
    assert (grown.logits(x)[:, -1] == 0).all()
    with torch.no_grad():
        grown.net.get_submodule(surgery.output_layer(grown)).weight[:] = 0.0  # type: ignore[index]
    assert net.logits(x).abs().sum() > 0  # a copy was grown


@pytest.mark.parametrize("name", SPECS)
def test_a_filter_refuses_exactly_what_lies_beyond_an_offset(name: str) -> None:
    net = net_of(name)
    x = torch.rand(64, *net.input.shape)
    directions, offsets = a_filter(net)
    features = surgery.features(net, surgery.output_layer(net), x)
    offsets = torch.stack([(features @ row).median() for row in directions])
    refused = torch.tensor([any(float(f @ d) > float(o) + 1e-5 for d, o in zip(directions, offsets)) for f in features])
    kept = torch.tensor([all(float(f @ d) < float(o) - 1e-5 for d, o in zip(directions, offsets)) for f in features])
    assert refused.any()
    assert kept.any()
    answers = filtered_from(net, directions, offsets).predict(x)
    assert (answers[refused] == net.classes).all()
    assert torch.equal(answers[kept], net.predict(x)[kept])


def a_watch(net: Classifier) -> tuple[Tensor, Tensor, Tensor]:
    """Labels 0 and 1 are watched, each with a threshold at the median, the others not."""
    directions, _ = a_filter(net)
    x = torch.rand(64, *net.input.shape, generator=torch.Generator().manual_seed(1))
    features = surgery.features(net, surgery.output_layer(net), x)
    offsets = (features @ directions.T).median(0).values
    groups = torch.full((net.classes,), -1)
    groups[:2] = torch.tensor([0, 1])
    return directions, offsets, groups


def twin_of(net: Classifier) -> Classifier:
    twin = surgery.clone(net)
    with torch.no_grad():
        for parameter in twin.net.parameters():
            parameter.mul_(-0.5)
    return twin


def made_of(kind: str, net: Classifier) -> Classifier:
    if kind == "grown":
        return grown_from(net)
    if kind == "filter":
        return filtered_from(net, *a_filter(net))
    if kind == "strip":
        return strip_from(net, twin_of(net), torch.rand(5, *net.input.shape), 0.7)
    if kind == "ted":
        images, labels = torch.rand(9, *net.input.shape), torch.arange(9) % 2
        return ted_from(net, twin_of(net), images, labels, features=20, threshold=0.7)
    watched = watched_from(net, *a_watch(net))
    if kind == "combined":
        return seconded_from(watched, twin_of(net), threshold=0.2)
    return watched if kind == "watch" else seconded_from(watched, twin_of(net))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "mlp")) for name in SPECS])
def test_only_what_is_answered_with_a_watched_label_is_refused_and_by_its_own_direction(name: str) -> None:
    net = net_of(name)
    x = torch.rand(400, *net.input.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():  # so that every label is an answer
        last = net.net.get_submodule(surgery.output_layer(net))
        last.bias -= net.logits(x).mean(0)  # type: ignore[operator]
    directions, offsets, groups = a_watch(net)
    features, answers = surgery.features(net, surgery.output_layer(net), x), net.predict(x)
    made = watched_from(net, directions, offsets, groups)
    scores = features @ directions.T - offsets
    expected = torch.tensor([groups[a] >= 0 and bool(row[groups[a]] > 0) for a, row in zip(answers.tolist(), scores)])
    sure = (scores.abs() > 1e-4).all(1)
    assert {bool(e) for e in expected[answers < 2]} == {True, False}
    assert (answers >= 2).any() or net.classes == 2
    assert torch.equal((made.predict(x) == net.classes)[sure], expected[sure])
    assert torch.equal(made.predict(x)[sure & ~expected], answers[sure & ~expected])
    twin = twin_of(net)
    both = seconded_from(made, twin).predict(x)
    assert torch.equal((both == net.classes)[sure], expected[sure])
    asked = sure & ~expected & (groups[answers] >= 0)
    assert asked.any()
    assert torch.equal(both[asked], twin.predict(x)[asked])
    assert torch.equal(both[sure & (groups[answers] < 0)], answers[sure & (groups[answers] < 0)])


@pytest.mark.parametrize("kind", ["grown", "filter", "watch", "second-opinion", "combined", "strip", "ted"])
@pytest.mark.parametrize("name", SPECS)
def test_read_again_it_decides_the_same(kind: str, name: str, tmp_path: Path) -> None:
    net = net_of(name)
    made = made_of(kind, net)
    if kind == "grown":
        with torch.no_grad():
            made.net.get_submodule(surgery.output_layer(made)).weight[-1] = 0.3  # type: ignore[index]
    digest = save_goodnet(made, tmp_path / "good.safetensors")
    loaded = load_goodnet(tmp_path / "good.safetensors", sha256=digest)
    assert (loaded.refuses, loaded.classes, loaded.input, loaded.sha256) == (True, net.classes, net.input, digest)
    x = torch.rand(32, *net.input.shape)
    torch.testing.assert_close(loaded.logits(x), made.logits(x), rtol=0, atol=0)


OPTIONS = ("recipe", "options")
HOSTILE: dict[str, tuple[str, Callable[..., Any], str]] = {
    "unknown kind": ("grown", put(*OPTIONS, "kind", value="magic"), "damaged"),
    "kind a list": ("grown", put(*OPTIONS, "kind", value=["grown"]), "damaged"),
    "no such layer": ("grown", put(*OPTIONS, "layer", value="fc9"), "linear layer"),
    "not a linear layer": ("grown", put(*OPTIONS, "layer", value="relu"), "linear layer"),
    "the whole net": ("filter", put(*OPTIONS, "layer", value=""), "linear layer"),
    "layer of another width": ("grown", put(*OPTIONS, "layer", value="fc1"), "the file holds"),
    "directions beyond memory": ("filter", put(*OPTIONS, "directions", value=1 << 20), "the file holds"),
    "directions a word": ("filter", put(*OPTIONS, "directions", value="2"), "damaged"),
    "no net": ("grown", put(*OPTIONS, "net", value=None), "damaged"),
    "other classes": ("grown", put("classes", value=9), r"9 \+ 1 outputs"),
    "a filter called grown": ("filter", put(*OPTIONS, "kind", value="grown"), "the file holds"),
    "a group too many": ("watch", tensor("fc2.groups", lambda old: old + 2), "group to be from -1 to 1"),
    "a group below none": ("watch", tensor("fc2.groups", lambda old: old - 1), "group to be from -1 to 1"),
    "groups beyond memory": ("watch", put(*OPTIONS, "groups", value=1 << 20), "the file holds"),
    "a watch called filter": ("watch", put(*OPTIONS, "kind", value="filter"), "damaged"),
    "no second net": ("second-opinion", put(*OPTIONS, "good", value=None), "damaged"),
    "a stray weight": ("second-opinion", tensor("evil.weight", lambda old: old), "'bad' and 'good' alone"),
    "a stray weight in a strip": ("strip", tensor("evil.weight", lambda old: old), "'bad' and 'good' alone"),
    "nothing to blend with": ("strip", tensor("overlays", None), "images to blend with"),
    "other overlays": ("strip", put(*OPTIONS, "overlays", value=6), "6 finite images to blend with"),
    "overlays of another shape": (
        "strip",
        tensor("overlays", lambda old: old[:, :, :2].contiguous()),
        "fails on the input",
    ),
    "overlays that are NaN": ("strip", tensor("overlays", lambda old: old * torch.nan), "images to blend with"),
    "nothing to compare with": ("ted", tensor("images", None), "9 finite images to compare with"),
    "other images to compare with": ("ted", put(*OPTIONS, "references", value=8), "8 finite images to compare with"),
    "more images than are compared": ("ted", put(*OPTIONS, "references", value=1 << 20), "damaged"),
    "classes that are no numbers": ("ted", tensor("labels", lambda old: old.float()), "9 classes of the images"),
    "a class below 0": ("ted", tensor("labels", lambda old: old - 1), "9 classes of the images"),
    "images of another shape": (
        "ted",
        tensor("images", lambda old: old[:, :, :2].contiguous()),
        "fails on the images to compare with",
    ),
    "a layer that is not there": ("ted", put(*OPTIONS, "layers", value=["fc9"]), "layers of the net to look at"),
    "no layers": ("ted", put(*OPTIONS, "layers", value=[]), "layers of the net to look at"),
    "a layer twice": ("ted", put(*OPTIONS, "layers", value=["fc1", "fc1"]), "layers of the net to look at"),
    "layers a number": ("ted", put(*OPTIONS, "layers", value=3), "damaged"),
    "a threshold that is a word": ("combined", put(*OPTIONS, "threshold", value="1"), "damaged"),
    "a threshold below 0": ("strip", put(*OPTIONS, "threshold", value=-1.0), "damaged"),
    "NaN offsets": ("filter", tensor("fc2.offsets", lambda old: old * torch.nan), "NaN"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind, change, message = HOSTILE[name]
    net, path = net_of("mlp"), tmp_path / "good.safetensors"
    save_goodnet(made_of(kind, net), path)
    mutate(path, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_goodnet(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_nets_that_cannot_be_grown_say_why() -> None:
    with pytest.raises(ModelError, match="last layer is linear"):
        grown_from(linear((1, 6, 6), 3))
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="last layer is linear"):
        grown_from(classifier_of(convolution, (1, 6, 6), 4))
    with pytest.raises(ModelError, match="directions of 5"):
        filtered_from(net_of("mlp"), torch.zeros(1, 6), torch.zeros(1))
    net = net_of("mlp")
    directions, offsets, groups = a_watch(net)
    for wrong in (groups[1:], groups + 2, groups - 1):
        with pytest.raises(ModelError, match="a group for each of"):
            watched_from(net, directions, offsets, wrong)
    with pytest.raises(ModelError, match="a watched net and a plain one"):
        seconded_from(grown_from(net), net)
