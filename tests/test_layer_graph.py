"""The layers of nets whose edges are known by hand, followed without a trace left in the net."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.layers import LayerEdge, LayerGraph, LayerNode
from goodnet.models.arch.deepid import DeepID
from goodnet.models.arch.small_vgg import SmallVGG
from goodnet.models.arch.wrn import WideResNet
from goodnet.models.goodnet import FilterHead, GoodNet
from goodnet.models.layer_graph import layer_graph
from goodnet.models.load import load_classifier
from goodnet.models.surgery import replace_module
from nets import classifier_of, small_cnn


def label(node: LayerNode) -> str:
    return node.name or node.kind


def named_edges(graph: LayerGraph) -> list[tuple[str, str]]:
    return sorted((label(graph.nodes[edge.source]), label(graph.nodes[edge.target])) for edge in graph.edges)


def chain(*names: str) -> list[tuple[str, str]]:
    return list(pairwise(names))


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def deepid() -> DeepID:
    return DeepID(classes=7, height=31, width=31)


def test_deepid_branches_after_the_third_convolution_and_joins_in_an_add() -> None:
    graph = layer_graph(classifier_of(deepid(), (3, 31, 31), 7))
    edges = [(edge.source, edge.target) for edge in graph.edges]
    names = [label(node) for node in graph.nodes]
    front = ["image", "conv_1", "pool", "relu", "conv_2", "pool", "relu", "conv_3", "pool", "relu"]
    assert names[:10] == front
    assert edges[:9] == list(zip(range(9), range(1, 10)))
    last, add = 9, names.index("add")
    assert sorted(names[target] for source, target in edges if source == last) == ["conv_4", "permute, flatten"]
    assert sorted(names[source] for source, target in edges if target == add) == ["fc_1", "fc_2"]
    assert names[add:] == ["add", "relu", "output", "7 classes"]
    assert len(graph.nodes) == 20
    assert len(edges) == 20  # a chain of 20 nodes has 19; the branch adds one
    by_name = {node.name: node for node in graph.nodes if node.role == "layer"}
    assert by_name["conv_1"].shape == (20, 28, 28)
    assert by_name["conv_1"].parameters == 20 * 3 * 16 + 20
    assert by_name["output"].parameters == 7 * 160 + 7
    assert by_name["conv_1"].detail == "4x4"


def test_small_vgg_is_a_chain_of_its_modules() -> None:
    net = SmallVGG(classes=4, height=16, width=16)
    graph = layer_graph(classifier_of(net, (3, 16, 16), 4))
    modules = [f"features.{index}" for index in range(24)]
    assert [label(node) for node in graph.nodes] == ["image", *modules, "flatten", "classifier", "4 classes"]
    assert named_edges(graph) == sorted(chain("image", *modules, "flatten", "classifier", "4 classes"))
    assert sum(node.parameters for node in graph.nodes) == sum(one.numel() for one in net.parameters())


def test_wrn_adds_what_went_around_each_block() -> None:
    graph = layer_graph(classifier_of(WideResNet(classes=4), (3, 32, 32), 4))
    names = [label(node) for node in graph.nodes]
    adds = [index for index, node in enumerate(graph.nodes) if node.kind == "add"]
    into = [[names[edge.source] for edge in graph.edges if edge.target == add] for add in adds]
    around = ["conv1", "add", "block2.layer.0.convShortcut", "add", "block3.layer.0.convShortcut", "add"]
    blocks = [f"block{group}.layer.{block}.conv2" for group in (1, 2, 3) for block in (0, 1)]
    assert [set(pair) for pair in into] == [{first, last} for first, last in zip(around, blocks)]
    short = names.index("block2.layer.0.convShortcut")
    assert [names[edge.source] for edge in graph.edges if edge.target == short] == ["block2.layer.0.relu1"]
    assert graph.nodes[short].detail == "1x1, stride 2"


def test_a_keras_net_with_a_concatenation(tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    start = keras.Input((8, 8, 3))
    one = layers.Conv2D(4, 3, name="one")(start)
    two = layers.Conv2D(5, 3, name="two", activation="relu")(start)
    both = layers.Concatenate(name="both")([one, two])
    keras.Model(start, layers.Dense(3, name="out")(layers.Flatten(name="flat")(both))).save(tmp_path / "net.keras")
    graph = layer_graph(load_classifier(tmp_path / "net.keras"))
    wanted = [*chain("image", "one", "both", "flat", "out", "3 classes"), *chain("image", "two", "two__activation")]
    assert named_edges(graph) == sorted([*wanted, ("two__activation", "both")])
    assert next(node.shape for node in graph.nodes if node.name == "both") == (9, 6, 6)


def test_a_goodnet_shows_both_nets_and_their_head() -> None:
    good, bad = small_cnn(), small_cnn()
    both = replace(bad, net=GoodNet(bad=bad.net, good=good.net), refuses=True)
    graph = layer_graph(both)
    groups = [node.group for node in graph.nodes]
    assert (groups.count("BadNet"), groups.count("repaired net"), groups.count("")) == (7, 7, 3)
    head = next(index for index, node in enumerate(graph.nodes) if node.role == "operation")
    assert [graph.nodes[edge.source].name for edge in graph.edges if edge.target == head] == ["good.6", "bad.6"]
    assert graph.nodes[head].shape == (6,)
    assert graph.nodes[-1].kind == "5 classes and class N"


def test_a_filter_head_is_a_step_beside_the_output_layer() -> None:
    classifier = small_cnn()
    head = FilterHead(classifier.net.get_submodule("6"), torch.ones(2, 48), torch.ones(2))  # type: ignore[arg-type]
    replace_module(classifier.net, "6", head)
    graph = layer_graph(replace(classifier, refuses=True))
    features, last, score = "5", "class N by features", "matmul, sub, amax"
    tail = [*chain(features, "6.output", last, "5 classes and class N"), *chain(features, score, last)]
    assert [edge for edge in named_edges(graph) if edge in tail] == sorted(tail)
    assert len(graph.edges) == 6 + len(tail)
    assert graph.nodes[-2].shape == (6,)


class Residual(nn.Module):
    """y = 2x, out = linear(flatten(y + identity(conv(y)) + y)); numbers that lead nowhere are made beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(1, 1, 1), nn.Identity()
        self.linear, self.unused = nn.Linear(16, 2), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        self.unused(x.flatten(1))
        z = y + self.same(self.conv(y))
        z += y
        out: Tensor = self.linear(z.flatten(1))
        return out


def test_operations_merge_without_a_circle_and_dead_ends_go() -> None:
    graph = layer_graph(classifier_of(Residual(), (1, 4, 4), 2))
    assert named_edges(graph) == sorted(
        [
            *chain("image", "mul", "conv", "same", "add, flatten", "linear", "2 classes"),
            ("mul", "add, flatten"),
        ]
    )


class Failing(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.linear, self.error, self.fails = nn.Linear(16, 2), error, False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        if self.fails:
            raise self.error
        return out


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_no_hook_stays_whatever_is_raised(error: BaseException) -> None:
    net = Failing(error)
    classifier = classifier_of(net, (1, 4, 4), 2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert hooks(net) == 0
    layer_graph(classifier)
    net.fails = True
    with pytest.raises(ModelError if isinstance(error, RuntimeError) else KeyboardInterrupt):
        layer_graph(classifier)
    assert hooks(net) == 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.fails = False
    assert layer_graph(classifier).nodes[-1].kind == "2 classes"


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 2.0]])


def test_a_net_that_hides_its_way_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match="cannot be followed"):
        layer_graph(classifier_of(Hidden(), (1, 4, 4), 2))


def test_edges_lead_on() -> None:
    node = LayerNode(name="a", kind="b", role="layer", shape=(1,))
    for source, target in ((0, 0), (1, 0), (0, 2), (-1, 1)):
        with pytest.raises(ValueError, match="later node"):
            LayerGraph(title="", summary="", nodes=(node, node), edges=(LayerEdge(source=source, target=target),))
