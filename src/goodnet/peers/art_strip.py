"""STRIP of ART in front of the net as it came."""

from __future__ import annotations

import numpy as np
from art.defences.transformer.poisoning import STRIP
from art.estimators.poison_mitigation.strip import strip

from goodnet.peers.art_nets import art_net, classes_of, pixels
from goodnet.peers.task import Said, Task


def run(task: Task, name: str) -> Said:
    """The guarded net: refused where ART abstains."""
    if task.patched:
        over_classes = strip.entropy  # scipy's, which STRIP calls with axis=0
        strip.entropy = lambda predictions, base, axis: over_classes(predictions, base=base, axis=1)
    guarded = STRIP(art_net(task, softmax=True))()
    guarded.mitigate(pixels(task.clean.tensor()))
    asked = pixels(task.asked.tensor())
    parts = []
    for start in range(0, len(asked), 64):
        parts.append(guarded.predict(asked[start : start + 64]))
        task.progress("STRIP", min(start + 64, len(asked)), len(asked))
    return Said(answers={"STRIP": classes_of(np.concatenate(parts), task.net.classes)}, guards=("STRIP",))
