"""Saving a net in goodnet's own format as a transaction: the file under the user's name is whole and checked, or not
there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from goodnet.errors import GoodnetError, ModelError
from goodnet.export.probes import probe_images
from goodnet.export.transaction import Exported, compared
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_file import load_goodnet, write_goodnet
from goodnet.models.load import file_sha256
from goodnet.outputs import check_file, replacing


def save_goodnet(classifier: Classifier, path: Path, *, overwrite: bool = False, arch_name: str | None = None) -> str:
    """`save_native` with eight images of noise to compare on. Returns the file's SHA-256."""
    noise = torch.rand(8, *classifier.input.shape, generator=torch.Generator().manual_seed(0))
    return _save(classifier, path, noise, overwrite=overwrite, arch_name=arch_name).sha256


def save_native(
    classifier: Classifier,
    path: Path,
    *,
    probe: Tensor | None = None,
    overwrite: bool = False,
    arch_name: str | None = None,
) -> Exported:
    """Writes under a temporary name, loads that again, compares logits, hashes, renames.

    Args:
        classifier: a GoodNet, or a plain net, whose file then needs no `--arch`.
        probe: images (N, C, H, W) in [0, 1] to compare on; noise where there are none.
        overwrite: replace a file that is there.
        arch_name: `FILE.py:CALLABLE`, if the nets were built by the user's own code (needed to load again).

    Raises:
        UsageError: the file is there already, or its folder is not.
        ModelError: what was written is not what was meant; the file is removed.
    """
    return _save(classifier, path, probe_images(classifier, probe), overwrite=overwrite, arch_name=arch_name)


def _save(classifier: Classifier, path: Path, images: Tensor, *, overwrite: bool, arch_name: str | None) -> Exported:
    check_file(path, overwrite=overwrite)
    with replacing(path) as part:
        loaded = _written(classifier, part, path, arch_name)
        with torch.no_grad():
            got = torch.cat([loaded.logits(some) for some in (images, images[:1])]).numpy()
        same = compared(classifier, images, got, path, "read again")
        digest = file_sha256(part)
    sides = ", ".join(map(str, classifier.input.shape))
    return Exported(
        file=str(path), sha256=digest, format="safetensors", input=f"float32 (N, {sides}) in [0, 1]", **vars(same)
    )


def _written(classifier: Classifier, part: Path, path: Path, arch_name: str | None) -> Classifier:
    """What `part` holds once the net was written there; messages name `path`, the file that the user knows."""
    write_goodnet(classifier, part)
    try:
        return load_goodnet(part, arch_name=arch_name)
    except GoodnetError as error:
        reason = str(error).replace(str(part), "it")
        raise ModelError(f"{path}: the saved net cannot be read back and was not kept ({reason})") from error
