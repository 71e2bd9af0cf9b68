"""What of a net's code and layers `.keras` can say, read again by goodnet's own reader, and what it refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.errors import ModelError
from goodnet.export import export_net
from goodnet.export.keras_walk import plan_of
from goodnet.models.arch import GRAPH, build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.inspect_file import inspect_file
from goodnet.models.load import load_classifier
from nets import classifier_of
from test_goodnet_kinds import net_of

SHAPE = (3, 10, 9)


class Coded(nn.Module):
    """A net whose operations stand in its code."""

    def __init__(self, code: Callable[[Tensor], Tensor], channels: int = 4):
        super().__init__()
        self.conv, self.code, self.fc = nn.Conv2d(3, 4, 3), code, nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.code(self.conv(x)))
        return out


def coded(code: Callable[[Tensor], Tensor]) -> Classifier:
    return classifier_of(Coded(code), SHAPE, 5)


def pooled(op: str, padding: str, stride: int, **more: object) -> Classifier:
    """As Keras's reader makes them: a pool with lopsided padding after a convolution that may be negative."""
    layers = [
        {"name": "conv", "op": "conv2d", "inputs": ["input"], "filters": 4, "kernel": [2, 2], "stride": [1, 1],
         "dilation": [1, 1], "groups": 1, "bias": True, "padding": "same"},
        {"name": "pool", "op": op, "inputs": ["conv"], "kernel": [3, 3], "stride": [stride, stride], "padding": padding,
         **more},
        {"name": "flat", "op": "flatten", "inputs": ["pool"], "order": "hwc"},
        {"name": "fc", "op": "linear", "inputs": ["flat"], "units": 5, "bias": True},
    ]  # fmt: skip
    recipe = Recipe(arch=GRAPH, options={"input": list(SHAPE), "layers": layers, "output": "fc"})
    spec = InputSpec(channels=SHAPE[0], height=SHAPE[1], width=SHAPE[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build(recipe)
    with torch.no_grad():
        net.conv.bias.sub_(3.0)  # so that a border of zeros would win
    return Classifier(net=net, input=spec, classes=5, recipe=recipe)


def functional(x: Tensor) -> Tensor:
    x = F.adaptive_max_pool2d(F.avg_pool2d(F.relu(F.max_pool2d(x, 2)), 2), 1)
    return F.dropout(x.view(x.shape[0], -1) * 2 - 0.5, 0.5, False)


NETS = {
    "max pool, same, stride 2": lambda: pooled("max_pool", "same", 2),
    "max pool, padded on both sides": lambda: pooled("max_pool", "explicit", 2, pads=[1, 1, 1, 1]),
    "functions of torch": lambda: coded(functional),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    net = NETS[name]()
    export_net(net, tmp_path / "net.keras")
    images = torch.rand(16, *SHAPE)
    back = load_classifier(tmp_path / "net.keras")
    torch.testing.assert_close(back.logits(images), net.logits(images), rtol=1e-4, atol=1e-4)


REFUSED = {
    "average over what is there": (lambda: pooled("average_pool", "same", 2), "backends differ"),
    "-inf before something else": (
        lambda: coded(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2).mean((2, 3))),
        "'pad' cannot be written",
    ),
    "padding of another kind": (
        lambda: classifier_of(
            nn.Sequential(nn.ConstantPad2d((1, 0, 0, 0), -torch.inf), nn.ReLU(), nn.Flatten(), nn.Linear(300, 5)),
            SHAPE,
            5,
        ),
        "padding with -inf before it",
    ),
    "dropout that never stops": (lambda: coded(lambda x: F.dropout(x.mean((2, 3)))), "dropout that never stops"),
    "another pool of torch's": (
        lambda: coded(lambda x: F.lp_pool2d(x, 2.0, 2).mean((2, 3))),
        "'lp_pool2d' cannot be written",
    ),
    "a scaled sum": (lambda: coded(lambda x: torch.add(x, x, alpha=2).mean((2, 3))), "'add' with"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_layers_cannot_say_is_named(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as raised:
        plan_of(make(), "net.keras")
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ending", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_inspect_tells_of_the_net_in_it(ending: str, tmp_path: Path) -> None:
    net = net_of("mlp")
    export_net(net, tmp_path / f"net.{ending}")
    info = inspect_file(tmp_path / f"net.{ending}")
    assert (info.refused, info.classes, info.input) == (None, net.classes, net.input.describe())
