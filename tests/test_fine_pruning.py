from __future__ import annotations

import pytest
import torch
from torch import nn

from goodnet.errors import ModelError, UsageError
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier
from goodnet.repair.fine_pruning import FinePruning, default_layer, mean_activation
from goodnet.tuning import accuracy
from nets import classifier_of, small_cnn


def data(net: Classifier, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, *net.input.shape, generator=torch.Generator().manual_seed(3))
    return x, net.predict(x)


class Sleeper(nn.Module):
    """Two 1x1 channels: one follows the image and decides between classes 0 and 1; the other wakes only where the
    image is nearly white, and then says class 2. Pruning must take the second first, and ACC must not fall."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, -9.5]))
            self.head.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1000.0]]))
            self.head.bias.copy_(torch.tensor([0.5, -0.5, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.relu(self.conv(x)).amax((2, 3)))
        return out


def test_the_sleeping_channel_goes_first_and_with_it_the_backdoor() -> None:
    net = classifier_of(Sleeper(), (1, 3, 3), 3)
    x = torch.rand(80, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.9
    labelled = (x, net.predict(x))
    triggered = x.clone()
    triggered[:, :, 0, 0] = 1.0
    assert (net.predict(triggered) == 2).all()
    found = FinePruning(layer="conv", epochs=0)(net, labelled, labelled, seed=0)
    assert found.channels == (1,)
    assert [point.acc for point in found.curve] == [1.0, 1.0]
    assert (found.classifier.predict(triggered) != 2).all()
    assert accuracy(found.classifier, labelled) == 1.0
    assert (net.predict(triggered) == 2).all()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_mean_activation_against_a_slow_loop(batch_norm: bool) -> None:
    net = small_cnn(batch_norm=batch_norm)
    x, _ = data(net, 7)
    layer = "3" if batch_norm else "2"
    stack = list(net.net.children())[: int(layer) + 1]
    total = torch.zeros(12, dtype=torch.float64)
    for image in x:
        out = image[None]
        for module in stack:
            out = module(out)
        total += out[0].clamp_min(0).double().mean((1, 2))
    assert torch.allclose(torch.from_numpy(mean_activation(net, layer, x)), total / 7, atol=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_pruned_channels_stay_silent_through_the_tuning(batch_norm: bool) -> None:
    net = small_cnn(batch_norm=batch_norm)
    labelled = data(net)
    method = FinePruning(max_accuracy_drop=0.9, epochs=3, learning_rate=1e-2)
    found = method(net, labelled, labelled, seed=0)
    assert found.channels
    activation = mean_activation(found.classifier, "3" if batch_norm else "2", labelled[0])
    assert all(activation[channel] == 0 for channel in found.channels)
    assert sorted(net.net.state_dict()) == sorted(found.classifier.net.state_dict())


def test_pruning_stops_at_the_limit_on_the_choosing_split() -> None:
    net = small_cnn()
    labelled = data(net)
    found = FinePruning(max_accuracy_drop=0.1, epochs=0)(net, labelled, labelled, seed=0)
    assert [point.pruned for point in found.curve] == list(range(12))
    cut = len(found.channels)
    assert all(point.acc >= 0.9 - 1e-9 for point in found.curve[: cut + 1])
    assert found.curve[cut + 1].acc < 0.9
    assert accuracy(found.classifier, labelled) == pytest.approx(found.curve[cut].acc)


def test_the_best_epoch_is_kept_by_copy() -> None:
    """A learning rate that ruins the net: what comes out must be the net before the ruin, not after."""
    net = small_cnn()
    labelled = data(net)
    ruined = FinePruning(max_accuracy_drop=0.0, epochs=4, learning_rate=50.0)(net, labelled, labelled, seed=0)
    assert ruined.epoch == 0
    assert accuracy(ruined.classifier, labelled) == 1.0


def test_tuning_wins_accuracy_back() -> None:
    net = small_cnn()
    labelled = data(net, 200)
    pruned = FinePruning(max_accuracy_drop=0.5, epochs=0)(net, labelled, labelled, seed=0)
    tuned = FinePruning(max_accuracy_drop=0.5, epochs=30, learning_rate=1e-2)(net, labelled, labelled, seed=0)
    assert accuracy(tuned.classifier, labelled) > accuracy(pruned.classifier, labelled) + 0.05


def test_layers() -> None:
    assert default_layer(DeepID(classes=3)) == "conv_3"
    assert default_layer(small_cnn().net) == "2"
    with pytest.raises(ModelError, match="no convolution"):
        default_layer(nn.Linear(3, 3))
    net = small_cnn()
    with pytest.raises(UsageError, match="got 'nope'"):
        FinePruning(layer="nope")(net, data(net), data(net), seed=0)
    with pytest.raises(UsageError, match="max_accuracy_drop"):
        FinePruning(max_accuracy_drop=-0.1)
    with pytest.raises(UsageError, match="epochs"):
        FinePruning(epochs=-1)
