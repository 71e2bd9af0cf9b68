"""Pickles that run code, in every way that pickle has for it and everywhere that a pickle may lie."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hostile.case import MLP, PAYLOAD, Case, state, writes

_CODE = PAYLOAD.encode()
_REFUSED = (
    "a pickle that wants to run code|TorchScript|expected a PyTorch file|expected a state dict|its bytes are none"
)


class Evil:
    """Unpickled, it runs the payload."""

    def __reduce__(self) -> Any:
        return exec, (PAYLOAD,)


def _nested() -> bytes:
    """By names that no list of forbidden ones holds: getattr(importlib.import_module("builtins"), "exec")."""
    return (
        b"\x80\x04cbuiltins\ngetattr\n(cimportlib\nimport_module\n(S'builtins'\ntRS'exec'\ntR("
        + b"X" + len(_CODE).to_bytes(4, "little") + _CODE + b"tR."
    )  # fmt: skip


def _text(code: bytes = _CODE) -> bytes:
    return b"X" + len(code).to_bytes(4, "little") + code


OPCODES: dict[str, bytes] = {
    "REDUCE after GLOBAL": b"\x80\x02cbuiltins\nexec\n(" + _text() + b"tR.",
    "REDUCE after STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93(" + _text() + b"tR.",
    "INST": b"(" + _text() + b"ibuiltins\nexec\n.",
    "OBJ": b"\x80\x02(cbuiltins\nexec\n" + _text() + b"o.",
    "nested calls": _nested(),
    "a call by map and list": b"\x80\x02cbuiltins\nlist\n(cbuiltins\nmap\n(cbuiltins\nexec\n]" + _text() + b"atRtR.",
    "BUILD with a state that is set by call": b"\x80\x02cfunctools\npartial\n(cbuiltins\nprint\ntR(cbuiltins\nexec\n("
    + _text() + b"t}NtbX\x00\x00\x00\x000)R.",
}  # fmt: skip


def _old(*parts: bytes) -> bytes:
    """torch.save's format before zip: pickles one after the other (magic number, version, system, object, keys)."""
    plain = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*plain, *parts])


def _zipped(pickled: bytes, name: str = "data.pkl") -> Callable[[], bytes]:
    """A zip as torch.save makes it, with this pickle in it."""

    def make() -> bytes:
        good, out = io.BytesIO(), io.BytesIO()
        torch.save(state(), good)
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(out, "w") as target:
            root = source.namelist()[0].partition("/")[0]
            for member in source.namelist():
                if member != f"{root}/{name}":
                    target.writestr(member, source.read(member))
            target.writestr(f"{root}/{name}", pickled)
        return out.getvalue()

    return make


def _saved(content: Callable[[], Any], **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        torch.save(content(), out, **options)
        return out.getvalue()

    return make


def _deflated() -> bytes:
    """Zeros, a thousand to one."""
    good, out = io.BytesIO(), io.BytesIO()
    torch.save({"fc1.weight": torch.zeros(1000, 1000)}, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return out.getvalue()


def _tar(pickled: bytes) -> bytes:
    """torch's oldest format."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("storages", pickled), ("tensors", pickled), ("pickle", pickled)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _script(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "net.pt")
    return folder / "net.pt"


def _hash_bomb() -> bytes:
    """A key that is a tuple of twice a tuple of twice ... 2^40 steps to hash, 200 bytes to say."""
    doubling = b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40))
    return b"\x80\x02})q\x00" + doubling + b"Ns."


def unsafe_torch(path: Path) -> object:
    return torch.load(path, weights_only=False)


def unpickle(path: Path) -> object:
    return pickle.loads(path.read_bytes())


def _npz(folder: Path, key: str) -> Path:
    """numpy's own: an array of objects is a pickle."""
    columns: dict[str, Any] = {"data": np.zeros((2, 1, SIZE, SIZE), np.uint8), "label": np.zeros(2, np.int64)}
    evil = np.empty(2, dtype=object)
    evil[:] = [Evil(), Evil()]
    np.savez(folder / "set.npz", **{**columns, key: evil})
    return folder / "set.npz"


SIZE = 8


def _open_npz(key: str) -> Callable[[Path], object]:
    return lambda path: np.load(path, allow_pickle=True)[key]


def _torch(name: str, content: Callable[[], bytes], **more: Any) -> Case:
    return Case(**{
        "name": name, "kind": "pickles", "make": writes("net.pt", content), "message": _REFUSED, "options": MLP,
        "fire": unsafe_torch, **more})  # fmt: skip


CASES = [
    *(_torch(f"{name}, in a zip", _zipped(code)) for name, code in OPCODES.items()),
    *(
        _torch(f"{name}, bare", lambda code=code: code, fire=unpickle, make=writes("net.pt", lambda code=code: code))
        for name, code in OPCODES.items()
    ),
    _torch("beside weights", _saved(lambda: {"state_dict": state(), "x": Evil()})),
    _torch("as a weight", _saved(lambda: {**state(), "fc3.weight": Evil()})),
    _torch("as a key", _saved(lambda: {**state(), Evil(): 1})),
    _torch("before zip, as the object", lambda: _old(OPCODES["REDUCE after GLOBAL"])),
    _torch("before zip, behind a state dict", lambda: _old(pickle.dumps({}, 2), OPCODES["REDUCE after GLOBAL"])),
    _torch(
        "before zip, torch.save's own", _saved(lambda: {"x": Evil()}, _use_new_zipfile_serialization=False)
    ),
    _torch("in a tar", lambda: _tar(OPCODES["REDUCE after GLOBAL"])),
    _torch("named .h5", lambda: pickle.dumps(Evil()), fire=unpickle,
           make=writes("net.h5", lambda: pickle.dumps(Evil()))),
    *(_torch(f"named {name}, in a zip", _zipped(OPCODES["INST"]), fire=None,
             make=writes(name, _zipped(OPCODES["INST"]))) for name in ("net.safetensors", "net.keras", "net.onnx")),
    _torch("a whole module", _saved(lambda: torch.nn.Linear(2, 2)), fire=None),
    _torch("TorchScript", lambda: b"", make=_script, fire=None),
    _torch("a compressed archive", _deflated, fire=None, message="a compressed archive"),
    _torch("a tensor wider than its storage", _saved(lambda: {"fc1.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}),
           fire=None, message="claims"),
    _torch("a key that takes for ever to hash", _zipped(_hash_bomb()), fire=None, sandbox_only=True,
           message="processor time"),
    *(
        Case(name=f"in the column {key} of an .npz", kind="pickles", role="set", fire=_open_npz(key),
             make=lambda folder, key=key: _npz(folder, key), message="pickled")
        for key in ("data", "label")
    ),
]  # fmt: skip
