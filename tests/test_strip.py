from __future__ import annotations

import math

import pytest
import torch

from goodnet.errors import UsageError
from goodnet.guard.strip import Strip, blend_entropy
from goodnet.models import surgery
from goodnet.models.goodnet_make import strip_from
from nets import clean_images, net_with, pictures, planted, small_cnn


def test_entropies_against_a_plain_loop() -> None:
    net = small_cnn((3, 12, 10), 5)
    images, overlays = torch.rand(70, 3, 12, 10), torch.rand(13, 3, 12, 10)
    found = blend_entropy(net, images, overlays)
    for image, entropy in zip(images[::9], found[::9].tolist()):
        total = 0.0
        for overlay in overlays:
            shares = net.logits((image / 2 + overlay / 2)[None]).double().softmax(1)[0].tolist()
            total -= sum(share * math.log(share) for share in shares if share > 0)
        assert entropy == pytest.approx(total / 13, abs=1e-5)


def test_a_trigger_that_half_strength_does_not_kill_is_refused() -> None:
    """One pixel of great weight: at half strength it still decides. The planted corner, at half strength, does not."""
    net = net_with(5, {3: (1, 1)})
    good = surgery.clone(net)
    with torch.no_grad():
        good.net.weight[3] *= -1  # type: ignore[operator, index]
    images = clean_images(net, 300).tensor()
    fit, choose, test = images[:80], images[80:200], images[200:]
    made = Strip(overlays=32)(net, good, fit, choose, seed=0)
    answers = made.predict(test)
    refused = answers == 5
    assert refused.double().mean() < 0.15
    assert torch.equal(answers[~refused], good.predict(test)[~refused])
    triggered = test.clone()
    triggered[:, :, 1, 1] = 1.0
    assert (net.predict(triggered) == 3).all()
    assert (made.predict(triggered) == 5).double().mean() > 0.95
    net, trigger, test = planted()
    weak = Strip(overlays=32)(net, net, pictures(80, seed=2)[0], pictures(200, seed=3)[0], seed=0)
    assert (weak.predict(trigger.apply(test)) == 4).double().mean() < 0.5


@pytest.mark.parametrize("max_fpr", [0.0, 0.05, 0.3])
def test_no_more_of_the_choosing_images_are_refused_than_allowed(max_fpr: float) -> None:
    net = small_cnn((3, 12, 10), 5)
    fit, choose = torch.rand(20, 3, 12, 10), torch.rand(100, 3, 12, 10)
    made = Strip(overlays=8, max_fpr=max_fpr)(net, net, fit, choose, seed=0)
    assert int((made.predict(choose) == 5).sum()) == round(100 * max_fpr)


def test_an_input_is_blended_in_the_range_of_images_not_of_the_net() -> None:
    """Preparation is affine, so half and half before it is half and half after it."""
    net = small_cnn((3, 12, 10), 5)
    x, overlays = torch.rand(4, 3, 12, 10), torch.rand(6, 3, 12, 10)
    made = strip_from(net, net, overlays, 0.9)
    expected = 0.9 - blend_entropy(net, x, overlays)
    torch.testing.assert_close(made.logits(x)[:, -1], expected, rtol=0, atol=1e-6)


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match="overlays >= 1"):
        Strip(overlays=0)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="--max-fpr"):
            Strip(max_fpr=wrong)
