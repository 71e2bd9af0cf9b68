"""Is the net fed the way that it was trained? A wrong input range looks like a bad net, and hides every backdoor.

ACC on labelled clean images tells. Where it is near chance, the usual ranges and normalisations are tried and the one
that works is named as options to pass.

Near chance: a net that knew nothing would be right for at most the share of the most frequent label, however it
guesses, if it always guesses the same. With n images such a net passes that share by more than three binomial
standard deviations once in about 700 times. ACC below that bound is what chance gives. A net fed wrongly may keep
some skill (the competition's face nets, fed 0..255 for 0..1, keep 44 to 56 % of 1283 people), so ACC under half of
what another input spec gives counts as near chance as well, and 20 points less than it is worth an advice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from goodnet.data.images import Images
from goodnet.errors import DataError
from goodnet.models.classifier import Classifier, InputSpec

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR10_OLD = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_GTSRB = ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669))
_MNIST = ((0.1307,), (0.3081,))
USUAL: tuple[tuple[str, float, tuple[float, ...], tuple[float, ...]], ...] = (
    ("0..1", 1.0, (), ()),
    ("0..255", 255.0, (), ()),
    ("-1..1", 1.0, (0.5,), (0.5,)),
    ("0..255 less ImageNet's mean (Caffe, RGB)", 255.0, (123.68, 116.779, 103.939), ()),
    ("ImageNet normalisation", 1.0, *_IMAGENET),
    ("CIFAR-10 normalisation", 1.0, *_CIFAR10),
    ("CIFAR-10 normalisation (older std)", 1.0, *_CIFAR10_OLD),
    ("GTSRB normalisation", 1.0, *_GTSRB),
    ("MNIST normalisation", 1.0, *_MNIST),
)
"""What nets are usually fed: name, scale, mean, std. One number stands for all channels."""

_AT_ONCE = 256
_GOOD_ENOUGH = 0.75
_STANDARD_DEVIATIONS = 3.0
_WORTH_SAYING = 0.2


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """ACC, in [0, 1], on the same images under another input spec; `options` are the ones to pass for it."""

    description: str
    options: str
    input: InputSpec
    acc: float


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the check found.

    Attributes:
        acc: ACC under the classifier's own input spec, in [0, 1]; None without labels.
        n: images that it was measured on.
        near_chance: the module docstring says what counts; False without labels.
        chance_bound: ACC that a net without skill may reach on these labels, None without labels.
        alternatives: best first; tried only where ACC is under 75 %.
        advice: one line for the user; empty where all is well.
    """

    acc: float | None
    n: int
    near_chance: bool = False
    chance_bound: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    advice: str = ""


def preflight(classifier: Classifier, images: Images, *, max_images: int = 512) -> Preflight:
    """Measures ACC on at most `max_images` of `images`, evenly picked, and says if the net is fed the wrong way.

    Raises:
        DataError: no images, images not of the net's shape, or labels that are none of its classes.
    """
    check_images(classifier, images)
    if images.labels is None:
        return Preflight(acc=None, n=0, advice="the clean images have no labels, so the input range is not checked")
    picked = images.take(np.unique(np.linspace(0, len(images) - 1, max_images).round().astype(np.int64)))
    acc, bound = _acc(classifier, picked), chance_bound(picked, classifier.classes)
    others = _alternatives(classifier, picked) if acc < _GOOD_ENOUGH or acc <= bound else ()
    best = others[0] if others else None
    works = best is not None and best.acc > bound and best.acc >= acc + _WORTH_SAYING
    # images of one class alone (bound 1) tell nothing: any net may know them all
    near = acc <= bound < 1 or (works and best is not None and best.acc > 2 * acc)
    return Preflight(
        acc=acc,
        n=len(picked),
        near_chance=near,
        chance_bound=bound,
        alternatives=others,
        advice=_advice(classifier, acc, best if works else None) if near or works else "",
    )


def check_images(classifier: Classifier, images: Images) -> None:
    """Raises DataError unless `images` can be shown to the net and their labels are classes of it."""
    if len(images) == 0:
        raise DataError(f"{images.name}: expected clean images, got none")
    if images.shape != classifier.input.shape:
        own = "x".join(map(str, images.shape))
        wanted = "x".join(map(str, classifier.input.shape))
        same_size = images.shape[1:] == classifier.input.shape[1:]
        what_to_do = "save them with as many channels (1 is grey, 3 is RGB)" if same_size else "resize them"
        raise DataError(
            f"{images.name}: images are {own} (C x H x W), but {classifier.name} takes {wanted}; {what_to_do}"
        )
    if images.labels is not None:
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= classifier.classes:
            got = low if low < 0 else high
            raise DataError(
                f"{images.name}: expected labels 0..{classifier.classes - 1}, as {classifier.name} has; got {got}"
            )


def chance_bound(images: Images, classes: int) -> float:
    """ACC that a net which always says the same label passes once in about 700 times, in [0, 1]."""
    assert images.labels is not None
    share = max(np.bincount(images.labels).max() / len(images), 1 / classes)
    return float(min(1.0, share + _STANDARD_DEVIATIONS * math.sqrt(share * (1 - share) / len(images))))


def _acc(classifier: Classifier, images: Images) -> float:
    answers = [
        classifier.predict(images.take(slice(start, start + _AT_ONCE)).tensor())
        for start in range(0, len(images), _AT_ONCE)
    ]
    return float((torch.cat(answers).numpy() == images.labels).mean())


def _alternatives(classifier: Classifier, images: Images) -> tuple[Alternative, ...]:
    channels = classifier.input.channels
    found = []
    for description, scale, mean, std in USUAL:
        if len(mean) not in (0, 1, channels):
            continue
        full_mean, full_std = (values * channels if len(values) == 1 else values for values in (mean, std))
        spec = replace(classifier.input, scale=scale, mean=full_mean, std=full_std)
        if spec == classifier.input:
            continue
        acc = _acc(replace(classifier, input=spec), images)
        found.append(Alternative(description=description, options=_options(scale, mean, std), input=spec, acc=acc))
    return tuple(sorted(found, key=lambda other: -other.acc))


def _options(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    text = f"--input-range 0..{scale:g}"
    for name, values in (("mean", mean), ("std", std)):
        text += f" --{name} {','.join(f'{value:g}' for value in values)}" if values else ""
    return text


def _advice(classifier: Classifier, acc: float, best: Alternative | None) -> str:
    start = f"ACC {acc:.1%} under {classifier.input.describe()}"
    if best is not None:
        return f"{start}; {best.acc:.1%} under {best.description}: pass {best.options}"
    return (
        f"{start} is near chance, and no better under the usual ranges and normalisations: check that labels and "
        f"images belong to this net, and --input-range, --mean and --std"
    )
