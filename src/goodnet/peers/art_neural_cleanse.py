"""NeuralCleanse of ART. As released it takes Keras nets alone; `_ForPyTorch` is its Keras file line by line in PyTorch.

Kept from it, whatever one may think of it: a mask for each colour, the root of the mask's square for its cost, that
the cost falls back to its start whenever five epochs in turn reach the label, and that the images to unlearn are those
of the flagged class itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from art.defences.transformer.poisoning import NeuralCleanse
from art.estimators.classification import PyTorchClassifier
from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin
from torch import Tensor

from goodnet.models.surgery import output_layer, record_input
from goodnet.peers.art_nets import art_arguments, art_net, classes_of, pixels
from goodnet.peers.task import Said, Task

_STEPS = {"art-neural-cleanse": 10, "art-neural-cleanse-1000": 1000}
_REPAIRS = ("unlearning", "pruning", "filtering")
_EPSILON = 1e-7  # of Keras
_Array = npt.NDArray[np.float32]


def run(task: Task, name: str) -> Said:
    """Verdict and, where a label is flagged, each of ART's three repairs of it, each on a net as it came."""
    if not task.patched:
        NeuralCleanse(art_net(task))
        raise AssertionError("ART has learned to take PyTorch nets; compare it as released")
    x, one_hot = pixels(task.clean.tensor()), np.eye(task.net.classes, dtype=np.float32)[task.labels.numpy()]
    asked, answers = pixels(task.asked.tensor()), {}
    flagged: Sequence[Any] | None = None
    for repair in _REPAIRS:
        net = _ForPyTorch(task, _STEPS[name], flagged)
        net.mitigate(x, one_hot, [repair])
        flagged = net.flagged
        if not flagged:
            return Said(verdict="clean", flagged=())
        net.model.eval()
        answers[repair] = classes_of(net.predict(asked), task.net.classes)
    assert flagged is not None
    return Said(
        verdict="suspect", flagged=tuple(int(label) for label, _, _ in flagged), answers=answers, guards=("filtering",)
    )


class _ForPyTorch(NeuralCleanseMixin, PyTorchClassifier):  # type: ignore[misc]
    """ART's mixin with what its KerasNeuralCleanse adds. `flagged` is what an earlier search of the net has found."""

    def __init__(self, task: Task, steps: int, flagged: Sequence[Any] | None):
        super().__init__(steps, **art_arguments(task, task.module))
        self._task, self.flagged, self._done = task, flagged, 0

    def outlier_detection(self, x_val: _Array, y_val: _Array) -> Any:
        if self.flagged is None:
            self.flagged = super().outlier_detection(x_val, y_val)
        return self.flagged

    def generate_backdoor(self, x_val: _Array, y_val: _Array, y_target: _Array) -> tuple[_Array, _Array]:
        search = _Search(self, x_val, int(y_target.argmax()))
        for _ in range(self.steps):
            if search.epoch():
                break
        self._done += 1
        self._task.progress("NeuralCleanse", self._done, self.nb_classes)
        return search.best()

    def _predict_classifier(self, x: _Array, batch_size: int = 128, training_mode: bool = False, **kw: Any) -> Any:
        return PyTorchClassifier.predict(self, x.astype(np.float32), batch_size=batch_size, training_mode=training_mode)

    def predict(self, x: _Array, batch_size: int = 128, training_mode: bool = False, **kw: Any) -> Any:
        return NeuralCleanseMixin.predict(self, x, batch_size=batch_size, training_mode=training_mode)

    def _fit_classifier(self, x: _Array, y: _Array, batch_size: int, nb_epochs: int, **kw: Any) -> None:
        self.fit(x.astype(np.float32), y, batch_size=batch_size, nb_epochs=nb_epochs)

    @torch.no_grad()
    def _get_penultimate_layer_activations(self, x: _Array) -> Any:
        with record_input(self.model.net, output_layer(self._task.net)) as seen:
            for part in torch.split(torch.from_numpy(x.astype(np.float32)), 128):
                self.model(part)
        return torch.cat(seen).flatten(1).numpy()

    @torch.no_grad()
    def _prune_neuron_at_index(self, index: int) -> None:
        """What leaves the neuron is nothing: the same as its weights and bias at zero before a ReLU."""
        self.model.net.get_submodule(output_layer(self._task.net)).weight[:, index] = 0


class _Search:
    """The loop of KerasNeuralCleanse.generate_backdoor for one label."""

    def __init__(self, owner: _ForPyTorch, x: _Array, label: int):
        self.o, self.x, self.label = owner, torch.from_numpy(x), label
        self.raw_mask, self.raw_pattern = (torch.rand(x.shape[1:]).requires_grad_() for _ in range(2))
        self.adam = torch.optim.Adam([self.raw_mask, self.raw_pattern], lr=owner.learning_rate, betas=(0.5, 0.9))
        self.cost = owner.init_cost
        self.found: tuple[Tensor, Tensor] | None = None
        self.least = self.least_before = float("inf")
        self.set = self.up = self.down = self.stop = 0
        self.went_up = self.went_down = False

    def best(self) -> tuple[_Array, _Array]:
        mask, pattern = self.found or self._shown()
        return mask.detach().numpy(), pattern.detach().numpy()

    def _shown(self) -> tuple[Tensor, Tensor]:
        mask, pattern = (torch.tanh(raw) / (2 - _EPSILON) + 0.5 for raw in (self.raw_mask, self.raw_pattern))
        return mask, pattern

    def epoch(self) -> bool:
        """One pass over the images; True for an early stop."""
        costs, hits = [], []
        size = self.o.batch_size
        for batch in torch.split(torch.randperm(len(self.x))[: len(self.x) // size * size], size):
            cost, hit = self._step(self.x[batch])
            costs.append(cost)
            hits.append(hit)
        return self._after(float(np.mean(costs)), float(np.mean(hits)))

    def _step(self, x: Tensor) -> tuple[float, float]:
        mask, pattern = self._shown()
        logits = self.o.model((1 - mask) * x + mask * pattern)
        target = torch.full((len(x),), self.label)
        size = (mask.square().sum() / mask.shape[0]).sqrt() if self.o.norm == 2 else mask.abs().sum() / mask.shape[0]
        self.adam.zero_grad()
        (F.cross_entropy(logits, target) + self.cost * size).backward()
        self.adam.step()
        return float(size), float((logits.argmax(1) == target).float().mean())

    def _after(self, cost: float, hits: float) -> bool:
        reached = hits >= self.o.attack_success_threshold
        if reached and cost < self.least:
            mask, pattern = self._shown()
            self.found, self.least = (mask.detach(), pattern.detach()), cost
        if self.o.early_stop:
            if self.least < float("inf"):
                small = self.least >= self.o.early_stop_threshold * self.least_before
                self.stop = self.stop + 1 if small else 0
            self.least_before = min(self.least, self.least_before)
            if self.went_up and self.went_down and self.stop >= self.o.early_stop_patience:
                return True
        self._change_cost(reached)
        return False

    def _change_cost(self, reached: bool) -> None:
        self.set = self.set + 1 if reached else 0
        if self.set >= self.o.patience:
            self.cost = self.o.init_cost
            self.up = self.down = 0
            self.went_up = self.went_down = False
        self.up, self.down = (self.up + 1, 0) if reached else (0, self.down + 1)
        if self.up >= self.o.patience:
            self.up, self.cost, self.went_up = 0, self.cost * self.o.cost_multiplier_up, True
        elif self.down >= self.o.patience:
            self.down, self.cost, self.went_down = 0, self.cost / self.o.cost_multiplier_down, True
