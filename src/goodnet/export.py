"""Saving a GoodNet as a transaction: the file under the user's name is whole and checked, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from goodnet.errors import GoodnetError, ModelError
from goodnet.models.classifier import Classifier
from goodnet.models.formats import one_line
from goodnet.models.goodnet_file import load_goodnet, write_goodnet
from goodnet.models.load import file_sha256
from goodnet.outputs import check_file, replacing


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
    with replacing(path) as part:
        loaded = _written(classifier, part, path, arch_name)
        probe = torch.rand(8, *classifier.input.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted, got = classifier.logits(probe.to(classifier.device)).cpu(), loaded.logits(probe)
        if not torch.allclose(wanted, got, rtol=1e-4, atol=1e-4):
            raise ModelError(f"{path}: the saved GoodNet answers otherwise than the one in memory and was not kept")
        digest = file_sha256(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
    return digest


def _written(classifier: Classifier, part: Path, path: Path, arch_name: str | None) -> Classifier:
    """What `part` holds once the GoodNet was written there; messages name `path`, the file that the user knows."""
    try:
        write_goodnet(classifier, part)
    except SafetensorError as error:  # its own name for a full disk, among others
        raise ModelError(f"{path}: the GoodNet cannot be written ({one_line(error)}); check free space") from error
    try:
        return load_goodnet(part, arch_name=arch_name)
    except GoodnetError as error:
        reason = str(error).replace(str(part), "it")
        raise ModelError(f"{path}: the saved GoodNet cannot be read back and was not kept ({reason})") from error
