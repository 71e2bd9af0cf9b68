"""The generator engine: one net that makes a trigger for any image and any of its labels.

Image -> encoder -> residual blocks -> decoder -> mask and pattern through tanh, as a `Trigger` has them, but made for
this image: x' = (1 - m(x, t)) x + m(x, t) p(x, t). The label t enters as a canvas of its own that is added to the
encoded image (where its trigger lies), and as a code that scales and shifts every block's channels (FiLM: Perez et
al., AAAI 2018), so 1283 labels share all weights but 2 % of an image's numbers each. The generator works on squares
of 4x4 pixels (2x2 in small images), where a step through it costs about as much as one through a DeepID.

Objective, per image: the margin of Carlini and Wagner (S&P 2017, Sec. VI-A, f_6), max(max_{j != t} z_j - z_t, -kappa),
in units of the net's own clean margins, + weight * share of the image that is masked. The weight adapts per label: up
while the label's images reach it, down while they miss.

A step's images are cut into blocks of a fixed size, one thread a block, and the blocks' gradients are added in order,
so the result does not depend on how many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.runners import in_threads
from goodnet.triggers.trigger import Trigger

_WIDEST = 3.0  # before tanh: takes a mask of 5 % to 95 %


@dataclass(frozen=True, kw_only=True)
class GeneratorSchedule:
    """How a generator is trained.

    Attributes:
        turns: how often each label has its turn.
        batch: images a turn.
        slots: labels a step; fewer where there are fewer.
        learning_rate: of the shared weights (Adam); falls to a tenth over the training, as a cosine.
        label_rate: of the labels' own codes and canvases.
        kappa: margin that is asked for, in units of the net's median margin on clean images.
        asr, low_asr: the norm's weight goes up after a turn of at least, and down after one of less than this ASR.
        first_weight: of the norm, at the start and at least.
        adapt: by which factor it goes up or down; less towards the end.
        even_asr, even_steps, even_images: after the training every label's masks are widened or narrowed (bisection
            in so many steps, on so many images that it was trained on) until they just reach this ASR.
        width, blocks: channels and residual blocks of the generator.
        block: images a forward pass and thread.
    """

    turns: int = 60
    batch: int = 8
    slots: int = 16
    learning_rate: float = 4e-3
    label_rate: float = 0.1
    kappa: float = 0.1
    asr: float = 0.95
    first_weight: float = 1.0
    low_asr: float = 0.75
    adapt: float = 1.5
    even_asr: float = 0.9
    even_steps: int = 6
    even_images: int = 48
    width: int = 24
    blocks: int = 2
    block: int = 32

    def __post_init__(self) -> None:
        whole = ("turns", "batch", "slots", "width", "blocks", "block")
        if any(getattr(self, name) < 1 for name in whole) or not 0 < self.asr <= 1:
            raise UsageError(f"generator: expected {', '.join(whole)} >= 1 and asr in (0, 1], got {self}")


class Generator(nn.Module):
    """Images (N, C, H, W) in [0, 1] and rows of `table` (N, D) -> mask and pattern (N, H, W, 1 + C), in (0, 1).

    Args:
        shape: (C, H, W) of an image.
        labels: how many labels it serves.
        width, blocks: channels and residual blocks.
    """

    table: Tensor

    def __init__(self, shape: tuple[int, int, int], labels: int, *, width: int = 24, blocks: int = 2):
        super().__init__()
        channels, self.height, self.width = shape
        self.stride = 4 if self.height * self.width >= 2000 else 2
        self.rows, self.cols = -(-self.height // self.stride), -(-self.width // self.stride)
        self.planes = 1 + channels
        self.code, self.canvas = 2 * width * blocks, 4
        size = self.code + self.canvas * self.rows * self.cols
        self.register_buffer("table", torch.randn(labels, size) * 0.1)
        self.encoder = nn.Conv2d(channels, width, self.stride, stride=self.stride)
        self.painter = nn.Conv2d(self.canvas, width, 1, bias=False)
        self.first = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks)])
        self.whole = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.second = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks)])
        self.decoder = nn.Conv2d(width, self.stride**2 * self.planes, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, rows: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """`more` is added to the masks before tanh: how much more of everything is covered."""
        film = rows[:, : self.code].view(len(rows), len(self.first), 2, -1)[..., None, None]
        canvas = rows[:, self.code :].view(len(rows), self.rows, self.cols, self.canvas).permute(0, 3, 1, 2)
        x = F.pad(x - 0.5, (0, self.cols * self.stride - self.width, 0, self.rows * self.stride - self.height))
        x = self.encoder(x) + self.painter(canvas)
        for i, (first, whole, second) in enumerate(zip(self.first, self.whole, self.second)):
            inner = first(F.relu(x)) * (1 + film[:, i, 0]) + film[:, i, 1]
            # what the whole picture says, for convolutions this few see a part of it only
            inner = inner + whole(F.relu(x).mean((2, 3)))[..., None, None]
            x = x + second(F.relu(inner))
        squares = self.decoder(x).permute(0, 2, 3, 1)
        squares = squares.reshape(*squares.shape[:3], self.stride, self.stride, self.planes)
        planes = squares.transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, : self.height, : self.width]
        if isinstance(more, Tensor) or more:
            planes = planes + F.pad(torch.as_tensor(more).to(planes).view(1), (0, self.planes - 1))
        return (torch.tanh(planes) + 1) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedTriggers:
    """A trained generator and what it makes.

    Attributes:
        generator: frozen, in eval mode.
        labels: those that it serves, in the order of its table.
        more: (L,) how much every label's masks are widened, before tanh, so that all reach the same ASR.
        fit_asr: (L,) ASR with that on images that it was trained on.
        images: (N, C, H, W) some of those that it was trained on, for `trigger`.
    """

    generator: Generator
    labels: tuple[int, ...]
    more: Tensor
    fit_asr: Tensor
    images: Tensor

    def masks(self, images: Tensor, target: int, *, more: float = 0.0) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> masks (N, 1, H, W) and patterns (N, C, H, W), in [0, 1].

        `more` widens the masks (before tanh) beyond what the label needs.
        """
        i = self._row(target)
        rows = self.generator.table[i].expand(len(images), -1)
        return _planes(self.generator, images, rows, float(self.more[i]) + more)

    @torch.no_grad()
    def apply(self, images: Tensor, target: int, *, more: float = 0.0) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> each with the trigger made for it; same shape and range."""
        parts = []
        for part in torch.split(images, 64):
            mask, pattern = self.masks(part, target, more=more)
            parts.append(torch.lerp(part, pattern, mask.expand_as(part)))
        return torch.cat(parts) if parts else images

    @torch.no_grad()
    def trigger(self, target: int) -> Trigger:
        """The fixed trigger nearest to what is made for the images: mean mask, pattern weighted by the masks.

        A picture of it, and weaker: what moves from image to image is smeared.
        """
        mask, pattern = self.masks(self.images, target)
        weighted = (mask * pattern).sum(0) / mask.sum(0).clamp(min=1e-6)
        return Trigger(mask=mask.mean(0).cpu(), pattern=weighted.clamp(0, 1).cpu(), target=target)

    def _row(self, target: int) -> int:
        if target not in self.labels:
            raise UsageError(f"generator: expected a label that it was trained for, got {target}")
        return self.labels.index(target)


def train_generator(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    labels: Sequence[int],
    schedule: GeneratorSchedule,
    *,
    seed: int,
    start: GeneratedTriggers | None = None,
    on_steps: Callable[[int], None] | None = None,
) -> GeneratedTriggers:
    """Trains a generator of triggers for `labels` against a net.

    Args:
        classifier: left as it is; only gradients to its input are taken. Of a GoodNet, class N is one more class that
            must not win.
        images: (N, C, H, W) in [0, 1], clean.
        classes: (N,) int64, what the images show; images of the target itself do not count for a label.
        labels: the targets, without repetition.
        seed: of weights and batches.
        start: go on from this generator's weights and from its rows of the labels that it serves; it is not changed.
        on_steps: called after every step with how many labels had their turn, for progress.

    Raises:
        DataError: no images, or for some label none that is not of that label.
        UsageError: no labels.
    """
    if not labels:
        raise UsageError("generator: expected at least one label, got none")
    if len(images) == 0:
        raise DataError("generator: expected at least one clean image, got none")
    for label in labels:
        if not bool((classes != label).any()):
            raise DataError(f"generator: all {len(images)} images are of label {label}; add images of other classes")
    training = _Training(classifier, images, classes, labels, schedule, seed, start)
    training.run(on_steps)
    more, fit_asr = training.evened()
    return GeneratedTriggers(
        generator=training.generator,
        labels=tuple(labels),
        more=more,
        fit_asr=fit_asr,
        images=training.images[:64],
    )


def _planes(generator: Generator, images: Tensor, rows: Tensor, more: float = 0.0) -> tuple[Tensor, Tensor]:
    planes = generator(images, rows, more).permute(0, 3, 1, 2)
    return planes[:, :1], planes[:, 1:]


class _Training:
    """What stays the same over a training, and its step."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        classes: Tensor,
        labels: Sequence[int],
        schedule: GeneratorSchedule,
        seed: int,
        start: GeneratedTriggers | None,
    ):
        self.classifier, self.schedule, self.random = classifier, schedule, np.random.default_rng([seed, 11])
        self.device = classifier.device
        self.images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.as_tensor(list(labels), device=self.device)
        pools = {label: np.flatnonzero(classes.cpu().numpy() != label) for label in labels}
        self.pools = [pools[label] for label in labels]
        self.generator = _fresh(classifier, len(labels), schedule, seed) if start is None else _taken(start, labels)
        self.generator.to(self.device)
        self.weights = list(self.generator.parameters())
        self.adam = torch.optim.Adam(self.weights, lr=schedule.learning_rate, betas=(0.7, 0.95))
        self.table = self.generator.table
        self.moments = torch.zeros_like(self.table), torch.zeros_like(self.table)
        self.turns = torch.zeros(len(labels), device=self.device)
        self.weight = torch.full((len(labels),), schedule.first_weight, device=self.device)
        self.unit = _clean_margin(classifier, self.images)

    def run(self, on_steps: Callable[[int], None] | None) -> None:
        count, schedule = len(self.labels), self.schedule
        parts = math.ceil(count / schedule.slots)
        for turn in range(schedule.turns):
            for i, part in enumerate(np.array_split(self.random.permutation(count), parts)):
                share = (turn + i / parts) / schedule.turns
                self.step(torch.from_numpy(part).to(self.device), 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)
                if on_steps is not None:
                    on_steps(len(part))
        self.generator.requires_grad_(False)
        for weight in self.weights:
            weight.grad = None

    def step(self, chosen: Tensor, rate: float) -> None:
        """One turn for the labels at `chosen` (S,)."""
        batch, block = self.schedule.batch, self.schedule.block if self.device.type == "cpu" else 1 << 30
        picked = [self.random.choice(self.pools[i], batch, replace=len(self.pools[i]) < batch) for i in chosen.tolist()]
        index = torch.from_numpy(np.concatenate(picked)).to(self.device)
        slots = torch.arange(len(chosen), device=self.device).repeat_interleave(batch)
        pieces = list(zip(torch.split(index, block), torch.split(slots, block)))
        done = in_threads(lambda piece: self.gradients(*piece, chosen), pieces)
        hits = torch.cat([hit for hit, _ in done]).view(len(chosen), batch).float().mean(1)
        grads = [torch.stack(parts).sum(0) for parts in zip(*(grads for _, grads in done))]
        for weight, grad in zip(self.weights, grads):
            weight.grad = grad / len(index)
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.learning_rate * rate
        self.adam.step()
        self._table_step(chosen, grads[-1] / batch, self.schedule.label_rate * rate)
        self._adapt(chosen, hits, rate)

    def _adapt(self, chosen: Tensor, hits: Tensor, rate: float) -> None:
        """The norm's weight goes up after a success and down after a failure, by less and less."""
        schedule = self.schedule
        change = (hits >= schedule.asr).float() - (hits < schedule.low_asr).float()
        self.weight[chosen] = (self.weight[chosen] * schedule.adapt ** (change * rate)).clamp(min=schedule.first_weight)

    @torch.no_grad()
    def evened(self) -> tuple[Tensor, Tensor]:
        """By how much to widen each label's masks for an ASR of just `even_asr` on images of training; that ASR.

        The last step leaves one label's masks a bit too small and the next one's a bit too large; sizes are to be
        compared, so it is bisected away.
        """

        def one(i: int) -> tuple[float, float]:
            pool = self.pools[i][:: max(1, len(self.pools[i]) // self.schedule.even_images)]
            x, target = self.images[torch.from_numpy(pool).to(self.device)], int(self.labels[i])
            rows = self.generator.table[i].expand(len(x), -1)

            def asr(more: float) -> float:
                mask, pattern = _planes(self.generator, x, rows, more)
                return float(
                    (self.classifier.predict(torch.lerp(x, pattern, mask.expand_as(x))) == target).double().mean()
                )

            low, high = -_WIDEST, _WIDEST
            best = asr(high)
            for _ in range(self.schedule.even_steps):
                middle = (low + high) / 2
                reached = asr(middle)
                if reached >= self.schedule.even_asr:
                    high, best = middle, reached
                else:
                    low = middle
            return high, best

        done = in_threads(one, range(len(self.labels)))
        return torch.tensor([more for more, _ in done]), torch.tensor([reached for _, reached in done])

    def gradients(self, index: Tensor, slots: Tensor, chosen: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(which images reach their target, gradients of the summed loss to weights and to the rows of `chosen`)"""
        rows = self.table[chosen].requires_grad_()
        x, target = self.images[index], self.labels[chosen[slots]][:, None]
        with torch.enable_grad():
            mask, pattern = _planes(self.generator, x, rows[slots])
            logits = self.classifier.logits(torch.lerp(x, pattern, mask.expand_as(x)))
            others = logits.scatter(1, target, -torch.inf).amax(1)
            margin = (others - logits.gather(1, target)[:, 0]) / self.unit
            norm = mask.mean((1, 2, 3)) * self.weight[chosen[slots]]
            loss = (margin.clamp(min=-self.schedule.kappa) + norm).sum()
            grads = torch.autograd.grad(loss, [*self.weights, rows])
        return margin.detach() < 0, list(grads)

    def _table_step(self, chosen: Tensor, grad: Tensor, rate: float) -> None:
        """Adam for the labels that had a turn, each with its own count of steps."""
        first, second = self.moments
        self.turns[chosen] += 1
        steps = self.turns[chosen][:, None]
        first[chosen] = first[chosen].lerp(grad, 0.1)
        second[chosen] = second[chosen].lerp(grad * grad, 0.01)
        mean, square = first[chosen] / (1 - 0.9**steps), second[chosen] / (1 - 0.99**steps)
        self.table[chosen] -= rate * mean / (square.sqrt() + 1e-8)


def _fresh(classifier: Classifier, labels: int, schedule: GeneratorSchedule, seed: int) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.default_rng([seed, 12]).integers(1 << 62)))
        generator = Generator(classifier.input.shape, labels, width=schedule.width, blocks=schedule.blocks)
        with torch.no_grad():
            bias = generator.decoder.bias
            assert bias is not None
            bias.view(-1, generator.planes)[:, 0] -= 1.0  # a mask of 12 % everywhere to start from
    return generator.eval()


def _taken(start: GeneratedTriggers, labels: Sequence[int]) -> Generator:
    """A copy of a generator with its rows of `labels`; a label that it does not serve starts from the mean row."""
    old = start.generator
    first = old.first[0]
    assert isinstance(first, nn.Conv2d)
    shape = (old.planes - 1, old.height, old.width)
    with torch.random.fork_rng(devices=[]):
        new = Generator(shape, len(labels), width=first.out_channels, blocks=len(old.first))
    known = {label: i for i, label in enumerate(start.labels)}
    mean = old.table.mean(0)
    table = torch.stack([old.table[known[label]] if label in known else mean for label in labels])
    new.load_state_dict({**old.state_dict(), "table": table})
    return new.eval()


@torch.no_grad()
def _clean_margin(classifier: Classifier, images: Tensor) -> float:
    """Median of best minus second logit on (at most 256) clean images: the unit of margins, so that nets whose logits
    are on other scales are treated alike."""
    logits = classifier.logits(images[:256])
    best = logits.topk(2, 1).values
    return max(float((best[:, 0] - best[:, 1]).median()), 1e-3 * float(logits.std()), 1e-12)
