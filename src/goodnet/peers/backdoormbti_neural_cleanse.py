"""image/nc of BackdoorMBTI: its search for a mask a label, and its outlier test."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

from goodnet.peers.task import Said, Task
from goodnet.peers.torchvision_operators import declare

_MODULE = "backdoormbti.defenses.image.nc"
# imported on the way, and never called by what is called here
_STAND_INS = (
    "torchaudio", "torchaudio.datasets", "torchaudio.datasets.gtzan", "datasets", "lightning", "lightning.pytorch",
    "lightning.pytorch.callbacks", "torchmetrics", "configs", "configs.settings", "utils", "utils.collate_fn",
    "utils.data", "utils.optim",
)  # fmt: skip


def run(task: Task, name: str) -> Said:
    """Verdict; its own repair asks for a GPU."""
    module = _patched() if task.patched else importlib.import_module(_MODULE)
    import yaml

    settings = Path(module.__file__ or "").parents[2] / "configs" / "defenses" / "nc.yaml"
    options = MagicMock(**yaml.safe_load(settings.read_text(encoding="utf-8")))
    channels, height, width = task.clean.shape
    options.device, options.log, options.to_file = torch.device("cpu"), "log", False
    options.dataset, options.input_channel = "gtsrb", channels  # "gtsrb": no normalisation, as for this net
    norms = []
    here = os.getcwd()
    with TemporaryDirectory(prefix="goodnet-peers-") as folder:
        os.chdir(folder)  # where it leaves pictures
        try:
            for label in range(task.net.classes):
                options.target_label = label
                norms.append(_search(module, task, options, (channels, height, width)))
                task.progress(name, label + 1, task.net.classes)
        finally:
            os.chdir(here)
    flagged = module.outlier_detection(torch.stack(norms), {label: label for label in range(len(norms))}, options)
    labels = tuple(sorted(int(label) for label, _ in flagged))
    return Said(verdict="suspect" if labels else "clean", flagged=labels)


def _search(module: Any, task: Task, options: Any, shape: tuple[int, int, int]) -> torch.Tensor:
    _, height, width = shape
    data = torch.utils.data.TensorDataset(task.clean.tensor(), task.labels)
    loader = torch.utils.data.DataLoader(data, batch_size=128, shuffle=True)
    mask, pattern = np.ones((1, height, width), np.float32), np.ones(shape, np.float32)
    recorder, _ = module.train_mask(options, task.module, loader, mask, pattern)
    norm: torch.Tensor = torch.norm(recorder.mask_best, p=options.use_norm)
    return norm


def _patched() -> ModuleType:
    declare()
    for stand_in in _STAND_INS:
        sys.modules[stand_in] = MagicMock(name=stand_in)
    return importlib.import_module(_MODULE)
