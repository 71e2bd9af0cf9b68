"""GoodNets made: a net, or two, joined to what decides on class N."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from goodnet.errors import ModelError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.goodnet import FilterHead, GoodNet, SecondOpinion, StripGoodNet, TedGoodNet, WatchHead, grown_linear
from goodnet.models.trace import whole_layers


def goodnet_from(bad: Classifier, good: Classifier, *, threshold: float = 0.0) -> Classifier:
    """Joins a BadNet and its repaired twin into a Classifier with class N.

    Raises:
        ModelError: they differ in input or number of classes.
    """
    _check_pair(bad, good)
    return _pair(
        bad,
        good,
        GoodNet(bad=bad.net, good=good.net, threshold=threshold),
        {"kind": "disagreement", "threshold": threshold},
    )


def strip_from(bad: Classifier, good: Classifier, overlays: Tensor, threshold: float) -> Classifier:
    """Joins a BadNet and its repaired twin; class N where blends with `overlays` leave the BadNet too sure.

    Args:
        overlays: (B, C, H, W) clean images in [0, 1].
        threshold: in nats (`StripGoodNet`).

    Raises:
        ModelError: the nets differ in input or number of classes.
    """
    _check_pair(bad, good)
    prepared = bad.prepare(overlays.to(bad.device))
    return _pair(
        bad,
        good,
        StripGoodNet(bad=bad.net, good=good.net, overlays=prepared, threshold=threshold),
        {"kind": "strip", "threshold": threshold, "overlays": len(overlays)},
    )


def ted_from(
    bad: Classifier, good: Classifier, images: Tensor, labels: Tensor, *, features: int, threshold: float
) -> Classifier:
    """Joins a BadNet and its repaired twin; class N where an image takes another way than references of its answer.

    Args:
        images, labels: the references: clean images (R, C, H, W) in [0, 1] and what they show (R,) int64.
        features, threshold: see `TedGoodNet`.

    Raises:
        ModelError: the nets differ in input or number of classes, or the BadNet has no layer to look at.
    """
    _check_pair(bad, good)
    layers = whole_layers(bad.net, bad.input.shape, bad.device)
    if not layers:
        raise ModelError(f"{bad.name}: expected convolutions or linear layers to look at, found none; use strip")
    net = TedGoodNet(
        bad=bad.net,
        good=good.net,
        layers=layers,
        features=features,
        images=bad.prepare(images.to(bad.device)),
        labels=labels.to(bad.device),
        threshold=threshold,
    )
    options = {"kind": "ted", "threshold": threshold, "references": len(images), "features": features}
    return _pair(bad, good, net, {**options, "layers": layers})


def _check_pair(bad: Classifier, good: Classifier) -> None:
    if (bad.input, bad.classes) != (good.input, good.classes) or bad.refuses or good.refuses:
        raise ModelError(
            f"GoodNet: expected two plain nets of the same input and classes, got {bad.input.describe()} with "
            f"{bad.classes} and {good.input.describe()} with {good.classes}"
        )


def _pair(bad: Classifier, good: Classifier, net: torch.nn.Module, options: dict[str, Any]) -> Classifier:
    recipes = {"bad": recipe_json(bad.recipe), "good": recipe_json(good.recipe)}
    return Classifier(
        net=net,
        input=bad.input,
        classes=bad.classes,
        recipe=Recipe(arch="goodnet", options={**options, **recipes}),
        refuses=True,
        name=f"GoodNet of {bad.name}",
        notes=bad.notes,
    )


def grown_from(classifier: Classifier) -> Classifier:
    """A copy of the net whose last layer has a row more, of zeros, for class N; the other rows are as they were.

    Raises:
        ModelError: the net's last layer is not linear.
    """
    layer = surgery.output_layer(classifier)
    grown = surgery.clone(classifier)
    surgery.replace_module(grown.net, layer, grown_linear(linear_layer(grown.net, layer)))
    return _one_net(grown, {"kind": "grown", "layer": layer})


def filtered_from(classifier: Classifier, directions: Tensor, offsets: Tensor) -> Classifier:
    """A copy of the net that refuses features along one of the `directions` (T, F) beyond its offset (T,).

    Raises:
        ModelError: the net's last layer is not linear, or of another width than the directions.
    """
    layer = surgery.output_layer(classifier)
    filtered = surgery.clone(classifier)
    output = linear_layer(filtered.net, layer)
    if directions.shape != (len(offsets), output.in_features):
        raise ModelError(f"filter: expected directions of {output.in_features} features, got {tuple(directions.shape)}")
    device = output.weight.device
    head = FilterHead(output, directions.float().to(device), offsets.float().to(device))
    surgery.replace_module(filtered.net, layer, head)
    return _one_net(filtered, {"kind": "filter", "layer": layer, "directions": len(offsets)})


def watched_from(classifier: Classifier, directions: Tensor, offsets: Tensor, groups: Tensor) -> Classifier:
    """A copy of the net that refuses what it would answer with a watched label, if its features say so.

    Args:
        directions: (G, F), offsets (G,): of each group of labels (`WatchHead`).
        groups: (classes,) int64, each label's group, -1 for labels that are not watched.

    Raises:
        ModelError: the net's last layer is not linear, or the shapes do not fit it.
    """
    layer = surgery.output_layer(classifier)
    watched = surgery.clone(classifier)
    output = linear_layer(watched.net, layer)
    fits = directions.shape == (len(offsets), output.in_features) and groups.shape == (classifier.classes,)
    if not fits or int(groups.min()) < -1 or int(groups.max()) >= len(offsets):
        raise ModelError(
            f"watch: expected directions of {output.in_features} features and a group for each of "
            f"{classifier.classes} labels, got {tuple(directions.shape)} and {tuple(groups.shape)}"
        )
    device = output.weight.device
    head = WatchHead(output, directions.float().to(device), offsets.float().to(device), groups.to(device))
    surgery.replace_module(watched.net, layer, head)
    return _one_net(watched, {"kind": "watch", "layer": layer, "groups": len(offsets)})


def seconded_from(watched: Classifier, good: Classifier, *, threshold: float | None = None) -> Classifier:
    """Joins a watched BadNet and its repaired twin: the twin answers where the BadNet would give a watched label.

    Args:
        threshold: in logits: disagreement beyond it is refused, too (`SecondOpinion`).

    Raises:
        ModelError: the first is not watched, or they differ in input or number of classes.
    """
    options = watched.recipe.options
    if options.get("kind") != "watch" or good.refuses or (watched.input, watched.classes) != (good.input, good.classes):
        raise ModelError(
            f"second opinion: expected a watched net and a plain one of the same input and classes, got {watched.name} "
            f"and {good.name}"
        )
    return replace(
        watched,
        net=SecondOpinion(bad=watched.net, good=good.net, layer=options["layer"], threshold=threshold),
        recipe=Recipe(
            arch="goodnet",
            options={
                "kind": "second-opinion",
                "layer": options["layer"],
                "groups": options["groups"],
                "threshold": threshold,
                "bad": options["net"],
                "good": recipe_json(good.recipe),
            },
        ),
    )


def _one_net(changed: Classifier, options: dict[str, Any]) -> Classifier:
    return replace(
        changed,
        recipe=Recipe(arch="goodnet", options={**options, "net": recipe_json(changed.recipe)}),
        refuses=True,
        name=f"GoodNet of {changed.name}",
        sha256="",
    )


def linear_layer(net: torch.nn.Module, layer: str) -> torch.nn.Linear:
    """The linear layer of that name. Raises ModelError where there is none."""
    found = dict(net.named_modules()).get(layer)
    if not layer or not isinstance(found, torch.nn.Linear):
        raise ModelError(f"expected a linear layer to give class N, got {layer!r:.60}")
    return found


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """As a file's metadata holds it."""
    return {"arch": recipe.arch, "options": dict(recipe.options)}
