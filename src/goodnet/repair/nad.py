"""NAD: the BadNet learns from its own fine-tuned copy where to look.

Li, Lyu, Koren, Lyu, Li, Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR
2021, Sec. 3. Idea: a teacher is fine-tuned from the BadNet on clean images; then the BadNet, as the student, is
fine-tuned on them, too, and held to the teacher's attention: the sum over channels of |activation|^p, as a map of
length 1 (Eq. 1 and 2), at several layers.
Cost: two fine-tunings, the second with a pass of the teacher for each step. Blind spots: those of fine-tuning: what
clean images do not excite stays, and with few images of many classes accuracy goes first.

Deviations: (1) the layers are the last convolution at each size of map, found by running an image; the paper takes the
ends of a residual net's three groups. (2) One weight, 1000, for all layers (paper: 500 to 1000 by layer). (3) SGD at
0.005 with momentum 0.9 for both (paper: 0.1 and decay, which breaks nets without batch norm). (4) No augmentation;
batch norm stays in eval mode. (5) The last epoch is kept whose ACC on the choosing split is within the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.tuning import Labelled, LastWithin, Repaired, accuracy, batches, trainable

_EPOCH_IMAGES = 2048


@dataclass(frozen=True, kw_only=True)
class AttentionDistillation:
    """Hyperparameters; call it on a net.

    Attributes:
        max_accuracy_drop: an epoch of the student counts only if ACC on the choosing split has fallen by at most this.
        power: p of the attention (paper: 2).
        weight: of the attention's distance, against cross entropy.
        teacher_epochs, epochs: of teacher and student (paper: 10 each); an epoch takes at most 2,048 images.
        learning_rate, momentum, decay, batch: of both (SGD).
    """

    max_accuracy_drop: float = 0.05
    power: float = 2.0
    weight: float = 1000.0
    teacher_epochs: int = 10
    epochs: int = 10
    learning_rate: float = 5e-3
    momentum: float = 0.9
    decay: float = 1e-4
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1 or not self.power > 0 or self.weight < 0:
            raise UsageError(
                "nad: expected max_accuracy_drop in [0, 1), power > 0 and weight >= 0, "
                f"got {self.max_accuracy_drop}, {self.power} and {self.weight}"
            )
        if min(self.teacher_epochs, self.epochs, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "nad: expected teacher_epochs, epochs and batch >= 1 and learning_rate > 0, "
                f"got {self.teacher_epochs}, {self.epochs}, {self.batch} and {self.learning_rate}"
            )

    def __call__(
        self,
        classifier: Classifier,
        fit: Labelled,
        choose: Labelled,
        *,
        seed: int,
        progress: Progress = silent,
    ) -> Repaired:
        """Trains a copy of the net.

        Args:
            fit: clean images (N, C, H, W) in [0, 1] and classes (N,).
            choose: the same, disjoint: which epoch to keep.

        Raises:
            ModelError: the net has no convolution.
        """
        layers = attention_layers(classifier)
        random = np.random.default_rng([seed, 23])
        total, done = self.teacher_epochs + self.epochs, 0
        teacher, student = surgery.clone(classifier), surgery.clone(classifier)
        best = LastWithin(student, choose, accuracy(classifier, choose) - self.max_accuracy_drop - 1e-9)

        def plain(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(teacher.logits(x), y)

        def attentive(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                _, wanted = self._seen(teacher, layers, x)
            logits, given = self._seen(student, layers, x)
            distance = sum(F.mse_loss(a, b) for a, b in zip(given, wanted))
            return F.cross_entropy(logits, y) + self.weight * distance

        for net, epochs, loss in ((teacher, self.teacher_epochs, plain), (student, self.epochs, attentive)):
            with trainable(net.net):
                sgd = torch.optim.SGD(
                    net.net.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.decay
                )
                for epoch in range(1, epochs + 1):
                    self._epoch(sgd, loss, fit, random, net.device)
                    done += 1
                    if net is student:
                        best.look(epoch)
                    progress("attention distillation", done, total)
        return Repaired(classifier=student, epoch=best.restore())

    def _epoch(
        self,
        sgd: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        fit: Labelled,
        random: np.random.Generator,
        device: torch.device,
    ) -> None:
        for part in batches(len(fit[0]), self.batch, random, most=_EPOCH_IMAGES):
            index = torch.from_numpy(part)
            sgd.zero_grad()
            loss(fit[0][index].to(device), fit[1][index].to(device)).backward()  # type: ignore[no-untyped-call]
            sgd.step()

    def _seen(self, net: Classifier, layers: Sequence[str], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and each layer's attention."""
        with ExitStack() as stack:
            recorded = [stack.enter_context(surgery.record_output(net.net, layer)) for layer in layers]
            logits = net.logits(x)
        return logits, [attention(outputs[0], self.power) for outputs in recorded]


def attention(activations: Tensor, power: float) -> Tensor:
    """(N, C, H, W) -> (N, H * W): the sum over channels of |activation|^power, of length 1 (Eq. 1 and 2)."""
    return F.normalize(activations.abs().pow(power).sum(1).flatten(1), dim=1)


@torch.no_grad()
def attention_layers(classifier: Classifier) -> list[str]:
    """The last convolution at each size of map, in the order in which they run.

    Raises:
        ModelError: the net has none.
    """
    sizes: list[tuple[str, torch.Size]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: sizes.append((name, out.shape[2:])))
        for name, module in classifier.net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        classifier.logits(torch.full((1, *classifier.input.shape), 0.5, device=classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    last = {size: name for name, size in sizes}
    if not last:
        raise ModelError(
            f"{classifier.name}: expected a net with convolutions, whose maps show where it looks; use a method that "
            "needs none, such as ft-sam"
        )
    return [name for name, size in sizes if last[size] == name]
