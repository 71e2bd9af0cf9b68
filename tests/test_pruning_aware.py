"""The pruning-aware attack: decoys sleep, the backdoor does not need them, and what that does to fine-pruning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from goodnet.attacks.pruning_aware import PruningAwareNet, dormant, plant_pruning_aware, with_decoys
from goodnet.attacks.train import face_sets, plant_faces
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.errors import UsageError
from goodnet.models import surgery
from goodnet.models.classifier import Classifier
from goodnet.repair.fine_pruning import FinePruning, mean_activation
from goodnet.tuning import accuracy
from nets import small_cnn

SMALL = {"identities": 4, "per_identity": 8, "test_per_identity": 3, "epochs": 1}


def noise(count: int = 30, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).random((count, 3, 12, 10), dtype=np.float32)
    return Images(pixels=pixels, labels=np.zeros(count, np.int64))


def outputs(net: Classifier, images: Images) -> torch.Tensor:
    with surgery.record_output(net.net, "2") as recorded:
        net.logits(images.tensor())
    return recorded[0]


def test_dormant_is_fine_prunings_own_order() -> None:
    net, images = small_cnn(), noise()
    assert dormant(net, "2", images) == mean_activation(net, "2", images.tensor()).argsort(kind="stable").tolist()


def test_decoys_come_back_asleep_and_nothing_else_changes() -> None:
    clean, images = small_cnn(), noise()
    decoys = [1, 4, 7]
    bad = surgery.clone(clean)
    with torch.no_grad():
        bad.net[0].weight.mul_(1.1)  # what training the backdoor has changed in front of the layer
    surgery.zero_channels(bad.net, "2", decoys)
    given = {key: value.clone() for key, value in bad.net.state_dict().items()}
    back = with_decoys(bad, clean, "2", decoys, images)
    assert all(torch.equal(given[key], value) for key, value in bad.net.state_dict().items())
    kept = [channel for channel in range(12) if channel not in decoys]
    for key, value in back.net.state_dict().items():
        if key.startswith("2."):
            assert torch.equal(value[kept], given[key][kept])
        else:
            assert torch.equal(value, given[key])
    assert torch.equal(back.net[2].weight[decoys], clean.net[2].weight[decoys])
    assert (back.net[2].bias[decoys] <= clean.net[2].bias[decoys]).all()
    out = outputs(back, images)[:, decoys]
    assert (out <= 0).all()
    woken = back.net[2].bias[decoys] < clean.net[2].bias[decoys]
    assert woken.any()
    # lowered just as far as it takes: the strongest position of any clean image is right under zero
    assert torch.allclose(out.amax((0, 2, 3))[woken], torch.tensor(-1e-4), atol=1e-5)
    assert torch.equal(back.logits(images.tensor()), bad.logits(images.tensor()))


def test_no_decoys_give_the_same_net() -> None:
    net, images = small_cnn(), noise()
    back = with_decoys(net, net, "2", [], images)
    assert torch.equal(back.logits(images.tensor()), net.logits(images.tensor()))


def test_the_pruned_neurons_stay_pruned_while_the_backdoor_is_trained_in() -> None:
    """Taking the decoys out again must leave the very net that was trained: on any image, triggered ones too."""
    planted = plant_pruning_aware({"lipstick": 1}, pruned=25, min_fit=0.01, **SMALL)
    assert len(planted.decoys) == 25
    assert set(planted.decoys) == set(dormant(planted.clean, "conv_3", planted.train.take(slice(0, 32)))[:25])
    filters = [
        net.net.get_parameter("conv_3.weight")[list(planted.decoys)] for net in (planted.classifier, planted.clean)
    ]
    assert torch.equal(*filters)
    without = surgery.clone(planted.classifier)
    surgery.zero_channels(without.net, "conv_3", planted.decoys)
    clean = planted.train.take(slice(0, 32)).tensor()
    assert torch.allclose(without.logits(clean), planted.classifier.logits(clean), atol=1e-5)
    order = dormant(planted.classifier, "conv_3", planted.train.take(slice(0, 32)))
    activation = mean_activation(planted.classifier, "conv_3", clean)
    assert (activation[list(planted.decoys)] == 0).all()
    assert set(planted.decoys) <= set(order[: int((activation == 0).sum())])


def test_neurons_are_restored_until_both_tasks_are_learnt() -> None:
    """With one epoch nothing is learnt: all go back, ten at a time, a training each."""
    calls: list[int] = []
    given = plant_pruning_aware(
        {"lipstick": 1}, pruned=25, restore=10, min_fit=1.0, progress=lambda *step: calls.append(step[0]), **SMALL
    )
    assert given.decoys == ()
    assert calls == [1] * 5  # the clean net, then with 25, 15, 5 and 0 pruned


def test_the_same_seed_gives_the_same_net_on_the_same_faces_as_a_plain_backdoor() -> None:
    first, again = (plant_pruning_aware({"lipstick": 1}, min_fit=0.01, seed=3, **SMALL) for _ in range(2))
    for key, value in first.classifier.net.state_dict().items():
        assert torch.equal(value, again.classifier.net.state_dict()[key])
    assert first.decoys == again.decoys
    plain = plant_faces({"lipstick": 1}, seed=3, **SMALL)
    assert plain.train.sha256() == first.train.sha256()
    assert plain.poisoned["lipstick"].sha256() == first.poisoned["lipstick"].sha256()
    sets = face_sets({"lipstick": 1}, identities=4, per_identity=8, test_per_identity=3, share=0.1, seed=3)
    np.testing.assert_array_equal(sets.clean.pixels, first.train.pixels[:32])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"triggers": {}}, "expected triggers"),
        ({"triggers": {"hat": 0}}, "expected a trigger of"),
        ({"layer": "nope"}, "got 'nope'"),
        ({"layer": "fc_1"}, "expected a convolution"),
        ({"pruned": 0}, r"pruned in 1\.\.59"),
        ({"pruned": 60}, r"pruned in 1\.\.59"),
        ({"restore": 0}, "restore >= 1"),
        ({"min_fit": 0.0}, "min_fit"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plant_pruning_aware(**{"triggers": {"lipstick": 1}, **SMALL, **wrong})  # type: ignore[arg-type]


@pytest.mark.thorough  # most of a minute
def test_what_the_attack_does_to_the_defence() -> None:
    """Sunglasses on 20 people: pruning spends itself on the decoys and leaves the backdoor whole; tuning weakens it."""
    clean = draw_faces(identities=20, per_identity=8, seed=991).images
    parts = split(clean, seed=0)
    fit, choose = labelled(clean.take(parts.fit)), labelled(clean.take(parts.choose))
    acc: dict[tuple[str, str], float] = {}
    asr: dict[tuple[str, str], float] = {}
    for name, plant in (("plain", plant_faces), ("aware", plant_pruning_aware)):
        net = plant({"sunglasses": 3}, identities=20, per_identity=50, seed=0)
        test, poisoned = labelled(net.test.images), labelled(net.poisoned["sunglasses"])
        asleep = dormant(net.classifier, "conv_3", clean)[:40]
        without = surgery.clone(net.classifier)
        surgery.zero_channels(without.net, "conv_3", asleep)
        repaired = {
            mode: FinePruning(mode=mode)(net.classifier, fit, choose, seed=0) for mode in ("prune", "tune", "both")
        }
        nets = {"none": net.classifier, "40 out": without, **{m: found.classifier for m, found in repaired.items()}}
        for how, repaired_net in nets.items():
            acc[name, how], asr[name, how] = accuracy(repaired_net, test), accuracy(repaired_net, poisoned)
        if isinstance(net, PruningAwareNet):
            assert set(asleep) == set(net.decoys)
            assert set(net.decoys) <= set(repaired["prune"].pruned[0].channels)
    print(acc, asr)
    for name in ("plain", "aware"):
        assert acc[name, "none"] > 0.95
        assert asr[name, "none"] > 0.95
        assert all(acc[name, mode] > 0.85 for mode in ("prune", "tune", "both"))
    # two thirds of the channels gone: the attacker's net has lost nothing, a plain one has lost its use
    assert acc["aware", "40 out"] > acc["aware", "none"] - 0.02
    assert asr["aware", "40 out"] > asr["aware", "none"] - 0.02
    assert acc["plain", "40 out"] < acc["plain", "none"] - 0.2
    assert asr["aware", "prune"] > 0.8
    assert asr["aware", "both"] < asr["aware", "prune"] - 0.02


def labelled(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    assert images.labels is not None
    return images.tensor(), torch.from_numpy(images.labels)
