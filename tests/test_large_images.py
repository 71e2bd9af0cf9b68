"""What goes through a net at once, without a gradient: a bound on pixels, not on images alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from goodnet.guard.disagreement import disagreement
from goodnet.models.classifier import Classifier
from goodnet.models.surgery import features
from goodnet.repair.fine_pruning import mean_activation
from goodnet.repair.nc_prune import _Place
from goodnet.triggers.strong import height
from goodnet.tuning import logits_of
from nets import classifier_of

LARGE = (3, 224, 224)


@pytest.mark.parametrize(
    "passes",
    [
        lambda net, x: net.predict(x),
        logits_of,
        height,
        lambda net, x: disagreement(net, net, x),
        lambda net, x: features(net, "3", x),
        lambda net, x: mean_activation(net, "0", x),
        lambda net, x: _Place(layer="0", side="output").activation(net, x),
    ],
    ids=["predict", "logits_of", "height", "disagreement", "features", "mean_activation", "activation"],
)
def test_large_images_go_through_the_net_a_few_at_a_time(passes: Callable[[Classifier, Tensor], object]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 32, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(98, 4)).eval()
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    passes(classifier_of(net, LARGE, 4), torch.zeros(20, *LARGE))
    assert max(seen) <= 13  # 8 MiB of pixels
    assert sum(seen) in (20, 40)  # disagreement asks twice
