"""PyTorch files and safetensors, as tensors alone: nothing pickled is ever called.

`torch.load(weights_only=True)` unpickles with a short list of allowed names. What it refuses is refused here. Sizes
are bounded by the archive's directory before it is read, and by the tensors' own afterwards (a tensor may claim more
elements than its storage holds).
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from goodnet.data.npz import is_zip
from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.formats import MAX_BYTES, one_line

NESTED = ("state_dict", "net", "model", "model_state_dict", "weights")
PREFIXES = ("module.", "_orig_mod.")
WHAT_TO_DO = "ask for its state dict, saved with torch.save(net.state_dict(), FILE), or for safetensors"


def read_torch(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A `torch.save` file (zip or older) -> its state dict, float32 on the CPU, and notes on what was stripped.

    Raises:
        UnsafeFileError: a whole pickled module, TorchScript, or sizes beyond bounds.
        ModelError: damaged, or no state dict in it.
    """
    if is_zip(path):
        _check_archive(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not by its name, whose ending torch believes
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except MemoryError as error:
        raise UnsafeFileError(f"{path}: claims more memory than there is; refused") from error
    except Exception as error:  # torch raises whatever the bytes provoke
        if "weights_only" in str(error):
            raise _refusal(path, error) from error
        raise ModelError(f"{path}: expected a PyTorch file, but it cannot be read ({one_line(error)})") from error
    state, notes = _find_state(content, path)
    return _clean(state, path, notes)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A safetensors file -> its tensors, float32 on the CPU, and notes. Raises ModelError, UnsafeFileError."""
    if path.stat().st_size > MAX_BYTES:
        raise UnsafeFileError(f"{path}: larger than {MAX_BYTES >> 30} GiB; refused")
    try:
        state = load_file(path, device="cpu")
    except (safetensors.SafetensorError, ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path}: expected safetensors, but it cannot be read ({one_line(error)})") from error
    return _clean(state, path, [])


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; empty where it has none. Raises ModelError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ModelError(f"{path}: expected safetensors, but it cannot be read ({one_line(error)})") from error


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: damaged archive ({one_line(error)}); fetch it again") from error
    if any(Path(member.filename).name == "constants.pkl" or "/code/" in member.filename for member in members):
        raise UnsafeFileError(f"{path}: TorchScript, which is a program, not weights; {WHAT_TO_DO}")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise UnsafeFileError(f"{path}: unpacks to {total} bytes, more than {MAX_BYTES >> 30} GiB; refused")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafeFileError(f"{path}: a compressed archive, which PyTorch never writes; refused")


def _refusal(path: Path, error: Exception) -> ModelError:
    """Why the unpickler stopped, without its advice to switch the protection off."""
    text = str(error)
    named = re.search(r"(?:GLOBAL|class|global:?|function)\s+`?([\w.]+\.[\w.]+)", text)
    if named or "Unsupported" in text or "weights_only" in text.lower():
        what = f" ({named.group(1)})" if named and not named.group(1).startswith("torch.load") else ""
        what = " (in PyTorch's oldest format, a tar)" if "legacy .tar" in text else what
        return UnsafeFileError(f"{path}: a pickle that wants to run code{what}, not weights alone; {WHAT_TO_DO}")
    return ModelError(f"{path}: expected a PyTorch file, but it cannot be read ({one_line(error)})")


def _find_state(content: Any, path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The state dict in what was unpickled: at the top, or under one of the usual keys."""
    for key in NESTED:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner, [f"weights were under the key {key!r}"]
    if isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values()):
        return content, []
    found = f"keys {', '.join(str(key)[:40] for key in list(content)[:5])}" if isinstance(content, Mapping) else ""
    raise ModelError(
        f"{path}: expected a state dict at the top or under {', '.join(NESTED)}; got {found or type(content).__name__}"
    )


def _clean(state: Mapping[str, Any], path: Path, notes: list[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) != len(state):
        odd = next(str(key) for key, value in state.items() if not isinstance(value, Tensor))
        raise ModelError(f"{path}: expected tensors alone in the state dict; {odd[:80]!r} is something else")
    _check_sizes(tensors, path)
    tensors = {key: _plain(value) for key, value in tensors.items()}
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
            notes.append(f"stripped {prefix!r} from every key")
    return _fold_pruning(tensors, notes), tuple(notes)


def _check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    total = 0
    for key, value in tensors.items():
        dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not dense or value.is_complex():
            raise ModelError(
                f"{path}: {key[:80]} is sparse, quantised, complex or without data; expected dense tensors"
            )
        claimed = value.numel() * value.element_size()
        if claimed > value.untyped_storage().nbytes():
            raise UnsafeFileError(f"{path}: {key[:80]} claims {claimed} bytes, more than the file holds; refused")
        total += 4 * value.numel()
    if total > MAX_BYTES:
        raise UnsafeFileError(f"{path}: {total} bytes of weights, more than {MAX_BYTES >> 30} GiB; refused")


def _plain(value: Tensor) -> Tensor:
    """A tensor of its own (no shared storage, no gradient), float32 where it is a float."""
    value = value.detach()
    return value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()


def _fold_pruning(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """`weight_orig` and `weight_mask`, which torch.nn.utils.prune leaves behind, -> `weight`."""
    pruned = [key[:-5] for key in tensors if key.endswith("_orig") and key[:-5] + "_mask" in tensors]
    for key in pruned:
        original, mask = tensors.pop(key + "_orig"), tensors.pop(key + "_mask")
        if original.shape == mask.shape:
            tensors[key] = original * mask
    if pruned:
        notes.append(f"applied {len(pruned)} pruning masks that were left in the keys")
    return tensors
