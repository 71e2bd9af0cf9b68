"""Which format a file's name asks for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from goodnet.errors import UsageError
from goodnet.export.keras_file import KERAS
from goodnet.export.native import save_native
from goodnet.export.onnx_file import ONNX
from goodnet.export.pt2_file import PT2
from goodnet.export.transaction import Exported, Format, save
from goodnet.models.classifier import Classifier

FORMATS: dict[str, Format] = {".onnx": ONNX, ".keras": KERAS, ".pt2": PT2}
NATIVE = ".safetensors"


def export_net(
    classifier: Classifier,
    path: Path,
    *,
    probe: Tensor | None = None,
    overwrite: bool = False,
    arch_name: str | None = None,
) -> Exported:
    """Writes a net or a GoodNet in the format that the name of the file ends in.

    Args:
        probe: images (N, C, H, W) in [0, 1] to compare on; noise where there are none.
        arch_name: `FILE.py:CALLABLE`, if the net was built by the user's own code.

    Raises:
        UsageError: an ending that is none, or see `transaction.save`.
        ModelError: see `transaction.save`.
    """
    check_suffix(path)
    form = FORMATS.get(path.suffix.lower())
    if form is not None:
        return save(classifier, path, form, probe=probe, overwrite=overwrite)
    return save_native(classifier, path, probe=probe, overwrite=overwrite, arch_name=arch_name)


def check_suffix(path: Path) -> None:
    """Raises UsageError unless the name ends in that of a format that is written."""
    if path.suffix.lower() not in (*FORMATS, NATIVE):
        raise UsageError(f"-o: expected a name that ends in {', '.join(FORMATS)} or {NATIVE}, got {path}")
