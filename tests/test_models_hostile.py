"""Hostile descriptions of nets, and files that are damaged or of the wrong kind. tests/hostile holds the files that
mean harm."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError
from goodnet.models.arch import build
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Recipe
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier
from hostile.hdf5_files import deepid_file


def test_the_untouched_file_loads(tmp_path: Path) -> None:
    classifier = load_classifier(deepid_file(tmp_path / "net.h5"), arch="deepid")
    assert classifier.classes == 5
    assert isinstance(classifier.net, DeepID)


def _message(path: Path) -> str:
    """What the user is told; empty where the file loads. Anything but a named error fails the test."""
    try:
        load_classifier(path, arch="deepid")
    except GoodnetError as error:
        return str(error)
    return ""


def test_damaged_files_are_one_line_and_said_alike_by_inspect(tmp_path: Path) -> None:
    whole = deepid_file(tmp_path / "net.h5").read_bytes()
    rng = np.random.default_rng(0)
    cases = [b"", b"\x80\x04", b"hello", b"\x80" + bytes(30), struct.pack("<Q", 5) + b"{}" + bytes(9)]
    hurt_from = len(cases)  # a flipped bit may hit a weight or nothing at all
    for _ in range(30):
        hurt = bytearray(whole[:4000])
        hurt[rng.integers(8, 4000)] ^= int(rng.integers(1, 256))
        cases.append(bytes(hurt) + whole[4000:])
    for number, content in enumerate(cases):
        path = tmp_path / f"case{number}"
        path.write_bytes(content)
        message = _message(path)
        assert "\n" not in message
        assert message or number >= hurt_from
        assert (inspect_file(path, arch="deepid").refused or "") == message


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    for number, content in enumerate(({"a": 1}, [torch.zeros(1)], {"state_dict": {"a": torch.zeros(1), "b": 3}})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ModelError):
            load_classifier(tmp_path / f"{number}.pt", arch="mlp")


CONV = {"op": "conv2d", "inputs": ["input"], "filters": 4, "kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1],
        "groups": 1, "bias": True, "padding": "valid"}  # fmt: skip
GRAPHS: list[dict[str, Any]] = [
    {},
    {"layers": []},
    {"layers": "c", "output": "c"},
    {"layers": [{"name": "c"}]},
    {"layers": [{"name": "c", **CONV, "op": "exec"}]},
    {"layers": [{"name": "c", **CONV, "extra": 1}]},
    {"layers": [{"name": "c", **CONV, "inputs": ["c"]}]},
    {"layers": [{"name": "c", **CONV, "inputs": ["later"]}, {"name": "later", **CONV}]},
    {"layers": [{"name": "c", **CONV, "inputs": []}]},
    {"layers": [{"name": "c", **CONV, "inputs": [["input"]]}]},
    {"layers": [{"name": "c", **CONV}, {"name": "c", **CONV}]},
    {"layers": [{"name": "forward", **CONV}], "output": "forward"},
    {"layers": [{"name": "a.b", **CONV}], "output": "a.b"},
    {"layers": [{"name": "__class__", **CONV}], "output": "__class__"},
    {"layers": [{"name": "c", **CONV, "filters": 65536, "kernel": [65536, 65536], "padding": "same"}]},
    {"layers": [{"name": "c", **CONV, "filters": 65536, "kernel": [100, 100], "padding": "same"}]},
    {"layers": [{"name": "c", **CONV, "filters": 1e3}]},
    {"layers": [{"name": "c", **CONV, "filters": True}]},
    {"layers": [{"name": "c", **CONV, "filters": None}]},
    {"layers": [{"name": "c", **CONV, "groups": 7}]},
    {"layers": [{"name": "c", **CONV, "kernel": [99, 99]}]},
    {"layers": [{"name": "c", **CONV, "stride": [0, 1]}]},
    {"layers": [{"name": "c", "op": "linear", "inputs": ["input"], "units": 3, "bias": True}]},
    {"layers": [{"name": "c", "op": "zero_pad", "inputs": ["input"], "pads": [4096, 4096, 4096, 4096]}] },
    {"layers": [{"name": "c", "op": "rescale", "inputs": ["input"], "scale": [float("nan")], "offset": [0]}]},
    {"layers": [{"name": "c", "op": "merge", "inputs": ["input"] * 1000, "kind": "add"}]},
    {"layers": [{"name": "c", **CONV}], "output": "d"},
    {"layers": [{"name": "c", **CONV}], "output": "input"},
    {"layers": [{"name": "c", **CONV}], "input": [3, 1 << 40, 9]},
    {"layers": [{"name": "c", **CONV}], "input": [9]},
    {"layers": [{"name": "c", **CONV}], "softmax": "evil"},
    {"layers": [{"name": f"c{i}", "op": "flatten", "order": "hwc", "inputs": ["input"]} for i in range(5000)]},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(GRAPHS)))
def test_hostile_graph_recipes_are_refused(number: int) -> None:
    recipe = Recipe(arch="keras-graph", options={"input": [3, 9, 9], "output": "c", **GRAPHS[number]})
    tracemalloc.start()
    with pytest.raises(ModelError) as caught:
        build(recipe)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_hostile_recipes_of_our_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsafeFileError, match="--arch"):
        build(Recipe(arch=f"{tmp_path}/code.py:net"))
    for arch, options in (
        ("nothing", {"classes": 3}),
        ("deepid", {}),
        ("deepid", {"classes": 3, "width": -4}),
        ("deepid", {"classes": 3, "height": 5}),
        ("deepid", {"classes": "3"}),
        ("deepid", {"classes": 3, "depth": 3}),
        ("deepid", {"classes": 1 << 20, "embed": 1 << 20}),
        ("mlp", {"classes": 3, "hidden": [1 << 20, 1 << 20]}),
        ("mlp", {"classes": 3, "hidden": [1] * 65}),
        ("mlp", {"classes": 3}),
    ):
        with pytest.raises(ModelError) as caught:
            build(Recipe(arch=arch, options=options))
        assert "\n" not in str(caught.value)
