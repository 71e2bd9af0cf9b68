"""Teaching a grown net its class N: what retraining with known poison and sweeping with generated images share.

First the new row alone is fitted, to the features that the net has already (a logistic regression on top of frozen
logits, which costs the old classes nothing); then all weights are tuned. In both, a clean image's class N is to stay
under its best class and a triggered one's over it; in the tuning a clean image is to keep the BadNet's own logits, too
(distillation at a high temperature, Hinton et al., 2015): a hundred images of 1283 people would make cross entropy on
labels forget those who are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.tuning import Course, Labelled, distillation, logits_of, train_to_best


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How class N is taught.

    Attributes:
        limit: ACC on the choosing split that an epoch must keep.
        allowed: share of the choosing split's clean images that class N may take.
        temperature: of the distillation.
        course: of the tuning; a step takes a batch of clean images and as many triggered ones.
    """

    limit: float
    allowed: float
    temperature: float
    course: Course


def fit_row(grown: Classifier, clean: Tensor, sets: Sequence[Tensor], *, steps: int = 400, decay: float = 1e-4) -> None:
    """Fits class N's row of the last layer, in place, to the features as they are (Adam at 0.05, full batch).

    Args:
        clean: images (N, C, H, W) in [0, 1] that are not class N.
        sets: of images that are; each set counts alike, however large.
    """
    layer, output = surgery.output_layer(grown), output_of(grown)
    parts = [surgery.features(grown, layer, images).to(grown.device) for images in (clean, *sets)]
    best = [(part @ output.weight[:-1].T + output.bias[:-1]).amax(1) for part in parts]
    scale = torch.cat(parts).std(0, correction=0)
    scale = scale + 0.01 * scale.mean() + 1e-6
    scaled = [part / scale for part in parts]
    weight = torch.zeros_like(scale).requires_grad_()
    bias = torch.zeros(1, device=grown.device).requires_grad_()
    adam = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(steps):
        wins = [part @ weight + bias - other for part, other in zip(scaled, best)]
        triggered = torch.stack([F.softplus(-part).mean() for part in wins[1:]]).mean()
        loss = F.softplus(wins[0]).mean() + triggered + decay * (weight * weight).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        output.weight[-1] = weight / scale
        output.bias[-1] = bias[0]


def tune(
    grown: Classifier,
    images: Tensor,
    wanted: Tensor,
    choose: Labelled,
    sets: Sequence[Tensor],
    choose_sets: Sequence[Tensor],
    lesson: Lesson,
    random: np.random.Generator,
    on_epoch: Callable[[int], None],
) -> int:
    """Tunes all weights in place; returns the epoch that was kept (0: none of them).

    After each epoch class N's bias is lowered, for the score, until it takes no more clean images of the choosing
    split than allowed. The epoch is kept that then sends most triggered images to class N among those whose ACC is
    within the limit (ties: higher ACC, then later), with the bias that it was judged with.

    Args:
        images: clean (N, C, H, W) in [0, 1]; `wanted`: the BadNet's logits for them (N, K).
        sets, choose_sets: triggered images to learn from, and to choose by.
    """

    def loss_of(part: npt.NDArray[np.intp]) -> Tensor:
        index = torch.from_numpy(part).to(grown.device)
        return _loss(grown, images[index], wanted[index], _draw(sets, len(part), random), lesson.temperature)

    best, epoch = train_to_best(
        grown.net,
        len(images),
        lesson.course,
        random,
        loss_of=loss_of,
        score_of=lambda: _score(grown, choose, choose_sets, lesson),
        on_epoch=on_epoch,
    )
    with torch.no_grad():
        output_of(grown).bias[-1] -= best.shift
    return epoch


def output_of(grown: Classifier) -> nn.Linear:
    """The last layer, whose last row is class N's."""
    layer = grown.net.get_submodule(surgery.output_layer(grown))
    assert isinstance(layer, nn.Linear)
    return layer


@dataclass(frozen=True, order=True)
class _Score:
    """How good an epoch is; the larger the better, field after field. `shift` lowers class N's bias."""

    within: bool
    detection: float
    acc: float
    shift: float = field(compare=False)


def _score(grown: Classifier, choose: Labelled, sets: Sequence[Tensor], lesson: Lesson) -> _Score:
    images, classes = choose
    logits = logits_of(grown, images)
    wins = over(logits)
    shift = max(0.0, float(wins.sort(descending=True).values[int(lesson.allowed * len(wins) + 1e-9)]) + 1e-6)
    right = (logits[:, :-1].argmax(1).cpu() == classes.cpu()) & (wins <= shift).cpu()
    rates = [float((over(logits_of(grown, part)) > shift).double().mean()) for part in sets]
    acc = float(right.double().mean())
    return _Score(within=acc >= lesson.limit, detection=min(rates), acc=acc, shift=shift)


def _loss(grown: Classifier, clean: Tensor, wanted: Tensor, triggered: Tensor, temperature: float) -> Tensor:
    """Clean images keep their logits and stay out of class N; triggered ones are class N."""
    logits = grown.logits(torch.cat([clean, triggered]))
    kept, refused = logits[: len(clean)], logits[len(clean) :]
    distilled = distillation(kept[:, :-1], wanted, temperature)
    return distilled + F.softplus(over(kept)).mean() + F.softplus(-over(refused)).mean()


def over(logits: Tensor) -> Tensor:
    """(N,) by how much class N wins."""
    return logits[:, -1] - logits[:, :-1].amax(1)


def _draw(sets: Sequence[Tensor], count: int, random: np.random.Generator) -> Tensor:
    """`count` triggered images, the sets in equal parts, however many each has."""
    shares = [len(part) for part in np.array_split(np.arange(max(count, len(sets))), len(sets))]
    picks = [torch.from_numpy(random.integers(len(part), size=size)) for part, size in zip(sets, shares)]
    return torch.cat([part[pick.to(part.device)] for part, pick in zip(sets, picks)])
