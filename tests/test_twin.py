"""A twin is the same net, only faster: where it is not the same, it is not used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from goodnet.models.classifier import Classifier
from goodnet.models.twin import has_bfloat16, twin
from nets import classifier_of, planted, small_cnn

SHAPE = (3, 12, 10)


def test_batch_norms_are_folded_in() -> None:
    net = small_cnn(batch_norm=True)
    x = torch.rand(32, *SHAPE)
    made = twin(net, x, precision="float32")
    assert made.precision == "float32"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.classifier.net.modules())
    assert torch.allclose(made.classifier.logits(x), net.logits(x), atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.net.modules())


def test_bfloat16_answers_alike_and_lets_gradients_through() -> None:
    net, _, test = planted()
    made = twin(net, test, precision="bfloat16")
    assert made.precision == "bfloat16"
    assert not made.note
    x = test[:8].clone().requires_grad_()
    logits = made.classifier.logits(x)
    assert logits.dtype == torch.float32
    (grad,) = torch.autograd.grad(logits[:, 3].sum(), x)
    (exact,) = torch.autograd.grad(net.logits(x)[:, 3].sum(), x)
    cosine = nn.functional.cosine_similarity(grad.flatten(1), exact.flatten(1))
    assert float(cosine.min()) > 0.98
    assert next(net.net.parameters()).dtype == torch.float32


class _Fragile(nn.Module):
    """Two classes told apart by a difference that eight bits cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) + 100 * self.scale
        return torch.stack([mean, 100.5 * self.scale.expand_as(mean)], 1)


class _OwnTensors(nn.Module):
    """As code of a user's that makes float32 tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(360, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.ones(360, 3) + self.head(x.flatten(1))


@pytest.mark.parametrize("net", [_Fragile(), _OwnTensors()])
def test_a_net_that_changes_in_bfloat16_stays_in_float32(net: nn.Module) -> None:
    classes = 2 if isinstance(net, _Fragile) else 3
    classifier: Classifier = classifier_of(net, SHAPE, classes)
    made = twin(classifier, torch.rand(64, *SHAPE), precision="bfloat16")
    assert made.precision == "float32"
    assert "float32" in made.note


def test_auto_takes_what_the_machine_is_good_at() -> None:
    net, _, test = planted()
    wanted = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    assert twin(net, test).precision == wanted
