"""Saving a GoodNet as a transaction: the file under the user's name is whole and checked, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from goodnet.errors import ModelError
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_file import load_goodnet, write_goodnet
from goodnet.models.load import file_sha256
from goodnet.outputs import check_file


def save_goodnet(classifier: Classifier, path: Path, *, overwrite: bool = False, arch_name: str | None = None) -> str:
    """Writes under a temporary name, loads that again, compares logits on a probe batch, hashes, renames.

    Args:
        classifier: a GoodNet.
        overwrite: replace a file that is there.
        arch_name: `FILE.py:CALLABLE`, if the nets were built by the user's own code (needed to load again).

    Returns:
        SHA-256 of the file.

    Raises:
        UsageError: the file is there already, or its folder is not.
        ModelError: what was written is not what was meant; the file is removed.
    """
    check_file(path, overwrite=overwrite)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_goodnet(classifier, part)
        loaded = load_goodnet(part, arch_name=arch_name)
        probe = torch.rand(8, *classifier.input.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted, got = classifier.logits(probe.to(classifier.device)).cpu(), loaded.logits(probe)
        if not torch.allclose(wanted, got, rtol=1e-4, atol=1e-4):
            raise ModelError(f"{path}: the saved GoodNet answers otherwise than the one in memory; it was not kept")
        digest = file_sha256(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return digest
