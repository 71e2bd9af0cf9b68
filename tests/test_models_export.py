"""torch.export files: the same logits as the net's own, and nothing in the archive is unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.models.arch import ARCHITECTURES
from goodnet.models.load import load_classifier

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 15) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="torch.export writes this format from PyTorch 2.8 on",
)
SHAPE = (3, 9, 8)
Json = dict[str, Any]


def export(net: nn.Module, path: Path, shape: tuple[int, ...] = SHAPE, *, fixed: bool = False) -> Path:
    dynamic = None if fixed else ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(net.eval(), (torch.rand(3, *shape),), dynamic_shapes=dynamic), path)
    return path


def logits_of(layer: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    with torch.no_grad():
        size = layer(torch.rand(2, *shape)).flatten(1).shape[1]
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(size, 5))


class Code(nn.Module):
    """What is in the code of a forward and in no module."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.inner = forward
        self.number = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x - 0.5)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "convolution with settings": lambda: nn.Conv2d(3, 6, (3, 2), (2, 1), (0, 1), (2, 1), groups=3, bias=False),
    "batch norm": lambda: nn.BatchNorm2d(3),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool without padding": lambda: nn.AvgPool2d((3, 2), padding=1, count_include_pad=False),
    "global average": lambda: nn.AdaptiveAvgPool2d(1),
    "global average that changes nothing": lambda: nn.AdaptiveAvgPool2d((9, 8)),
    "mean": lambda: Code(lambda x: x.mean((2, 3))),
    "clamp": lambda: Code(lambda x: x.clamp(-0.2, 0.3)),
    "numbers": lambda: Code(lambda x: (x * 2 - 0.25 + 1.5) / 3),
    "sum, difference, product": lambda: Code(lambda x: (x + x.relu()) * x.sigmoid() - x.tanh()),
    "larger and smaller": lambda: Code(lambda x: torch.minimum(torch.maximum(x, x.relu()), x.sigmoid())),
    "joined": lambda: Code(lambda x: torch.cat([x, x.relu()], 1)),
    "padded": lambda: nn.ZeroPad2d((1, 0, 2, 3)),
    "rolled": lambda: Code(lambda x: x.roll((1, -2), (2, 3))),
    "halves swapped": lambda: Code(lambda x: torch.cat([part.exp() for part in x.split(5, 2)][::-1], 2)),
    "turned": lambda: Code(lambda x: x.permute(0, 2, 3, 1).contiguous()),
    "reshaped": lambda: Code(lambda x: x.reshape(x.shape[0], 6, -1, 4)),
    "flat": lambda: Code(lambda x: x.view(x.size(0), -1)),
    **{
        name: (lambda kind=kind: nn.Sequential(Code(lambda x: 2 * x), kind()))  # type: ignore[misc]
        for name, kind in {
            "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh, "leaky relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU,
            "silu": nn.SiLU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "selu": nn.SELU, "mish": nn.Mish,
            "dropout": nn.Dropout, "relu": nn.ReLU,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_operator(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = logits_of(LAYERS[name]())
        x = torch.rand(7, *SHAPE)
    loaded = load_classifier(export(net, tmp_path / "net.pt2"))
    assert (loaded.input.shape, loaded.classes) == (SHAPE, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), net(x), atol=1e-5, rtol=1e-4)


NETS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "deepid": ({"classes": 7}, (3, 55, 47)),
    "small-vgg": ({"classes": 7}, (3, 32, 32)),
    "wrn-16-1": ({"classes": 7}, (3, 32, 32)),
    "cnn": ({"classes": 7}, (1, 28, 28)),
    "resnet-18": ({"classes": 7, "kernel": 3}, (3, 32, 32)),
    "mobilenet-v2": ({"classes": 7}, (3, 64, 64)),
}


@pytest.mark.filterwarnings("ignore:No complete tensor")
@pytest.mark.parametrize("name", NETS)
def test_nets_with_a_fixed_number_of_images(name: str, tmp_path: Path) -> None:
    options, shape = NETS[name]
    net = ARCHITECTURES[name].net(**options).to(memory_format=torch.channels_last)  # strides of its own
    loaded = load_classifier(export(net, tmp_path / "net.pt2", shape, fixed=True))
    x = torch.rand(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), net(x), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 6, 5), nn.Softmax(1))
    return export(net, tmp_path_factory.mktemp("export") / "net.pt2")


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, bytes]], None], *, kind: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return target


def edited(member: str, change: Callable[[Json], Any]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return edit


def graph(change: Callable[[Json], Any]) -> Callable[[dict[str, bytes]], None]:
    return edited("models/model.json", lambda content: change(content["graph_module"]["graph"]))


def weight(**fields: Any) -> Callable[[dict[str, bytes]], None]:
    def change(content: Json) -> None:
        entry = content["config"]["0.weight"]
        for key, value in fields.items():
            (entry if key in entry else entry["tensor_meta"])[key] = value

    return edited("data/weights/model_weights_config.json", change)


def sides(*values: int) -> list[Json]:
    return [{"as_int": value} for value in values]


def remove(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.pop(name) and None


def replace(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({name: content})


def argument(index: int, value: Json) -> Callable[[Json], Any]:
    return lambda graph: graph["nodes"][index]["inputs"].append({"name": "extra", "arg": value, "kind": 1})


def instead(*nodes: Json) -> Callable[[dict[str, bytes]], None]:
    """These operators instead of the relu; the last gives what it gave."""

    def change(graph: Json) -> None:
        nodes[-1]["outputs"] = graph["nodes"][1]["outputs"]
        graph["nodes"][1:2] = nodes

    return globals()["graph"](change)


def node(target: str, output: str = "y", **inputs: Json) -> Json:
    given = [{"name": name, "arg": value, "kind": 1} for name, value in inputs.items()]
    return {"target": target, "inputs": given, "outputs": [{"as_tensor": {"name": output}}], "metadata": {}}


def tensor(name: str) -> Json:
    return {"as_tensor": {"name": name}}


ATEN = "torch.ops.aten."
CONV = tensor("conv2d")
ENDLESS = [
    {"target": "_operator.mul", "outputs": [{"as_sym_int": {"as_name": f"s{i + 1}"}}], "metadata": {}, "inputs": [
        {"name": name, "arg": {"as_sym_int": {"as_name": f"s{i}"} if i else {"as_int": 1 << 40}}, "kind": 1}
        for name in "ab"]}
    for i in range(40)
]  # fmt: skip
WEIGHTS = "data/weights/model_weights_config.json"
HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], type[GoodnetError], str]] = {
    "an operator of somebody's": (
        graph(lambda g: g["nodes"][0].update(target="torch.ops.evil.run.default")), ModelError, "own operators"),
    "a Python function": (graph(lambda g: g["nodes"][0].update(target="os.system")), ModelError, "own operators"),
    "an unknown operator": (
        graph(lambda g: g["nodes"][1].update(target="torch.ops.aten.erfinv.default")), ModelError, "not an operator"),
    "an unknown argument": (graph(argument(0, {"as_int": 3})), ModelError, "does not know the setting 'extra'"),
    "a graph in an argument": (graph(argument(0, {"as_graph": {}})), UnsafeFileError, "a graph or an object"),
    "an object in an argument": (graph(argument(0, {"as_custom_obj": {}})), UnsafeFileError, "a graph or an object"),
    "a softmax over the images": (
        instead(node(f"{ATEN}softmax.int", self=CONV, dim={"as_int": 0})), ModelError, "an axis"),
    "a mean over the images": (
        instead(node(f"{ATEN}mean.dim", self=CONV, dim={"as_ints": [0]})), ModelError, "an axis"),
    "another number of images": (
        instead(node(f"{ATEN}view.default", self=CONV, size={"as_ints": [4, -1]})), ModelError, "a shape"),
    "an axis beyond": (
        instead(node(f"{ATEN}select.int", self=CONV, dim={"as_int": 9}, index={"as_int": 0})), ModelError, "an index"),
    "a size of nowhere": (
        instead(node(f"{ATEN}view.default", self=CONV, size={"as_sym_ints": [{"as_name": "s"}]})), ModelError, "size"),
    "a size without end": (
        instead(*ENDLESS, node(f"{ATEN}view.default", self=CONV, size={"as_sym_ints": [{"as_name": "s40"}]})),
        UnsafeFileError, "bits; refused"),
    "a range without end": (
        instead(node(f"{ATEN}arange.default", "r", end={"as_int": 1 << 40}),
                node(f"{ATEN}add.Tensor", self=CONV, other=tensor("r"))), ModelError, "a range"),
    "a constant that is stretched": (
        instead(node(f"{ATEN}arange.default", "r", end={"as_int": 1}),
                node(f"{ATEN}expand.default", "e", self=tensor("r"), size={"as_ints": [1 << 30]}),
                node(f"{ATEN}add.Tensor", self=CONV, other=tensor("e"))), UnsafeFileError, "of constants; refused"),
    "a setting of another kind": (
        instead(node(f"{ATEN}transpose.int", self=CONV, dim0={"as_int": 1}, dim1={"as_string": "x"})), ModelError,
        "a size"),
    "a cycle": (
        graph(lambda g: g["nodes"][0]["inputs"][0]["arg"]["as_tensor"].update(name="relu")), ModelError, "before it"),
    "no operators": (graph(lambda g: g["nodes"].clear()), ModelError, "operators, got 0"),
    "nodes that are none": (graph(lambda g: g.update(nodes=[7])), ModelError, "cannot be read"),
    "pickled weights": (weight(use_pickle=True), UnsafeFileError, "pickled"),
    "a shape beyond the bytes": (weight(sizes=sides(1 << 20, 3, 3, 3)), UnsafeFileError, "claim the shape"),
    "strides beyond the bytes": (weight(strides=sides(1 << 40, 9, 3, 1)), UnsafeFileError, "claim the shape"),
    "an offset beyond the bytes": (weight(storage_offset={"as_int": 1 << 40}), UnsafeFileError, "claim the shape"),
    "a negative stride": (weight(strides=sides(-27, 9, 3, 1)), ModelError, "of a kind or a shape"),
    "an unknown type": (weight(dtype=99), ModelError, "of a kind or a shape"),
    "a path out of the archive": (weight(path_name="../../../etc/passwd"), ModelError, "cannot be read"),
    "another shape": (weight(sizes=sides(2, 3, 3, 3), strides=sides(27, 9, 3, 1)), ModelError, "weights|fit"),
    "no list of weights": (remove(WEIGHTS), ModelError, "cannot be read"),
    "no graph": (replace("models/model.json", b"{}"), ModelError, "cannot be read"),
    "a graph nested without end": (replace("models/model.json", b"[" * 500_000), GoodnetError, "refused|be read"),
    "big-endian": (replace("byteorder", b"big"), ModelError, "little-endian"),
    "two inputs": (
        edited("models/model.json", lambda c: c["graph_module"]["signature"]["input_specs"].append(
            c["graph_module"]["signature"]["input_specs"][-1])), ModelError, "one input and one output, got 2"),
    "NaN": (replace("data/weights/weight_0", b"\xff" * 432), ModelError, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    change, kind, message = HOSTILE[name]
    path = rewritten(whole, tmp_path / "net.pt2", change)
    begun = time.perf_counter()
    with pytest.raises(kind, match=message) as caught:
        load_classifier(path)
    assert time.perf_counter() - begun < 10
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_pickled_is_never_opened(whole: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return shutil.copy, (str(whole), str(canary))

    path = rewritten(whole, tmp_path / "net.pt2", replace("data/sample_inputs/model.pt", pickle.dumps(Evil())))
    loaded = load_classifier(path)
    assert loaded.classes == 5
    assert not canary.exists()
    assert any("softmax" in note for note in loaded.notes)


def test_compressed_old_and_cut_archives(whole: Path, tmp_path: Path) -> None:
    path = rewritten(whole, tmp_path / "net.pt2", lambda members: None, kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFileError, match="compressed"):
        load_classifier(path)

    def old(members: dict[str, bytes]) -> None:
        members["serialized_exported_program.json"] = members.pop("models/model.json")

    with pytest.raises(ModelError, match=r"before PyTorch 2\.8"):
        load_classifier(rewritten(whole, tmp_path / "old.pt2", old))
    content = whole.read_bytes()
    for length in range(1, len(content), len(content) // 29):
        path.write_bytes(content[:length])
        with pytest.raises(GoodnetError) as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)


def test_an_architecture_has_no_place_beside_a_whole_net(whole: Path) -> None:
    with pytest.raises(UsageError, match="--arch mlp has no place"):
        load_classifier(whole, arch="mlp")
    with pytest.raises(UsageError, match="as in the file"):
        load_classifier(whole, input_shape=(3, 8, 8))
    assert load_classifier(whole, input_shape=SHAPE).input.shape == SHAPE
