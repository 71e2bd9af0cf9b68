"""neural_cleanse and tabor of trojanvision: a mask a label; their anomaly indices are read with the paper's bound."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from goodnet.peers.task import Said, Task
from goodnet.peers.trojanvision_parts import parts
from goodnet.plain_loops import INDEX

_CLASSES = {"trojanvision-neural-cleanse": "NeuralCleanse", "trojanvision-tabor": "Tabor"}


def run(task: Task, name: str) -> Said:
    """Verdict; trojanvision repairs nothing with it."""
    with TemporaryDirectory(prefix="goodnet-peers-") as folder:
        given = parts(task, Path(folder))
        from trojanvision import defenses
        from trojanzoo.utils.metric import normalize_mad

        defence = getattr(defenses, _CLASSES[name])(name=name, **given)
        marks: list[Any] = []
        search = defence.optimize_mark

        def told(label: int, **kw: Any) -> Any:
            found = search(label, **kw)
            marks.append(found[0])
            task.progress(name, len(marks), task.net.classes)
            return found

        defence.optimize_mark = told
        defence.detect()
    norms = [float(mark[-1].abs().sum()) for mark in marks]
    indices, median = normalize_mad(norms).tolist(), sorted(norms)[(len(norms) - 1) // 2]
    flagged = tuple(label for label, index in enumerate(indices) if norms[label] < median and index > INDEX)
    return Said(verdict="suspect" if flagged else "clean", flagged=flagged)
