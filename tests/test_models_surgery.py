"""Surgery: cuts do what they say, on a copy, and leave no hook behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from goodnet.errors import UsageError
from goodnet.models.arch import ARCHITECTURES
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.surgery import (
    clone,
    following_batch_norm,
    layer_names,
    record_output,
    resolve_layer,
    zero_channels,
)


def _classifier(arch: str = "small-vgg") -> Classifier:
    known = ARCHITECTURES[arch]
    net = known.net(classes=5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
    channels, height, width = known.shape
    spec = InputSpec(channels=channels, height=height, width=width)
    return Classifier(net=net, input=spec, classes=5, recipe=Recipe(arch=arch, options={"classes": 5}))


def _hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def test_a_clone_shares_nothing() -> None:
    original = _classifier()
    before = {key: value.clone() for key, value in original.net.state_dict().items()}
    copy = clone(original)
    with torch.no_grad():
        for tensor in copy.net.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(value, before[key]) for key, value in original.net.state_dict().items())
    assert copy.recipe == original.recipe
    assert not copy.net.training


def test_layers_by_name() -> None:
    net = _classifier("deepid").net
    assert layer_names(net) == ["conv_1", "conv_2", "conv_3", "conv_4", "fc_1", "fc_2", "output"]
    assert resolve_layer(net, "conv_4") is net.conv_4
    for name in ("conv_9", "", "pool"):
        with pytest.raises(UsageError, match="conv_1, conv_2"):
            resolve_layer(net, name)


def test_outputs_are_recorded_with_gradient_and_hooks_removed() -> None:
    classifier = _classifier("deepid")
    x = torch.rand(2, 3, 55, 47, requires_grad=True)
    with record_output(classifier.net, "conv_1") as recorded:
        classifier.logits(x)
        classifier.logits(x.detach())
    assert [tuple(out.shape) for out in recorded] == [(2, 20, 52, 44)] * 2
    torch.testing.assert_close(recorded[0], classifier.net.conv_1(x))
    (gradient,) = torch.autograd.grad(recorded[0].sum(), x)
    assert gradient.abs().sum() > 0
    with pytest.raises(ZeroDivisionError), record_output(classifier.net, "relu"):
        raise ZeroDivisionError
    with pytest.raises(UsageError), record_output(classifier.net, "nothing"):
        pass
    assert _hooks(classifier.net) == 0


def test_following_batch_norm() -> None:
    vgg, wrn, deepid = _classifier(), _classifier("wrn-16-1"), _classifier("deepid")
    x = torch.rand(1, 3, 32, 32)
    assert following_batch_norm(vgg, "features.3", x) == "features.4"
    assert following_batch_norm(vgg, "classifier", x) is None
    assert following_batch_norm(wrn, "block1.layer.0.conv1", x) == "block1.layer.0.bn2"
    assert following_batch_norm(wrn, "block1.layer.0.conv2", x) is None  # an addition lies between
    assert following_batch_norm(deepid, "conv_1", torch.rand(1, 3, 55, 47)) is None
    with pytest.raises(RuntimeError):
        following_batch_norm(Classifier(**{**vars(vgg), "net": _Fails(vgg.net)}), "inner.features.3", x)
    assert _hooks(vgg.net) == _hooks(wrn.net) == 0


class _Fails(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        raise RuntimeError


@pytest.mark.parametrize(
    ("arch", "layer", "norm", "shape"),
    [
        ("small-vgg", "features.16", "features.17", (3, 32, 32)),
        ("wrn-16-1", "block2.layer.0.conv1", "block2.layer.0.bn2", (3, 32, 32)),
        ("deepid", "conv_3", None, (3, 55, 47)),
        ("deepid", "fc_1", None, (3, 55, 47)),
    ],
)
def test_zeroed_channels_are_exactly_zero(arch: str, layer: str, norm: str | None, shape: tuple[int, ...]) -> None:
    original = _classifier(arch)
    x = torch.rand(3, *shape)
    before = original.logits(x)
    cut = clone(original)
    assert following_batch_norm(cut, layer, x[:1]) == norm
    zero_channels(cut.net, layer, [1, 4], batch_norm=norm)
    with record_output(cut.net, norm or layer) as recorded:
        after = cut.logits(x)
    with record_output(original.net, norm or layer) as whole:
        torch.testing.assert_close(original.logits(x), before, rtol=0, atol=0)
    assert torch.count_nonzero(recorded[0][:, [1, 4]]) == 0
    others = [i for i in range(recorded[0].shape[1]) if i not in (1, 4)]
    torch.testing.assert_close(recorded[0][:, others], whole[0][:, others])
    assert not torch.equal(after, before)


def test_zeroing_mistakes() -> None:
    classifier = clone(_classifier())
    for channels, norm in (([32], None), ([-1], None), ([0], "features.17"), ([0], "features.2"), ([0], "none")):
        with pytest.raises(UsageError):
            zero_channels(classifier.net, "features.0", channels, batch_norm=norm)
    zero_channels(classifier.net, "features.0", [])
