"""Activation clustering of aegis-scan-ai on training images, some of them poisoned.

It leaves the layer to the user who brings a net of another kind: here it is what the last layer sees, as in the paper.
"""

from __future__ import annotations

from aegis_scan.detect.clustering import activation_clustering_flags

from goodnet.models.surgery import features, output_layer
from goodnet.peers.task import Said, Task


def run(task: Task, name: str) -> Said:
    """Which of the images it takes for poisoned."""
    assert task.mixed is not None
    seen = features(task.net, output_layer(task.net), task.mixed.tensor()).flatten(1).numpy()
    return Said(pointed_at=activation_clustering_flags(seen, task.mixed.labels))
