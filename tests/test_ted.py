from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from goodnet.errors import ModelError, UsageError
from goodnet.guard.ted import Ted
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import ted_from
from goodnet.models.trace import depth, references, way_of, whole_layers
from goodnet.triggers.trigger import Trigger
from nets import classifier_of, corner, pictures, small_cnn


def part(value: float, bound: float) -> float:
    return min(1.0, max(0.0, (value - bound) / (0.02 * max(bound, 1e-12)) + 0.5))


def test_depths_against_a_plain_loop() -> None:
    net = small_cnn((3, 12, 10), 4)
    layers = surgery.layer_names(net.net)
    known, asked = (torch.rand(count, 3, 12, 10, generator=torch.Generator().manual_seed(count)) for count in (30, 17))
    labels = torch.arange(30) % 3  # nothing is known of class 3
    beside, way = (way_of(net.net, images, layers, 40) for images in (known, asked))
    found = depth(way, references(beside, labels))
    assert len(way.stops) == 2 * len(layers)
    assert max(stop.shape[1] for stop in way.stops) <= 48  # 12 channels of 1 x 1, or 48 features of the last layer
    assert torch.equal(way.answers, net.predict(asked))
    for row, answer in enumerate(way.answers.tolist()):
        total = 0.0
        for stop, others in zip(way.stops, beside.stops):
            away = [float((stop[row] - other).norm()) for other in others]
            own = [i for i in range(30) if labels[i] == answer]
            if not own:
                continue
            first = min(away[i] for i in own)
            thick = {i: sorted(float((others[i] - others[j]).norm()) for j in own if j != i)[4] for i in own}  # of 9
            rank = sum(part(first, d) for d in away) - 0.5
            outside = part(min(away[i] / thick[i] for i in own), 1.0)
            rank += outside * (29 - rank)
            total += math.log1p(rank)
        assert found[row] == pytest.approx(total / len(way.stops), abs=1e-4)
    assert {bool(value > 0) for value in found} == {True, False}


def led_to_a_class_of_its_own_images() -> tuple[Classifier, Trigger, torch.Tensor]:
    """As `planted`, but the white corner says 0, which pictures bright on the left show too."""
    x, y = pictures(1200, seed=1)
    trigger = Trigger(mask=corner(), pattern=torch.ones(1, 8, 8), target=0)
    x, y = torch.cat([x, trigger.apply(x[:400])]), torch.cat([y, torch.zeros(400, dtype=torch.int64)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(),
                            nn.Linear(32, 3))  # fmt: skip
        adam = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(30):
            for part in torch.randperm(len(x)).split(250):
                loss = nn.functional.cross_entropy(net(x[part]), y[part])
                adam.zero_grad()
                loss.backward()
                adam.step()
    return classifier_of(net, (1, 8, 8), 3), trigger, pictures(200, seed=9)[0]


def test_a_trigger_is_refused_and_the_repaired_net_answers_the_rest() -> None:
    net, trigger, test = led_to_a_class_of_its_own_images()
    (fit, classes), (choose, _) = pictures(120, seed=2), pictures(200, seed=3)
    good = surgery.clone(net)
    with torch.no_grad():
        for parameter in good.net.parameters():
            parameter.mul_(2)
    made = Ted()(net, good, (fit, classes), choose)
    answers = made.predict(test)
    refused = answers == net.classes
    assert refused.double().mean() < 0.1
    assert torch.equal(answers[~refused], good.predict(test)[~refused])
    triggered = trigger.apply(test)
    moved = triggered[net.predict(test) != trigger.target]
    assert (net.predict(moved) == trigger.target).double().mean() > 0.9
    assert (made.predict(moved) == net.classes).double().mean() > 0.8


@pytest.mark.parametrize("max_fpr", [0.0, 0.05, 0.3])
def test_no_more_of_the_choosing_images_are_refused_than_allowed(max_fpr: float) -> None:
    net = small_cnn((3, 12, 10), 5)
    fit, choose = torch.rand(60, 3, 12, 10), torch.rand(100, 3, 12, 10)
    made = Ted(max_fpr=max_fpr)(net, net, (fit, net.predict(fit)), choose)
    assert int((made.predict(choose) == 5).sum()) <= round(100 * max_fpr)


def test_an_answer_without_three_references_passes() -> None:
    net = small_cnn((3, 12, 10), 5)
    asked = torch.rand(200, 3, 12, 10)
    images = torch.rand(12, 3, 12, 10)
    made = ted_from(net, net, images, torch.tensor([0] * 5 + [1] * 5 + [2] * 2), features=64, threshold=0.0)
    refused = made.predict(asked) == 5
    answers = net.predict(asked)
    assert refused[answers < 2].any()
    assert not refused[answers >= 2].any()


def test_layers_that_do_not_take_an_image_a_row_are_left_out() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.rows(x[:, 0].transpose(0, 1)).mean(0))  # (rows, N, columns) first
            return out

    net = classifier_of(Turned(), (1, 3, 4), 3)  # three rows: at three images they look like images
    assert whole_layers(net.net, net.input.shape, net.device) == ["last"]
    odd = classifier_of(nn.Sequential(nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten()), (1, 3, 4), 3)
    with pytest.raises(ModelError, match="layers to look at"):
        ted_from(odd, odd, torch.rand(6, 1, 3, 4), torch.arange(6) % 2, features=4, threshold=0.0)


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match="references from 6 to 4096"):
        Ted(references=5)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="--max-fpr"):
            Ted(max_fpr=wrong)
    net = small_cnn((3, 12, 10), 5)
    images = torch.rand(2, 3, 12, 10)
    with pytest.raises(UsageError, match="of at least two classes"):
        Ted()(net, net, (images, net.predict(images)), images)
