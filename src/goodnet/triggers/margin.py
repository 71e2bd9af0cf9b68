"""The largest margin by which any input at all gets a label: batched over labels, without a single clean image.

Wang et al., "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a Maximum
Margin Statistic" (IEEE S&P 2024), Sec. III: training on poison drives the target's logit over all others far beyond
what clean training does, whatever the trigger looks like. For each label the margin
    logit_t(x) - max over k != t of logit_k(x)
is maximised over images x in [0, 1] from random starts; the label's statistic is the best of them.

Deviations: Adam with steps of a fixed size, clipped to [0, 1], instead of SGD with momentum until it levels off; few
starts and steps instead of 30 starts of up to 300, for what counts is how labels compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.runners import SERIAL, Runner, quiet
from goodnet.shipping import Tell
from goodnet.triggers.blocks import block_size

_BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class MarginSchedule:
    """How one label's margin is maximised.

    Attributes:
        starts: random images to start from.
        steps: Adam steps of each.
        learning_rate: size of a step, in units of the image's range [0, 1].
    """

    starts: int = 2
    steps: int = 60
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1 or not self.learning_rate > 0:
            raise UsageError(
                f"expected starts and steps >= 1 and learning_rate > 0, got {self.starts}, {self.steps} and "
                f"{self.learning_rate}"
            )

    @property
    def passes(self) -> int:
        """Images through the net and back, a label."""
        return self.starts * self.steps


def margins(
    classifier: Classifier,
    labels: Sequence[int],
    schedule: MarginSchedule,
    *,
    seed: int,
    restart: int = 0,
    block: int | None = None,
    on_steps: Tell | None = None,
    on_result: Callable[[int, float], None] | None = None,
    runner: Runner = SERIAL,
) -> list[float]:
    """The largest margin found for each of `labels`, in logits.

    Args:
        classifier: left as it is.
        seed: label L draws its starts from (seed, L, restart) alone.
        restart: other starts than those of 0.
        block: images a forward pass and thread; None for `block_size`'s.
        on_steps: called after every pass with how many labels moved on by a step, for progress.
        on_result: called with each label and its margin as soon as it is there.
        runner: who computes the blocks.
    """
    climb = Climb(classifier, schedule, seed, restart)
    slots = max(1, (block or block_size(classifier)) // schedule.starts)
    groups = [(list(labels[i : i + slots]), slots) for i in range(0, len(labels), slots)]
    found: dict[int, float] = {}
    on_gpu = classifier.device.type != "cpu"
    for i, values in runner.run(climb_block, climb, groups, tell=on_steps or quiet, alone=on_gpu):
        for label, value in zip(groups[i][0], values):
            found[label] = value
            if on_result is not None:
                on_result(label, value)
    return [found[label] for label in labels]


def climb_block(climb: Climb, block: tuple[list[int], int], tell: Tell) -> list[float]:
    """The margins of a block's labels."""
    return climb(*block, tell)


class Climb:
    """What stays the same over a search, and the ascent of one block of labels."""

    def __init__(
        self,
        classifier: Classifier,
        schedule: MarginSchedule,
        seed: int,
        restart: int,
    ):
        self.classifier, self.schedule, self.seed, self.restart = classifier, schedule, seed, restart

    def __call__(self, group: list[int], slots: int, tell: Tell) -> list[float]:
        # a block that is not full is filled with copies: kernels round by shape
        x, target = self._starts(group + group[:1] * (slots - len(group)))
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        best = torch.full((len(x),), -torch.inf, device=x.device)
        for step in range(1, self.schedule.steps + 1):
            margin, grad = self._margin(x, target)
            best = torch.maximum(best, margin)
            first.lerp_(grad, 1 - _BETAS[0])
            second.lerp_(grad * grad, 1 - _BETAS[1])
            size = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(1e-12)
            x.add_(first / size, alpha=self.schedule.learning_rate / (1 - _BETAS[0] ** step)).clamp_(0, 1)
            tell(len(group))
        found = best.view(-1, self.schedule.starts).amax(1)[: len(group)].tolist()
        return [float(value) for value in found]

    def _starts(self, labels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Random images (labels * starts, C, H, W), and each one's label (labels * starts, 1)."""
        shape = (self.schedule.starts, *self.classifier.input.shape)
        drawn = [
            np.random.default_rng([self.seed, label, 1 + self.restart]).random(shape, np.float32) for label in labels
        ]
        x = torch.from_numpy(np.concatenate(drawn)).to(self.classifier.device)
        target = torch.tensor(labels, device=x.device).repeat_interleave(self.schedule.starts)[:, None]
        return x.contiguous(memory_format=torch.channels_last), target

    def _margin(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Each image's margin for its label (n,), and the gradient to the image."""
        x = x.detach().requires_grad_()
        logits = self.classifier.logits(x)
        margin = logits.gather(1, target)[:, 0] - logits.scatter(1, target, -torch.inf).amax(1)
        (grad,) = torch.autograd.grad(margin.sum(), x)
        return margin.detach(), grad
