"""goodnet itself, as a user would call it: a scan, and where that flags a label, `repair --method auto`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from goodnet.auto import auto
from goodnet.found import Found
from goodnet.measure import answer
from goodnet.models.goodnet import GoodNet, SecondOpinion
from goodnet.peers.task import Said, Task
from goodnet.scan import scan

_TIME_LIMIT = 300.0


def run(task: Task, name: str) -> Said:
    """Verdict and GoodNet; the repaired net in it alone as well, where it has one."""
    with TemporaryDirectory(prefix="goodnet-peers-") as folder:
        record = scan(task.net, task.clean, seed=task.seed, out=Path(folder) / "scan")
        if not record.flagged_labels:
            return Said(verdict=record.verdict, flagged=record.flagged_labels)
        found, _ = Found.in_folder(Path(folder) / "scan")
    task.tell(Said(verdict=record.verdict, flagged=record.flagged_labels, note="its repair was not done"))
    repaired, goodnet = auto(
        task.net, task.clean, found=found, surrogate=task.surrogate, time_limit=_TIME_LIMIT, seed=task.seed
    )
    method = repaired.method.name if repaired.guard is None else f"{repaired.method.name}, {repaired.guard.name}"
    answers = {f"auto: {method}": answer(goodnet, task.asked)}
    guards = tuple(answers) if goodnet.refuses else ()
    if isinstance(goodnet.net, GoodNet | SecondOpinion):
        alone = task.module
        alone.net = goodnet.net.good
        answers["its repaired net alone"] = task.answers(alone)
    note = "" if repaired.accepted else "its own judge did not accept the repair"
    return Said(verdict=record.verdict, flagged=record.flagged_labels, answers=answers, guards=guards, note=note)
