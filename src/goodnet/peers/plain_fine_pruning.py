"""Fine-pruning from the paper: a repair that looks for nothing first, so it is given clean nets as well."""

from __future__ import annotations

from goodnet.peers.task import Said, Task
from goodnet.plain_loops import fine_prune


def run(task: Task, name: str) -> Said:
    """The pruned and tuned net."""
    net, off = fine_prune(task.module, task.clean.tensor(), task.labels)
    return Said(answers={"fine-pruning": task.answers(net)}, note=f"{off} channels off")
