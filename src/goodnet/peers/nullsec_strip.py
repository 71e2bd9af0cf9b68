"""STRIP of nullsec-datapoisoning in front of the net as it came; images are lists of numbers to it."""

from __future__ import annotations

import numpy as np
import torch
from nullsec_datapoisoning.defences import strip_detect

from goodnet.peers.task import Said, Task


def run(task: Task, name: str) -> Said:
    """The guarded net: refused where it says `poisoned`."""
    module, shape = task.module, task.clean.shape

    @torch.no_grad()
    def predict(pixels: list[float]) -> list[float]:
        probabilities: list[float] = module(torch.tensor(pixels).view(1, *shape)).softmax(1)[0].tolist()
        return probabilities

    clean = task.clean.tensor().flatten(1).tolist()
    answers = task.answers(module)
    poisoned = np.zeros(len(answers), bool)
    for turn, image in enumerate(task.asked.tensor().flatten(1).tolist()):
        poisoned[turn] = strip_detect(predict, image, clean)["poisoned"]
        task.progress(name, turn + 1, len(answers)) if turn % 20 == 19 else None
    return Said(answers={"STRIP": np.where(poisoned, task.net.classes, answers)}, guards=("STRIP",))
