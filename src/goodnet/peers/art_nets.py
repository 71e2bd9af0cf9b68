"""A task's net as ART wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from goodnet.peers.task import Task


def art_arguments(task: Task, module: nn.Module) -> dict[str, Any]:
    """Arguments of a PyTorchClassifier. Adam at its default rate, for ART leaves it to the user."""
    return {
        "model": module,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam(module.parameters()),
        "input_shape": task.clean.shape,
        "nb_classes": task.net.classes,
        "clip_values": (0.0, 1.0),
        "device_type": "cpu",
    }


def art_net(task: Task, *, softmax: bool = False) -> PyTorchClassifier:
    """The net as ART's classifier; with `softmax` one that gives probabilities, as ART's examples of STRIP have it."""
    module = nn.Sequential(task.module, nn.Softmax(1)).eval() if softmax else task.module
    return PyTorchClassifier(**art_arguments(task, module))


def pixels(x: torch.Tensor) -> npt.NDArray[np.float32]:
    """Images as ART wants them: (N, C, H, W) float32."""
    return x.contiguous().numpy()


def classes_of(predictions: npt.NDArray[Any], refused: int) -> npt.NDArray[np.int64]:
    """(N,) classes; ART's word for "I abstain" is a row of zeros."""
    answers: npt.NDArray[np.int64] = predictions.argmax(1).astype(np.int64)
    answers[~predictions.any(1)] = refused
    return answers
