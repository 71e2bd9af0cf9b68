"""A task as trojanvision wants it: a dataset, a model, and an attack, which its defences ask for.

The attack is told nothing of the real one: its mark is trojanvision's own default, a white 3x3 square, target 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from goodnet.peers.task import Task
from goodnet.peers.torchvision_operators import declare

_CONFIGURED = {43: "gtsrb", 10: "cifar10"}  # by number of classes: what trojanvision has settings of its own for
_BATCH = {"gtsrb": 96, "cifar10": 96}


def parts(task: Task, folder: Path) -> dict[str, Any]:
    """Arguments that every defence takes. Raises whatever importing trojanvision raises."""
    if task.patched:
        declare()
    from trojanvision.attacks import BadNet
    from trojanvision.datasets import ImageSet
    from trojanvision.marks import Watermark
    from trojanvision.models import ImageModel
    from trojanzoo.utils.data import TensorListDataset

    assert task.clean.labels is not None
    x, labels = task.clean.tensor(), task.clean.labels.tolist()

    class Given(ImageSet):  # type: ignore[misc]
        name = config_name(task)
        data_shape = list(task.clean.shape)  # noqa: RUF012
        num_classes = task.net.classes

        def _get_org_dataset(self, mode: str, transform: Any = None, **kw: Any) -> Any:
            return TensorListDataset(x, labels)

    data = Given(batch_size=_BATCH.get(config_name(task), 128), num_workers=0, folder_path=str(folder))
    model = ImageModel(name="given", model=_Model(task), dataset=data, modify_first_layer_channel=False)
    mark = Watermark(data_shape=data.data_shape)
    attack = BadNet(name="badnet", mark=mark, dataset=data, model=model, folder_path=str(folder))
    return {"attack": attack, "original": True, "dataset": data, "model": model, "folder_path": str(folder)}


def config_name(task: Task) -> str:
    """The dataset whose settings trojanvision uses; a name that it has none for takes its defaults."""
    return _CONFIGURED.get(task.net.classes, "given")


class _Model(nn.Module):
    """The net, with what trojanvision asks of its own models: the output of the last convolution."""

    def __init__(self, task: Task):
        super().__init__()
        self.whole = task.module
        self.num_classes = task.net.classes

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.whole(x)
        return out

    def get_fm(self, x: Tensor, **kw: Any) -> Tensor:
        last = [module for module in self.modules() if isinstance(module, nn.Conv2d)][-1]
        seen: list[Tensor] = []
        handle = last.register_forward_hook(lambda module, inputs, out: seen.append(out))
        self.whole(x)
        handle.remove()
        return seen[0]
