"""fine_pruning of trojanvision: a repair without a verdict."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from goodnet.peers.task import Said, Task
from goodnet.peers.trojanvision_parts import config_name, parts


def run(task: Task, name: str) -> Said:
    """The pruned and tuned net."""
    with TemporaryDirectory(prefix="goodnet-peers-") as folder:
        given = parts(task, Path(folder))
        import trojanvision.trainer
        from trojanvision.defenses import FinePruning

        trainer = trojanvision.trainer.create(
            dataset_name=config_name(task), dataset=given["dataset"], model=given["model"]
        )
        FinePruning(name=name, **given).detect(**trainer)
    return Said(answers={"fine-pruning": task.answers(given["model"]._model)})
