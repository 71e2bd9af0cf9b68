"""What goes to a process on another machine, and what is done with it there.

A function goes by its name, what it works on as pickles that this process has made: of goodnet's own layers, tensors
and settings, once they were read safely. No bytes of a file are unpickled, and no code of a stranger's is sent.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier

Tell = Callable[[int], None]
"""Told how much of a block is done."""
KEPT = 8
"""Pieces that are kept at hand, on either side."""
_LARGE = 1 << 16  # bytes from which on a tensor is a piece of its own
_OURS = ("goodnet.", "torch.nn.modules.")
_held: dict[str, Any] = {}


class Pieces:
    """Pickles of an object, its nets and its large tensors apart, by their hashes: what is there is not sent again.

    Attributes:
        found: the pickles.
        on_gpu: some net is on a GPU.
    """

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self.on_gpu = False

    def add(self, value: object) -> str:
        """The hash of the pickle of `value`. Raises UsageError for a net of the user's own code."""
        return self._add(value, self)

    def apart(self, value: object) -> str | None:
        """The hash of what is a piece of its own; None for all else."""
        if isinstance(value, Classifier):
            _check_ours(value)
            self.on_gpu |= value.device.type != "cpu"
            return self._add(value, None)
        large = isinstance(value, Tensor) and value.numel() * value.element_size() >= _LARGE
        return self._add(value, None) if large else None

    def _add(self, value: object, pieces: Pieces | None) -> str:
        stream = io.BytesIO()
        _Pickler(stream, pieces).dump(value)
        raw = stream.getvalue()
        key = hashlib.sha256(raw).hexdigest()
        self.found[key] = raw
        return key


class _Pickler(pickle.Pickler):
    """Leaves out what is a piece of its own, and writes equal tensors alike, as torch's own pickles do not."""

    def __init__(self, stream: io.BytesIO, pieces: Pieces | None):
        super().__init__(stream)
        self.pieces = pieces

    def persistent_id(self, value: object) -> str | None:
        return None if self.pieces is None else self.pieces.apart(value)

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        dense = value.detach().clone()
        raw = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _tensor, (raw, dense.dtype, tuple(dense.shape), dense.stride(), dense.device.type)


def _tensor(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], device: str) -> Tensor:
    made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    return made.copy_(torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)) if raw else made


class _Pieced(pickle.Unpickler):
    """Puts the pieces together again; those of the last tasks are still there."""

    def __init__(self, key: str, pieces: dict[str, Any]):
        super().__init__(io.BytesIO(pieces[key]))
        self.pieces = pieces

    def persistent_load(self, key: str) -> Any:
        return _hold(key, lambda: pickle.loads(self.pieces[key]))


def _hold(key: str, make: Callable[[], Any]) -> Any:
    value = _held.pop(key) if key in _held else make()
    _held[key] = value
    while len(_held) > KEPT:
        _held.pop(next(iter(_held)))
    return value


def _check_ours(classifier: Classifier) -> None:
    """Raises UsageError where the net has layers whose code only this process knows."""
    for module in classifier.net.modules():
        kind = type(module)
        if not f"{kind.__module__}.".startswith(_OURS):
            raise UsageError(
                f"--runner ray: expected a net of goodnet's own layers, got {kind.__name__} of your own code, which "
                "workers do not have; use --runner serial"
            )


def on_worker(header: Any, call: bytes, *pieces: Any) -> tuple[str, str, bytes]:
    """Runs a block on a worker: how its versions differ, if they do; its kind of CPU; (result, what was told)."""
    expected, threads, key, keys = header
    mine = versions()
    other = [f"{name} {mine[name]}, not {wanted}" for name, wanted in expected.items() if mine[name] != wanted]
    if other:
        return f"has {', '.join(other)}", "", b""
    torch.set_num_threads(threads)
    shared = _hold(key, lambda: _Pieced(key, dict(zip(keys, pieces))).load())
    function, block = pickle.loads(call)
    moved = 0

    def tell(more: int) -> None:
        nonlocal moved
        moved += more

    result = function(shared, block, tell)
    return "", cpu_kind(), pickle.dumps((result, moved))


def versions() -> dict[str, str]:
    names = ("goodnet", "torch", "numpy")
    return {**{name: metadata.version(name) for name in names}, "python": ".".join(platform.python_version_tuple()[:2])}


def cpu_kind() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def by_value() -> Callable[..., Any]:
    """The task; a function in a function is sent as code, so that it can say that goodnet is missing."""

    def goodnet_block(header: Any, call: bytes, *pieces: Any) -> tuple[str, str, bytes]:
        try:
            from goodnet.shipping import on_worker
        except ImportError as error:
            return f"cannot import goodnet ({error})", "", b""
        return on_worker(header, call, *pieces)

    return goodnet_block
