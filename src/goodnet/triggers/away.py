"""Triggers that lead every image away from what it shows, wherever to: the inversion engine with another goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import DataError
from goodnet.models.classifier import Classifier
from goodnet.runners import SERIAL, Runner
from goodnet.shipping import Tell
from goodnet.triggers.inversion import Inverted, Schedule, Search, State, run_all


def invert_away(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    starts: Sequence[int],
    schedule: Schedule,
    *,
    seed: int,
    block: int | None = None,
    on_steps: Tell | None = None,
    on_result: Callable[[Inverted], None] | None = None,
    runner: Runner = SERIAL,
) -> list[Inverted]:
    """Inverts triggers that lead away from each image's own class, no matter where to, one for each of `starts`.

    As `invert`, but the loss is -log(1 - probability of the image's class) (an untargeted universal patch), and a
    success any other answer. `target` of the triggers holds the start's number.
    """
    if len(images) == 0:
        raise DataError("inversion: expected at least one clean image, got none")
    return run_all(_Away(classifier, images, classes, starts, schedule, seed), block, on_steps, on_result, runner)


class _Away(Search):
    """Leads every image away from what it shows; `labels` are the numbers of the starts."""

    stream = (4,)

    def pool(self, label: int) -> npt.NDArray[np.int64]:
        return np.arange(len(self.classes))

    def goals(self, state: State, index: Tensor) -> Tensor:
        return self.own[index]

    def loss(self, logits: Tensor, goals: Tensor) -> Tensor:
        own = logits.gather(1, goals[:, None])
        others = logits.scatter(1, goals[:, None], -torch.inf).logsumexp(1, keepdim=True)
        return F.softplus(own - others).sum()

    def successes(self, answers: Tensor, goals: Tensor) -> Tensor:
        return answers != goals
