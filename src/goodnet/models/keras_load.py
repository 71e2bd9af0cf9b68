"""Keras files -> nets: a whole model through the config walker, weights alone into one of our architectures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.models import keras_graph
from goodnet.models.formats import MAX_BYTES, Loaded, LoadOptions, one_line
from goodnet.models.keras_graph import turned
from goodnet.models.keras_hdf5 import MAX_CONFIG, Array, KerasFile, parse_config, read_keras
from goodnet.models.weights import load_ours

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_NAMES = {"kernel": "weight", **dict(zip(_NORM, ("weight", "bias", "running_mean", "running_var")))}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others inflate without a limit on one read
_MEMBERS = {"config.json": MAX_CONFIG, "model.weights.h5": MAX_BYTES}


def load_keras(path: Path, options: LoadOptions, *, zipped: bool) -> Loaded:
    """Reads a Keras file, HDF5 of any age or Keras 3's zip. Raises ModelError, UnsafeFileError, UsageError."""
    name = str(path)
    file = read_keras_zip(path) if zipped else read_keras(path, name=name)
    if file.config is None:
        return load_ours(torch_state(file, name), options, name=name)
    if options.arch is not None:
        raise UsageError(f"{name}: holds the whole net, so --arch {options.arch} has no place; leave it out")
    return keras_graph.load_graph(file, options, name=name)


def torch_state(file: KerasFile, name: str) -> dict[str, Tensor]:
    """Keras weights by layer -> a PyTorch state dict of the same layer names (kernels turned to out, in, h, w).

    Raises ModelError where there are none.
    """
    state: dict[str, Tensor] = {}
    for scope in file.weights:
        arrays = file.of(scope[:1]) if scope else {}
        for short, array in arrays.items():
            full = _long_name(short, arrays)
            turn = "kernel" if full.endswith("kernel") else ""
            state[f"{scope[0]}.{_NAMES.get(full, full)}"] = torch.from_numpy(turned(array, turn))
    if not state:  # weights lie in groups, one a layer
        held = ", ".join(repr(key[:80]) for key in list(file.weights.get((), {}))[:4])
        which = f"; it holds {held}; is it the data, not the net?" if held else ""
        raise ModelError(f"{name}: expected a Keras model or weights in this HDF5 file, found neither{which}")
    return state


def _long_name(short: str, arrays: Mapping[str, Array]) -> str:
    """Keras 3's weight files number a layer's arrays: kernel and bias, or the four of a batch norm."""
    if not short.isdigit():
        return short
    names = _NORM if all(array.ndim == 1 for array in arrays.values()) else ("kernel", "bias")
    return names[int(short)] if int(short) < len(names) else short


def is_keras_zip(names: Collection[str]) -> bool:
    """Whether a zip's members are what Keras 3 writes."""
    return set(_MEMBERS) <= set(names)


def read_keras_zip(path: Path) -> KerasFile:
    """Keras 3's `.keras`: config.json and model.weights.h5; nothing is unpacked to disk."""
    content: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member, limit in _MEMBERS.items():
                info = archive.getinfo(member)
                if info.file_size > limit or info.compress_type not in _COMPRESSIONS:
                    raise UnsafeFileError(
                        f"{path}: {member} unpacks to more than {limit} bytes or is packed as Keras never does; refused"
                    )
                with archive.open(member) as part:
                    content[member] = part.read(limit + 1)
    except GoodnetError:
        raise
    except Exception as error:  # zipfile and zlib raise many types for a damaged file
        raise ModelError(f"{path}: damaged archive ({one_line(error)}); fetch it again") from error
    file = read_keras(io.BytesIO(content["model.weights.h5"]), name=str(path))
    config = parse_config(content["config.json"].decode("utf-8", "replace"), str(path))
    return KerasFile(config=config, version="3", backend=file.backend, weights=file.weights)
