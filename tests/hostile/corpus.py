"""All hostile files, and files that are cut at every kilobyte."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from hostile import exports, hdf5_files, hugging_face, keras_files, onnx_files, pickles, pictures, tensors
from hostile.case import MLP, Case, state, writes
from test_models_onnx import model, to_logits

KIB = 1024
_NOISE = np.random.default_rng(6).integers(0, 256, (4, 3, 24, 24), dtype=np.uint8)


def _torch() -> bytes:
    out = io.BytesIO()
    torch.save(state(hidden=20), out)
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, data=_NOISE, label=np.zeros(4, np.int64))
    return out.getvalue()


def _h5() -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.create_dataset("data", data=_NOISE, compression="gzip")
        file["label"] = np.zeros(4, np.int64)
    return out.getvalue()


def _picture(kind: str) -> Callable[[], bytes]:
    return pictures.encoded(Image.fromarray(_NOISE.reshape(48, 48, 3)), kind)


def _onnx() -> bytes:
    content: bytes = model(*to_logits("x", 216)).SerializeToString()
    return content


def _of(make: Callable[[Path], Path]) -> Callable[[], bytes]:
    def content() -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return make(Path(folder)).read_bytes()

    return content


WHOLE: dict[str, tuple[Callable[[], bytes], str, tuple[str, ...]]] = {
    "net.pt": (_torch, "model", MLP),
    "net.safetensors": (lambda: save(state(hidden=20)), "model", MLP),
    "net.h5": (_of(keras_files.h5(keras_files.sequential())), "model", ()),
    "net.keras": (_of(keras_files.keras(keras_files.sequential())), "model", ()),
    "net.onnx": (_onnx, "model", ()),
    "set.npz": (_npz, "set", ()),
    "set.h5": (_h5, "set", ()),
    "a.png": (_picture("PNG"), "picture", ()),
    "a.jpg": (_picture("JPEG"), "picture", ()),
}
"""Whole files, all of them readable: content, role, options."""


def _cut(name: str) -> list[Case]:
    content, role, options = WHOLE[name]
    whole = content()
    lengths = [*range(0, len(whole) - 40, KIB), len(whole) - 40]
    return [
        Case(name=f"{name} cut to {length} bytes", kind="cut files", role=role, options=options, message=".",
             make=writes(name, lambda length=length: whole[:length]))  # type: ignore[misc]
        for length in lengths
    ]  # fmt: skip


CUT = [case for name in WHOLE for case in _cut(name)]
CASES = [
    *pickles.CASES,
    *keras_files.CASES,
    *hdf5_files.CASES,
    *tensors.CASES,
    *onnx_files.CASES,
    *exports.CASES,
    *hugging_face.CASES,
    *pictures.CASES,
    *CUT,
]
