"""Keras HDF5 files as data: a JSON config and arrays, read with every size checked before memory is taken.

Nothing of Keras runs. Links that leave the file or the tree (external, soft), virtual datasets, external raw
storage, unknown filters and anything but plain numbers are refused; groups that contain themselves are walked once.
Names of layers and weights are taken from the tree, not from the `layer_names` and `weight_names` attributes: a
small file can make those expand to any size. What remains is trust in libhdf5 itself to parse a hostile file.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from goodnet.data.hdf5_heap import heaps_are_whole
from goodnet.data.hdf5_stored import check_inflated, check_stored, filters
from goodnet.data.mistaken import hdf5_reason
from goodnet.errors import ModelError, UnsafeFileError
from goodnet.models.formats import MAX_BYTES, one_line

Array = npt.NDArray[np.float32]
Scope = tuple[str, ...]
MAX_DATASETS = 20_000
MAX_DEPTH = 16
MAX_CONFIG = 64 << 20
# Deflate packs zeros 1000 : 1; a pruned net's weights do not reach this, and small datasets may.
MAX_RATIO, FREE_BYTES = 250, 16 << 20
_UNREAD = ("optimizer_weights", "_optimizer", "optimizer")
_WEIGHT = re.compile(
    r"(?:^|[_/])(depthwise_kernel|pointwise_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance"
    r"|running_mean|running_std|mean|variance|count|W|b)(?::0)?$"
)
_OLD = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """What a Keras file holds.

    Attributes:
        config: the model's config, None where the file holds weights alone.
        version: Keras's (`2.2.4`), `1` where the file does not say.
        backend: the one that trained it (`tensorflow`, `theano`, ...), empty where the file does not say.
        weights: per scope, its arrays by short name (`kernel`, `gamma`, ...; `0`, `1` in Keras 3 weight files). A scope
            is the layer's name, or (outermost model, layer) for a layer of a model inside the model.
    """

    config: dict[str, Any] | None
    version: str
    backend: str
    weights: dict[Scope, dict[str, Array]] = field(repr=False)

    def of(self, scope: Scope) -> dict[str, Array]:
        """A layer's arrays; empty where it has none. A lone layer's variables may carry an older name of it."""
        top, own = scope[0].partition("/")[0], scope[-1].rpartition("/")[2]
        exact = self.weights.get(_scope(top, own))
        if exact is not None or len(scope) > 1 or own != top:
            return exact or {}
        inside = [key for key in self.weights if key and key[0] == top]
        return self.weights[inside[0]] if len(inside) == 1 else {}


def read_keras(source: Path | io.BytesIO, *, name: str) -> KerasFile:
    """Reads a whole-model or weights-only HDF5 file of Keras 1, 2 or 3.

    Raises:
        UnsafeFileError: what the module docstring lists.
        ModelError: damaged, not Keras, or NaN or infinite weights.
    """
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    try:
        if not heaps_are_whole(source.getvalue() if isinstance(source, io.BytesIO) else source):
            raise ModelError(f"{name}: expected a Keras HDF5 file, got a damaged one; fetch it again")
        with h5py.File(source, "r") as file:
            return _read(file, size, name)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{name}: expected a Keras HDF5 file, but it cannot be read ({hdf5_reason(error)})") from error


def _read(file: h5py.File, size: int, name: str) -> KerasFile:
    raw = _text(file, "model_config", size, name)
    root = file
    if "model_weights" in _names(file, name):
        root = _open(file, "model_weights", name)
        if not isinstance(root, h5py.Group):
            raise ModelError(f"{name}: expected model_weights to be a group")
    version, backend = (_text(file, key, size, name) or _text(root, key, size, name) for key in _VERSION)
    weights: dict[Scope, dict[str, Array]] = {}
    total = 0
    for path, dataset in _walk(root, name):
        total += _check_dataset(dataset, path, name)
        if total > MAX_BYTES:
            raise UnsafeFileError(f"{name}: more than {MAX_BYTES >> 30} GiB of weights; refused")
        scope, short = _place(path, dataset, size, name)
        if short in weights.setdefault(scope, {}):
            raise ModelError(f"{name}: two weights are {'/'.join(scope)}/{short}; such models in models cannot be read")
        weights[scope][short] = _array(dataset, path, name)
    return KerasFile(
        config=parse_config(raw, name) if raw else None, version=version or "1", backend=backend, weights=weights
    )


_VERSION = ("keras_version", "backend")


def parse_config(raw: str, name: str) -> dict[str, Any]:
    """JSON text -> the model's config. Raises ModelError."""
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: its model config is not JSON ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{name}: expected its model config to be a JSON object, got {type(config).__name__}")
    return config


def _names(group: h5py.Group, name: str) -> list[str]:
    if len(group) > MAX_DATASETS:
        raise UnsafeFileError(f"{name}: a group of {len(group)} entries, more than {MAX_DATASETS}; refused")
    return list(group)


def _open(group: h5py.Group, key: str, name: str) -> Any:
    """The object under `key`, if it is really in this file."""
    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = "external link" if isinstance(link, h5py.ExternalLink) else "soft link"
        raise UnsafeFileError(f"{name}: {group.name}/{key} is a {kind}, which Keras never writes; refused")
    return group[key]


def _walk(root: h5py.Group, name: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset below `root` once, with its path; the optimizer's are left unread."""
    seen = {h5py.h5o.get_info(root.id).addr}
    stack = [("", root)]
    while stack:
        prefix, group = stack.pop()
        found = []
        for key in _names(group, name):
            path = f"{prefix}/{key}" if prefix else key
            if path in _UNREAD:
                continue
            item = _open(group, key, name)
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MAX_DATASETS or path.count("/") > MAX_DEPTH:
                raise UnsafeFileError(f"{name}: more than {MAX_DATASETS} objects or {MAX_DEPTH} levels; refused")
            if isinstance(item, h5py.Group):
                found.append((path, item))
            elif isinstance(item, h5py.Dataset):
                yield path, item
        stack += reversed(found)


def _check_dataset(dataset: h5py.Dataset, path: str, name: str) -> int:
    """Bytes that the dataset takes once read; refuses what could lie about it or lead out of the file."""
    where = f"{name}: {path}"
    if dataset.is_virtual or dataset.external:
        raise UnsafeFileError(f"{where} takes its numbers from other files; refused")
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise UnsafeFileError(f"{where}: expected plain numbers, got {dataset.dtype}; refused")
    count: int = math.prod(int(side) for side in dataset.shape)
    claimed = count * int(dataset.dtype.itemsize)
    stored = check_stored(dataset, where)
    allowed = MAX_RATIO * stored + FREE_BYTES if filters(dataset) and stored else stored
    if claimed > min(allowed, MAX_BYTES):
        raise UnsafeFileError(f"{where} claims {claimed} bytes but {stored} are stored; refused")
    check_inflated(dataset, MAX_BYTES, where)
    return max(claimed, 4 * count)


def _array(dataset: h5py.Dataset, path: str, name: str) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        array = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(array).all():
        raise ModelError(f"{name}: {path} holds NaN or infinite weights; such a net gives no answers")
    return array


def _place(path: str, dataset: h5py.Dataset, size: int, name: str) -> tuple[Scope, str]:
    """Whose weight a dataset is, and its short name."""
    *folders, last = path.split("/")
    if not folders:
        return (), last
    if folders[-1] == "vars":  # Keras 3's weight files: layers/conv2d/vars/0, the layer's own name in an attribute
        own = _text(dataset.parent, "name", size, name) or folders[max(len(folders) - 2, 0)]
        return _scope(_outermost(dataset.file, folders, size, name) or own, own), last
    found = _WEIGHT.search(last)
    short = found.group(1) if found else last
    return _scope(folders[0], folders[-1]), _OLD.get(short, short)


def _outermost(file: h5py.File, folders: list[str], size: int, name: str) -> str:
    """Keras 3: the own name of the model inside the model that `layers/X/layers/Y/vars` lies in, empty if in none."""
    if folders.count("layers") < 2:
        return ""
    group = file["/".join(folders[:2])]
    return _text(group["vars"], "name", size, name) if "vars" in group else folders[1]


def _scope(top: str, own: str) -> Scope:
    return (top,) if own == top else (top, own)


def _text(item: h5py.Group, key: str, size: int, name: str) -> str:
    """A scalar string attribute, empty where there is none. Its size is bounded before it is read."""
    if key not in item.attrs:
        return ""
    attribute = item.attrs.get_id(key)
    kind = attribute.dtype
    variable = h5py.check_string_dtype(kind)
    bytes_read = size if variable is not None and variable.length is None else attribute.get_storage_size()
    if attribute.shape != () or (kind.kind != "S" and variable is None):
        raise ModelError(f"{name}: expected the attribute {key} to be one string, got {kind} {attribute.shape}")
    if min(bytes_read, attribute.get_storage_size()) > MAX_CONFIG:
        raise UnsafeFileError(f"{name}: the attribute {key} takes {bytes_read} bytes, more than {MAX_CONFIG}; refused")
    value = item.attrs[key]
    return value.decode("utf-8", "replace") if isinstance(value, bytes | np.bytes_) else str(value)
