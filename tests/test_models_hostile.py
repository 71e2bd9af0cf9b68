"""Hostile model files: nothing runs, nothing outside is read, no memory is taken on a file's word."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError
from goodnet.models.arch import build
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Recipe
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier

SHAPES = {
    "conv_1": (4, 4, 3, 20),
    "conv_2": (3, 3, 20, 40),
    "conv_3": (3, 3, 40, 60),
    "conv_4": (2, 2, 60, 80),
    "fc_1": (1200, 160),
    "fc_2": (960, 160),
    "output": (160, 5),
}


def _deepid_file(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for name, shape in SHAPES.items():
            file[f"{name}/{name}/kernel:0"] = np.full(shape, 0.01, dtype=np.float32)
            file[f"{name}/{name}/bias:0"] = np.zeros(shape[-1], dtype=np.float32)
    return path


def _replace(file: h5py.File, make: Callable[[h5py.Group], Any]) -> None:
    group = file["fc_1/fc_1"]
    del group["kernel:0"]
    make(group)


def _external_link(group: h5py.Group) -> None:
    group["kernel:0"] = h5py.ExternalLink("/etc/passwd", "x")


def _soft_link(group: h5py.Group) -> None:
    group["kernel:0"] = h5py.SoftLink("/fc_2/fc_2/kernel:0")


def _virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout(shape=(1200, 160), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(1200, 160))
    group.create_virtual_dataset("kernel:0", layout)


def _external_storage(group: h5py.Group) -> None:
    group.create_dataset("kernel:0", (1200, 160), "f4", external=[("/etc/passwd", 0, 1200 * 160 * 4)])


def _never_written(group: h5py.Group) -> None:
    group.create_dataset("kernel:0", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))


def _bomb(group: h5py.Group) -> None:
    data = group.create_dataset("kernel:0", (1 << 11, 1 << 13), "f4", chunks=(16, 1 << 13), compression=9)
    data[:] = np.zeros(data.shape, dtype=np.float32)  # 64 MiB in 64 KiB


def _objects(group: h5py.Group) -> None:
    group.create_dataset("kernel:0", (3,), h5py.string_dtype())


def _compound(group: h5py.Group) -> None:
    group.create_dataset("kernel:0", (3,), np.dtype([("a", "f4"), ("b", "i4")]))


UNSAFE = [_external_link, _soft_link, _virtual, _external_storage, _never_written, _bomb, _objects, _compound]


@pytest.mark.parametrize("make", UNSAFE)
def test_hdf5_traps_are_refused_without_memory(make: Callable[[h5py.Group], None], tmp_path: Path) -> None:
    path = _deepid_file(tmp_path / "net.h5")
    with h5py.File(path, "a") as file:
        _replace(file, make)
    tracemalloc.start()
    with pytest.raises(UnsafeFileError) as caught:
        load_classifier(path, arch="deepid")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert "\n" not in str(caught.value)
    assert "net.h5" in str(caught.value)
    assert inspect_file(path).refused == str(caught.value)


def test_the_untouched_file_loads(tmp_path: Path) -> None:
    classifier = load_classifier(_deepid_file(tmp_path / "net.h5"), arch="deepid")
    assert classifier.classes == 5
    assert isinstance(classifier.net, DeepID)


def test_cycles_are_walked_once(tmp_path: Path) -> None:
    path = _deepid_file(tmp_path / "net.h5")
    with h5py.File(path, "a") as file:
        file["fc_1/again"] = file["/"]
        file["loop"] = file["fc_1"]
    assert load_classifier(path, arch="deepid").classes == 5


def test_huge_config_and_vlen_names_are_bounded(tmp_path: Path) -> None:
    path = _deepid_file(tmp_path / "net.h5")
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.array(["x" * 10_000] * 50, dtype=object)  # never read
        file.attrs.create("model_config", np.array([b"{}", b"{}"]))
    with pytest.raises(ModelError, match="one string"):
        load_classifier(path, arch="deepid")


@pytest.mark.parametrize("config", [b"{", b"[]", b"[" * 30_000, b'{"class_name": "Sequential"}', b'{"class_name": 3}'])
def test_broken_configs_are_one_line(config: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config.decode()
    with pytest.raises(ModelError) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_weights_are_named(value: float, tmp_path: Path) -> None:
    path = _deepid_file(tmp_path / "net.h5")
    with h5py.File(path, "a") as file:
        file["conv_2/conv_2/bias:0"][3] = value
    with pytest.raises(ModelError, match=r"conv_2.*NaN"):
        load_classifier(path, arch="deepid")


def _message(path: Path) -> str:
    """What the user is told; empty where the file loads. Anything but a named error fails the test."""
    try:
        load_classifier(path, arch="deepid")
    except GoodnetError as error:
        return str(error)
    return ""


def test_truncated_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = _deepid_file(tmp_path / "net.h5").read_bytes()
    torch.save({"a": torch.zeros(100)}, tmp_path / "net.pt")
    zipped = (tmp_path / "net.pt").read_bytes()
    rng = np.random.default_rng(0)
    cases = [whole[:cut] for cut in (8, 100, 2000, len(whole) // 2, len(whole) - 1)]
    cases += [zipped[:cut] for cut in (4, 40, len(zipped) - 30)]
    cases += [b"", b"\x80\x04", b"hello", b"\x80" + bytes(30), struct.pack("<Q", 5) + b"{}" + bytes(9)]
    hurt_from = len(cases)  # a flipped bit may hit a weight or nothing at all; a cut file never loads
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


class _Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def test_pickles_do_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": _Evil(mark)}, tmp_path / "zip.pt")
    torch.save({"x": _Evil(mark)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Evil(mark)))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    for name in ("zip.pt", "old.pt", "module.pt", "script.pt"):
        with pytest.raises(UnsafeFileError, match="state dict") as caught:
            load_classifier(tmp_path / name, arch="mlp")
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        load_classifier(tmp_path / "plain.pkl", arch="mlp")
    assert not mark.exists()


def test_tensors_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    torch.save({"fc1.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match="claims"):
        load_classifier(tmp_path / "net.pt", arch="mlp")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"fc1.weight": torch.zeros(1000, 1000)}, buffer)
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(UnsafeFileError, match="compressed"):
        load_classifier(path, arch="mlp")


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    for number, content in enumerate(({"a": 1}, [torch.zeros(1)], {"state_dict": {"a": torch.zeros(1), "b": 3}})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ModelError):
            load_classifier(tmp_path / f"{number}.pt", arch="mlp")
    save_file(
        {"fc1.weight": torch.full((3, 784), float("nan")), "fc1.bias": torch.zeros(3)}, tmp_path / "nan.safetensors"
    )
    with pytest.raises(ModelError, match="NaN"):
        load_classifier(tmp_path / "nan.safetensors", arch="mlp")


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
