"""Folders of Hugging Face's that lie, or that want the code beside them to be run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hostile.case import PAYLOAD, Case
from hostile.pickles import Evil
from test_models_hugging_face import VIT, WRONG, folder, vit, vit_keys

_HELD = ("a pipe",)  # nothing can be said of a folder's files by reading them all, as the table does
_MODULE = "modeling_net.py"


def _whole(path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return folder(path / "net", {"model_type": "vit", **VIT}, vit_keys(vit().state_dict()))


def _changed(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        net = _whole(path)
        change(net)
        return net

    return make


def _asks_for_code(model_type: str) -> Callable[[Path], Path]:
    def change(net: Path) -> None:
        (net / _MODULE).write_text(PAYLOAD)
        config = json.loads((net / "config.json").read_text())
        asks = {"AutoConfig": "modeling_net.Config", "AutoModelForImageClassification": "modeling_net.Net"}
        config |= {"model_type": model_type, "auto_map": asks}
        (net / "config.json").write_text(json.dumps(config))

    return _changed(change)


def _pickled(net: Path) -> None:
    (net / "model.safetensors").unlink()
    torch.save({"classifier.weight": Evil()}, net / "pytorch_model.bin")


def _trusts(net: Path) -> object:
    """As `trust_remote_code=True` does."""
    return runpy.run_path(str(net / _MODULE))


CASES = [
    Case(name="a module that auto_map names", kind="Hugging Face", make=_asks_for_code("vit"), message="",
         fire=_trusts),
    Case(name="a net that only its module knows", kind="Hugging Face", make=_asks_for_code("evil"),
         message="'evil'.*ONNX", fire=_trusts),
    Case(name="a pickle for weights", kind="Hugging Face", make=_changed(_pickled), message="wants to run code",
         fire=lambda net: torch.load(net / "pytorch_model.bin", weights_only=False)),
    *(Case(name=name, kind="Hugging Face", make=_changed(change), message=message)
      for name, (change, _, message) in WRONG.items() if name not in _HELD),
]  # fmt: skip
