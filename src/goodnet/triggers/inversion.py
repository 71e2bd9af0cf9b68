"""The inversion engine: reverse-engineers the triggers of many labels in one forward pass.

Every label has its own mask, pattern, Adam moments, weight of the norm and best result; the net sees the triggered
images of a whole block of labels at once. All labels take as many steps, so a block stays full. Objective and schedule
are Neural Cleanse's (Wang et al., S&P 2019, Sec. IV-A, Eq. 3 and the authors' code): cross entropy to the target +
weight * L1 of the mask, mask and pattern through tanh, Adam (0.1; 0.5, 0.9).

Only the gradient to the triggered image comes from autograd. From there on, with x' = (1 - m) x + m p,
dL/dp = sum_b m g and dL/dm = sum_b,c g (p - x) are written out: one pass over memory instead of autograd's five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.runners import SERIAL, Runner, quiet
from goodnet.shipping import Tell
from goodnet.triggers.blocks import block_size, shown_at_once
from goodnet.triggers.trigger import Trigger


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How one label is optimised.

    Attributes:
        steps: Adam steps.
        batch: images a step and label.
        learning_rate, betas: Adam's (the paper's: 0.1; 0.5, 0.9).
        asr: share of the batch that must reach the target for the norm's weight to go up (paper: 0.99).
        keep_asr: a mask can be the result if its own batch reached `asr` and the last `patience` steps together this:
            one lucky batch of 16 says little, and five without a single miss hang on the hardest image.
        first_weight: the norm's weight once `patience` steps in a row have succeeded; before, it is 0.
        patience: steps in a row after which the weight goes up (all succeeded) or down (all failed).
        up, down: by which factor.
    """

    steps: int = 300
    batch: int = 16
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    asr: float = 0.99
    keep_asr: float = 0.95
    first_weight: float = 1e-3
    patience: int = 5
    up: float = 2.0
    down: float = 2.0**1.5

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.patience < 1:
            raise UsageError(
                f"expected steps, batch and patience >= 1, got {self.steps}, {self.batch}, {self.patience}"
            )
        if not 0 < self.keep_asr <= 1 or not 0 < self.asr <= 1:
            raise UsageError(f"expected asr and keep_asr in (0, 1], got {self.asr} and {self.keep_asr}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """One label's result.

    Attributes:
        trigger: the smallest successful one, or, where none succeeded, the last one.
        success: some `patience` steps together reached the schedule's `keep_asr`.
        final: mask and pattern at the last step, unsquashed (C + 1, H, W).
    """

    trigger: Trigger
    success: bool
    final: Tensor


def invert(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    labels: Sequence[int],
    schedule: Schedule,
    *,
    seed: int,
    block: int | None = None,
    on_steps: Tell | None = None,
    on_result: Callable[[Inverted], None] | None = None,
    runner: Runner = SERIAL,
) -> list[Inverted]:
    """Inverts a trigger for each of `labels`.

    Args:
        classifier: left as it is; only gradients to its input are taken.
        images: (N, C, H, W) in [0, 1], clean.
        classes: (N,) int64, what the images show; images of the target itself do not count for a label.
        labels: the targets.
        seed: label L draws its start and its batches from (seed, L) alone, whatever else is in its block.
        block: triggered images a forward pass and thread: bounds memory, keeps activations in cache; None for
            `block_size`'s.
        on_steps: called after every pass with how many labels moved on by a step, for progress.
        on_result: called with each label's result as soon as it is there; nothing is returned then, for of many labels
            on large images all results do not fit into memory.
        runner: who computes the blocks.

    Returns:
        One `Inverted` a label, in the order of `labels`, or none with `on_result`; the same for the same seed, whatever
        other labels are asked for. Another `block` changes it by rounding, which the search then amplifies.

    Raises:
        DataError: no images, or for some label none that is not of that label.
    """
    if len(images) == 0:
        raise DataError("inversion: expected at least one clean image, got none")
    for label in labels:
        if not bool((classes != label).any()):
            raise DataError(f"inversion: all {len(images)} images are of label {label}; add images of other classes")
    return run_all(Search(classifier, images, classes, labels, schedule, seed), block, on_steps, on_result, runner)


def run_all(
    search: Search,
    block: int | None,
    on_steps: Tell | None,
    on_result: Callable[[Inverted], None] | None = None,
    runner: Runner = SERIAL,
) -> list[Inverted]:
    """The search's results in the order of its labels, none with `on_result`; on a CPU a thread a core."""
    search.block = block or block_size(search.classifier)
    slots = max(1, search.block // search.schedule.batch)
    jobs = range(len(search.labels))
    blocks = [(jobs[first : first + slots], slots) for first in range(0, len(jobs), slots)]
    results: dict[int, Inverted] = {}
    on_gpu = search.device.type != "cpu"
    for i, found in runner.run(run_block, search, blocks, tell=on_steps or quiet, alone=on_gpu):
        for job, result in zip(blocks[i][0], found):
            if on_result is None:
                results[job] = result
            else:
                on_result(result)
    return [results[job] for job in jobs if job in results]


def run_block(search: Search, block: tuple[Sequence[int], int], tell: Tell) -> list[Inverted]:
    """The results of a block's jobs; the net sees as many images as if all its slots were taken."""
    jobs, slots = block
    state = State.empty(search)
    for job in jobs:
        state = state.add(search.start(job))
    for _ in range(search.schedule.steps):
        search.step(state, slots)
        tell(len(jobs))
    return [search.result(state, i) for i in range(len(jobs))]


def success_rates(
    classifier: Classifier,
    triggers: Sequence[Trigger],
    images: Tensor,
    classes: Tensor,
    *,
    block: int | None = None,
    on_done: Tell | None = None,
    runner: Runner = SERIAL,
) -> list[float | None]:
    """ASR of each trigger on clean images (N, C, H, W) in [0, 1] with classes (N,); those of its target left out.

    None where no image is left. `block`: images through the net at a time, at most. `on_done` is called with 1 as each
    is done, for progress.
    """
    judged = (classifier, images, classes, shown_at_once(block))
    on_gpu = classifier.device.type != "cpu"
    rates = dict(runner.run(success_rate, judged, triggers, tell=on_done or quiet, alone=on_gpu))
    return [rates[i] for i in range(len(triggers))]


@torch.no_grad()
def success_rate(judged: tuple[Classifier, Tensor, Tensor, int], trigger: Trigger, tell: Tell) -> float | None:
    """One trigger's, of `success_rates`."""
    classifier, images, classes, at_once = judged
    attacked = (classes != trigger.target).nonzero()[:, 0]
    if len(attacked) == 0:
        return None
    parts = torch.split(attacked, at_once)
    answers = [classifier.predict(trigger.apply(images[part]), batch=at_once) for part in parts]
    tell(1)
    return float((torch.cat(answers) == trigger.target).double().mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """The labels in flight: everything stacked along a first axis, one row a label. NHWC, as the net's memory."""

    job: Tensor  # index into `labels`
    label: Tensor
    step: Tensor
    raw: Tensor  # (L, H, W, 1 + C) mask and pattern before tanh
    first: Tensor  # Adam's moments
    second: Tensor
    weight: Tensor
    hits: Tensor  # successful steps in a row
    misses: Tensor
    recent: Tensor  # (L, patience) ASR of the last steps, 0 before there are that many
    best_norm: Tensor
    best: Tensor  # (L, H, W, 1 + C) after tanh

    @staticmethod
    def empty(search: Search) -> State:
        c, h, w = search.classifier.input.shape
        rows = {name: torch.empty(0, h, w, 1 + c) for name in ("raw", "first", "second", "best")}
        counters = ("job", "label", "step", "hits", "misses")
        ints = {name: torch.empty(0, dtype=torch.int64) for name in counters}
        floats = {name: torch.empty(0) for name in ("weight", "best_norm")}
        rows["recent"] = torch.empty(0, search.schedule.patience)
        return State(**{k: v.to(search.device) for k, v in {**rows, **ints, **floats}.items()})

    def add(self, row: State) -> State:
        return State(**{name: torch.cat([getattr(self, name), getattr(row, name)]) for name in vars(self)})


class Search:
    """What stays the same over a search, and the step that moves a block of labels on."""

    stream: tuple[int, ...] = ()
    block: int | None = None
    """Images through the net at a time, fewer than a label's batch; None for all."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        labels: Sequence[int],
        schedule: Schedule,
        seed: int,
    ):
        self.classifier, self.labels, self.schedule, self.seed = classifier, labels, schedule, seed
        self.device = classifier.device
        self.images = images.to(self.device).permute(0, 2, 3, 1).contiguous()
        self.classes = classes.cpu().numpy()
        self.own = classes.to(self.device)
        self.batches: dict[int, Tensor] = {}

    def start(self, job: int) -> State:
        """A fresh row for labels[job], drawn from (seed, label) and the kind of search."""
        label = self.labels[job]
        return self.fresh(job, label, np.random.default_rng([self.seed, label, *self.stream]))

    def fresh(self, job: int, label: int, random: np.random.Generator) -> State:
        """A row with a mask and pattern drawn evenly from [0, 1], and the job's batches."""
        c, h, w = self.classifier.input.shape
        raw = torch.atanh(torch.from_numpy(random.random((h, w, 1 + c), dtype=np.float32)) * 1.98 - 0.99)
        self.batches[job] = self._batches(label, random)
        raw = raw.to(self.device)[None].contiguous()
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        return State(
            job=zero + job,
            label=zero + label,
            step=zero,
            raw=raw,
            first=torch.zeros_like(raw),
            second=torch.zeros_like(raw),
            weight=torch.zeros(1, device=self.device),
            hits=zero,
            misses=zero,
            recent=torch.zeros(1, self.schedule.patience, device=self.device),
            best_norm=torch.full((1,), torch.inf, device=self.device),
            best=torch.zeros_like(raw),
        )

    def pool(self, label: int) -> npt.NDArray[np.int64]:
        """Indices of the images to lead to `label`: those that are not there already."""
        return np.flatnonzero(self.classes != label)

    def _batches(self, label: int, random: np.random.Generator) -> Tensor:
        """(steps, batch) indices of the label's images: reshuffled whenever all were seen."""
        pool = self.pool(label)
        needed = self.schedule.steps * self.schedule.batch
        rounds = [random.permutation(pool) for _ in range(-(-needed // len(pool)))]
        return torch.from_numpy(np.concatenate(rounds)[:needed].reshape(self.schedule.steps, -1))

    def step(self, state: State, slots: int) -> None:
        """One Adam step for every label of the block, in place.

        A block that is not full any more is filled up with copies: kernels round by shape, and a label's result must
        not hang on how many others are left.
        """
        jobs = zip(state.job.tolist(), state.step.tolist())
        index = torch.stack([self.batches[job][step] for job, step in jobs]).to(self.device)
        x = self.images.index_select(0, index.flatten()).view(*index.shape, *self.images.shape[1:])  # (L, B, H, W, C)
        half = torch.tanh(state.raw).add_(1).div_(2)
        # of one shape and without gaps: over a broadcast last axis these kernels take seven times as long
        pattern = half[:, None, :, :, 1:].contiguous()
        mask = half[:, None, :, :, :1].expand_as(pattern).contiguous()
        grad, asr = self._gradient(torch.lerp(x, pattern, mask), self.goals(state, index), slots)
        self.remember(state, half, asr)
        total = grad.sum(1)
        grad_pattern = self.tied(state, total * half[..., :1])
        # sum_b,c g (p - x), without a copy of all triggered images for p - x
        grad_mask = (total * half[..., 1:] - x.mul_(grad).sum(1)).sum(-1, keepdim=True)
        grad_mask = grad_mask + state.weight[:, None, None, None]
        # d/draw of (tanh(raw) + 1) / 2 is 2 half (1 - half)
        slope = torch.addcmul(half, half, half, value=-1).mul_(2)
        self._adam(state, torch.cat([grad_mask, grad_pattern], -1).mul_(slope))
        self.adapt(state, asr)

    def goals(self, state: State, index: Tensor) -> Tensor:
        """(L, B) the label that each image (of `index`, (L, B)) is to be led to."""
        return state.label[:, None].expand_as(index)

    def loss(self, logits: Tensor, goals: Tensor) -> Tensor:
        """Sum over the images of logits (N, K) and goals (N,)."""
        return F.cross_entropy(logits, goals, reduction="sum")

    def successes(self, answers: Tensor, goals: Tensor) -> Tensor:
        """(N,) whether the trigger has done its work."""
        return answers == goals

    def tied(self, state: State, gradient: Tensor) -> Tensor:
        """The pattern's gradient (L, H, W, C), with what is to stay equal made equal; here nothing is."""
        return gradient

    def _gradient(self, stamped: Tensor, goals: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """d(mean loss)/d(stamped) (L, B, H, W, C), and each label's ASR on this batch (L,)."""
        rows = len(goals)
        if rows < slots:
            stamped = torch.cat([stamped, stamped[:1].expand(slots - rows, -1, -1, -1, -1)])
            goals = torch.cat([goals, goals[:1].expand(slots - rows, -1)])
        images, wanted = stamped.flatten(0, 1), goals.flatten()
        step = len(images) if self.block is None else max(self.block, 1)
        done = [self._part(*part) for part in zip(torch.split(images, step), torch.split(wanted, step))]
        grad, hits = (torch.cat(parts) if len(done) > 1 else parts[0] for parts in zip(*done))
        asr = hits.view(len(goals), -1).float().mean(1)
        return grad.view(stamped.shape)[:rows], asr[:rows]

    def _part(self, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (N, H, W, C): d(loss / batch)/d(image), and which of them have reached their goal (N,)."""
        images = images.detach().requires_grad_()
        logits = self.classifier.logits(images.permute(0, 3, 1, 2))
        (grad,) = torch.autograd.grad(self.loss(logits, wanted) / self.schedule.batch, images)
        return grad, self.successes(logits.detach().argmax(1), wanted)

    def remember(self, state: State, half: Tensor, asr: Tensor) -> None:
        """Keeps the smallest mask that has worked lately, of masks and patterns `half` (L, H, W, 1 + C)."""
        state.recent.copy_(torch.cat([state.recent[:, 1:], asr[:, None]], 1))
        norm = half[..., 0].sum((1, 2))
        # a hair under, for means of sixteenths are rounded
        lately = state.recent.mean(1) >= self.schedule.keep_asr - 1e-6
        better = lately & (asr >= self.schedule.asr) & (norm < state.best_norm)
        state.best_norm[better] = norm[better]
        state.best[better] = half[better]

    def _adam(self, state: State, grad: Tensor) -> None:
        beta_1, beta_2 = self.schedule.betas
        state.step.add_(1)
        steps = state.step.to(grad.dtype).view(-1, 1, 1, 1)
        state.first.lerp_(grad, 1 - beta_1)
        state.second.mul_(beta_2).addcmul_(grad, grad, value=1 - beta_2)
        size = (state.second / (1 - beta_2**steps)).sqrt_().add_(1e-8)
        state.raw.addcdiv_(state.first / (1 - beta_1**steps), size, value=-self.schedule.learning_rate)

    def adapt(self, state: State, asr: Tensor) -> None:
        """Weight of the norm: set after the first run of successes, then up and down by runs (authors' code)."""
        hit = asr >= self.schedule.asr
        state.hits.add_(1).mul_(hit)
        state.misses.add_(1).mul_(~hit)
        up, down = state.hits >= self.schedule.patience, state.misses >= self.schedule.patience
        unset = state.weight == 0
        first = torch.full_like(state.weight, self.schedule.first_weight)
        raised = torch.where(unset, first, state.weight * self.schedule.up)
        lowered = torch.where(down, state.weight / self.schedule.down, state.weight)
        state.weight.copy_(torch.where(up, raised, lowered))
        state.hits.mul_(~up)
        state.misses.mul_(~down)

    def result(self, state: State, i: int) -> Inverted:
        success = bool(torch.isfinite(state.best_norm[i]))
        kept = state.best[i] if success else (torch.tanh(state.raw[i]) + 1) / 2
        planes = kept.permute(2, 0, 1).contiguous().cpu()
        trigger = Trigger(mask=planes[:1], pattern=planes[1:], target=int(state.label[i]))
        del self.batches[int(state.job[i])]
        return Inverted(trigger=trigger, success=success, final=state.raw[i].permute(2, 0, 1).contiguous().cpu())
