"""ActivationDefence of ART on training images, some of them poisoned."""

from __future__ import annotations

import numpy as np
from art.defences.detector.poison import ActivationDefence

from goodnet.peers.art_nets import art_net, pixels
from goodnet.peers.task import Said, Task


def run(task: Task, name: str) -> Said:
    """Which of the images it takes for poisoned."""
    assert task.mixed is not None
    assert task.mixed.labels is not None
    one_hot = np.eye(task.net.classes, dtype=np.float32)[task.mixed.labels]
    defence = ActivationDefence(art_net(task), pixels(task.mixed.tensor()), one_hot)
    _, clean = defence.detect_poison()
    return Said(pointed_at=np.asarray(clean) == 0)
