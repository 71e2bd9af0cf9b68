"""Neural Cleanse from the paper, with its unlearning where a label is flagged."""

from __future__ import annotations

from goodnet.peers.task import Said, Task
from goodnet.plain_loops import outliers, reverse, unlearn


def run(task: Task, name: str) -> Said:
    """Verdict and, where one is flagged, the net after unlearning."""
    x = task.clean.tensor()
    found = reverse(task.module.requires_grad_(False), x, range(task.net.classes), progress=task.progress)
    flagged = [found[turn] for turn in outliers([one.norm for one in found])]
    if not flagged:
        return Said(verdict="clean", flagged=())
    labels = tuple(one.label for one in flagged)
    task.tell(Said(verdict="suspect", flagged=labels, note="its repair was not done"))
    answers = {"unlearning": task.answers(unlearn(task.module, x, task.labels, flagged))}
    return Said(verdict="suspect", flagged=labels, answers=answers)
