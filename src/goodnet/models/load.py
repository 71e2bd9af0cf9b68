"""Loading a stranger's net: what the file is, is told by its first bytes, never by its name."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from goodnet.data.mistaken import mistaken_for
from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models import (
    export_graph,
    export_read,
    hugging_face,
    keras_load,
    onnx_graph,
    onnx_read,
    state_dict,
    user_code,
)
from goodnet.models.classifier import Classifier
from goodnet.models.formats import MAX_FILE, Content, Loaded, LoadOptions, Shape, one_line, to_device
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.keras_hdf5 import read_keras
from goodnet.models.sandbox import read_in_child
from goodnet.models.sandbox import wanted as sandboxed
from goodnet.models.softmax import unwrap_softmax
from goodnet.models.weights import load_ours

HDF5, KERAS_ZIP, TORCH, SAFETENSORS, GOODNET = "Keras HDF5", "Keras 3 zip", "PyTorch", "safetensors", "GoodNet"
ONNX, EXPORT, HUGGING_FACE = "ONNX", "torch.export", "Hugging Face folder"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LISTED = "goodnet's own process, which looked for the folder's files alone"


def load_classifier(
    path: str | Path,
    *,
    arch: str | None = None,
    classes: int | None = None,
    input_range: str = "0..1",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    input_shape: Shape | None = None,
    device: str | torch.device = "cpu",
    sandbox: bool | None = None,
) -> Classifier:
    """Reads a net from a file without running anything in it, in a process of its own with limits.

    Args:
        path: Keras HDF5 (whole model or weights), Keras 3 `.keras`, ONNX, torch.export `.pt2`, PyTorch state dict,
            safetensors, a GoodNet, or a folder of Hugging Face's.
        arch: where the file holds weights alone: one of ours, or `FILE.py:CALLABLE`, the user's own code.
        classes: number of classes; needed only by user code that takes it, checked where given.
        input_range: `0..1` or `0..255`, what the net expects before `mean` and `std`.
        mean: one number or one a channel, in the units of `input_range`.
        std: as `mean`.
        input_shape: (C, H, W), where neither the file nor the architecture tells.
        device: where the net goes.
        sandbox: False reads the file in this process, faster by the second or two that another takes to start: for
            files of your own. None asks the environment variable GOODNET_SANDBOX (`off`), else means True.

    Returns:
        A Classifier that gives logits; what was dropped or stripped on the way is in its `notes`.

    Raises:
        UsageError: options out of range, missing, or against the file.
        UnsafeFileError: reading the file could run code, leave it, or exhaust memory.
        ModelError: damaged, of an unknown format, or a net that does not fit its weights.
    """
    path = Path(path)
    options = LoadOptions(
        arch=arch, classes=classes, input_range=input_range, mean=mean, std=std, input_shape=input_shape
    )
    code = arch is not None and user_code.is_user_code(arch)
    content = read_file(path, options, bare=code, device=device, sandbox=sandbox)
    if content.error is not None:
        raise content.error
    if content.classifier is not None:
        return content.classifier
    if content.tensors is None:
        return load_goodnet(path, sha256=content.sha256, device=device, arch_name=arch)
    loaded = _with_notes(user_code.load_user_code(content.tensors, options, name=str(path)), content.notes)
    return _finish(loaded, options, path, content.sha256, device)


def read_file(
    path: Path,
    options: LoadOptions,
    *,
    bare: bool,
    device: str | torch.device = "cpu",
    sandbox: bool | None = None,
) -> Content:
    """What is in a file or a folder, read in a process of its own unless `sandbox` says otherwise (`load_classifier`).

    Raises:
        UsageError: the device does not exist.
        ModelError: there is no such file.
    """
    try:
        digest, size = file_sha256(path), _size(path)
    except ModelError as error:
        if not path.is_dir():
            raise
        return Content(format=HUGGING_FACE, read_in=_LISTED, error=error)
    if sandboxed(sandbox):
        return read_in_child(path, options, bare=bare, size=size, sha256=digest, device=device)
    return read_here(path, options, bare=bare, sha256=digest, device=device)


def read_here(
    path: Path, options: LoadOptions, *, bare: bool, sha256: str = "", device: str | torch.device = "cpu"
) -> Content:
    """What is in a file, read in this process. User code is not run.

    Args:
        bare: of weights alone give the tensors, not one of our architectures with them.
    """
    kind = ""
    try:
        kind = file_format(path)
        content = Content(format=kind, sha256=sha256)
        weights = _weights_alone(path, kind) if bare else None
        if weights is not None:
            return replace(content, tensors=weights[0], notes=weights[1])
        if kind == GOODNET:
            if options.arch is not None and user_code.is_user_code(options.arch):
                return content
            return replace(content, classifier=load_goodnet(path, sha256=sha256, device=device))
        net = _finish(_read(path, kind, options), options, path, sha256, device)
        return replace(content, classifier=net)
    except (ModelError, UsageError) as error:
        return Content(format=kind, sha256=sha256, error=error)


def _weights_alone(path: Path, kind: str) -> tuple[Mapping[str, Tensor], tuple[str, ...]] | None:
    """The tensors and notes of a file that holds weights alone; None where it describes its net. Raises ModelError."""
    if kind in (GOODNET, KERAS_ZIP, ONNX, EXPORT, HUGGING_FACE):
        return None
    if kind == HDF5:
        file = read_keras(path, name=str(path))
        return None if file.config is not None else (keras_load.torch_state(file, str(path)), ())
    return state_dict.read_safetensors(path) if kind == SAFETENSORS else state_dict.read_torch(path)


def file_format(path: Path) -> str:
    """Which of the formats a file is, by content. Raises ModelError where it is none, or is not there."""
    if path.is_dir():
        return HUGGING_FACE
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(1024)
            userblocks = [file.seek(at) and file.read(8) for at in (512, 1024, 2048, 4096) if at < size]
    except OSError as error:
        raise ModelError(f"{path}: expected a model file, but it cannot be read ({error.strerror})") from error
    if head.startswith(_HDF5_MAGIC) or _HDF5_MAGIC in userblocks:
        return HDF5
    if head.startswith(b"PK"):
        names = _members(path)
        if export_read.is_export(names):
            return EXPORT
        return KERAS_ZIP if keras_load.is_keras_zip(names) else TORCH
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return GOODNET if "goodnet" in state_dict.safetensors_metadata(path) else SAFETENSORS
    if onnx_read.is_onnx(head):
        return ONNX
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        return TORCH
    if got := mistaken_for(path):
        raise ModelError(f"{path}: expected a net, got {got}")
    raise ModelError(
        f"{path}: expected Keras HDF5 or .keras, ONNX, torch.export, a PyTorch state dict, safetensors or a GoodNet; "
        "its bytes are none"
    )


def _members(path: Path) -> list[str]:
    """Names of a zip's members. Raises ModelError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: damaged archive ({one_line(error)}); fetch it again") from error


def file_sha256(path: Path) -> str:
    """Hash of the file, in hexadecimal; of a folder, see `hugging_face`.

    Raises ModelError where it is no file, too large, or cannot be read.
    """
    if path.is_dir():
        return hugging_face.folder_sha256(path, file_sha256)
    digest = hashlib.sha256()
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UnsafeFileError(f"{path}: expected a file, got a pipe or a device, which may never end; refused")
        if state.st_size > MAX_FILE:
            raise UnsafeFileError(f"{path}: larger than {MAX_FILE >> 30} GiB; refused")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{path}: expected a model file, but it cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _size(path: Path) -> int:
    """Bytes of the file, or of all that is read of a folder."""
    files = [path / name for name in hugging_face.folder_files(path)] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _read(path: Path, kind: str, options: LoadOptions) -> Loaded:
    if kind in (ONNX, EXPORT):
        return onnx_graph.load_onnx(path, options) if kind == ONNX else export_graph.load_export(path, options)
    if kind == HUGGING_FACE:
        return hugging_face.load_hugging_face(path, options)
    if kind in (HDF5, KERAS_ZIP):
        return keras_load.load_keras(path, options, zipped=kind == KERAS_ZIP)
    read = state_dict.read_safetensors if kind == SAFETENSORS else state_dict.read_torch
    state, notes = read(path)
    return _with_notes(load_ours(state, options, name=str(path)), notes)


def _with_notes(loaded: Loaded, notes: tuple[str, ...]) -> Loaded:
    return replace(loaded, notes=(*notes, *loaded.notes))


def _finish(loaded: Loaded, options: LoadOptions, path: Path, digest: str, device: str | torch.device) -> Classifier:
    """Checks the net on a probe batch, unwraps a softmax, counts its classes."""
    spec = loaded.input or options.input_spec(loaded.shape)
    if spec.channels not in (1, 3):
        raise ModelError(f"{path}: expected a net for images of 1 or 3 channels, got one for {spec.describe()}")
    net = to_device(loaded.net.eval().requires_grad_(False), device)
    unwrapped = unwrap_softmax(net, spec, loaded.recipe, name=str(path))
    classes = unwrapped.outputs
    if classes < 2:
        raise ModelError(f"{path}: expected a net with at least 2 outputs, got {classes}; only classifiers are scanned")
    if options.classes not in (None, classes):
        raise UsageError(f"{path}: expected {classes} classes, the number of its outputs; got {options.classes}")
    return Classifier(
        net=unwrapped.net,
        input=spec,
        classes=classes,
        recipe=unwrapped.recipe,
        name=path.name or path.resolve().name,
        sha256=digest,
        notes=(*loaded.notes, *unwrapped.notes),
    )
