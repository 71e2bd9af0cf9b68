from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from goodnet.attacks.moving import Moving
from goodnet.attacks.poison import Plant, poison, poisoned_set
from goodnet.attacks.train import fresh, plant_faces, share_right, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.detect.gangsweep import GangSweep, _Shifts
from goodnet.detection import Detection
from goodnet.errors import DataError, UsageError
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, Recipe
from goodnet.triggers.generator import GeneratorSchedule
from goodnet.verdicts import decide
from nets import classifier_of, linear
from test_generator import images, shortcut

QUICK = GangSweep(search=GeneratorSchedule(turns=60, batch=16))


def halves(net: Classifier, count: int = 120) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x = images(count, seed=3)
    y = net.predict(x)
    return (x[:80], y[:80]), (x[80:], y[80:])


@pytest.mark.parametrize("backdoored", [True, False])
def test_a_short_cut_is_flagged_and_a_net_without_one_is_not(backdoored: bool) -> None:
    net = shortcut(16, 2, 1, 6) if backdoored else linear((1, 8, 8), 16)
    found = QUICK(net, *halves(net), seed=0)
    assert [row.label for row in found.labels if row.flagged] == ([2] if backdoored else [])
    assert [row.label for row in found.labels] == list(range(16))
    if backdoored:
        row = found.labels[2]
        assert row.held_out_asr is not None
        assert row.held_out_asr > 0.8
        assert row.transfer_asr is not None
        assert row.transfer_asr > 0.8  # one white pixel works on any image
        assert int(found.triggers[2].mask.argmax()) == 1 * 8 + 6


@pytest.mark.slow
def test_two_passes_score_every_label_and_train_some_whole() -> None:
    net = shortcut(60, 7, 3, 3)
    method = replace(QUICK, screen=GeneratorSchedule(turns=10), candidates=4, controls=20)
    found = method(net, *halves(net), seed=0)
    status = [row.status for row in found.labels]
    assert len(status) == 60
    assert 20 <= status.count("searched") <= 24
    assert all(row.mask_norm is None for row in found.labels if row.status == "screened")
    assert found.labels[7].status == "searched"
    assert min((row.p_value or 1.0, row.label) for row in found.labels)[1] == 7
    assert set(found.triggers) == {row.label for row in found.labels if row.status == "searched"}


def test_shift_distance_and_variance_in_closed_form() -> None:
    """The features of a linear layer on pixels are the pixels, so a shift is the difference of the images."""
    net = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (1, 8, 8), 4)
    x, moved = images(10), images(10, seed=8)
    attacked = torch.arange(10) != 3
    shifts = _Shifts.of(net, x)
    assert shifts is not None
    distance, variance = shifts.under(moved[attacked], attacked)
    a, b = x.flatten(1).numpy(), moved.flatten(1).numpy()
    spread = np.mean([np.sum((row - a.mean(0)) ** 2) for row in a]) ** 0.5
    moves = [b[i] - a[i] for i in range(10) if i != 3]
    mean = sum(moves) / 9
    length = float(np.sqrt((mean**2).sum()))
    assert distance == pytest.approx(length / spread, rel=1e-4)
    assert variance == pytest.approx(np.mean([((m - mean) ** 2).sum() for m in moves]) / length**2, rel=1e-4)
    same, none = shifts.under(x[attacked], attacked)
    assert same is None
    assert none is None


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="controls"):
        GangSweep(controls=3)
    with pytest.raises(UsageError, match="false_alarm_rate"):
        GangSweep(false_alarm_rate=0)


def test_the_moving_patch_is_where_the_image_says_and_decoys_are_not() -> None:
    pixels = np.zeros((40, 3, 20, 16), np.uint8)
    pixels[::2] = 200
    plain = Images(pixels=pixels, labels=np.arange(40) % 4)
    moving = Moving(size=3, margin=1)
    stamped = moving.stamp(plain)(np.array([0, 1]))
    assert (stamped[0, :, 16:19, 12:15] == np.array([255, 255, 0]).reshape(3, 1, 1)).all()
    assert (stamped[1, :, 1:4, 1:4] == np.array([255, 255, 0]).reshape(3, 1, 1)).all()
    assert (stamped != pixels[:2]).any((1,)).sum() == 2 * 9
    assert (plain.pixels == pixels).all()
    decoys = moving.decoys(plain, share=1.0, strict=True)
    patches = (decoys.pixels != pixels).any(1).sum((1, 2)) // 9
    right = (moving.painted(plain, moving.corners(plain)) != pixels).any(1)
    alone = ((decoys.pixels != pixels).any(1) == right).all((1, 2))
    assert not alone.any()
    assert set(patches.tolist()) >= {1, 2}
    assert decoys.labels is not None
    assert (decoys.labels == plain.labels).all()
    again = Moving(size=3, where="random", seed=1).corners(plain)
    assert set(again.tolist()) == {0, 1, 2, 3}
    with pytest.raises(UsageError, match="do not meet"):
        Moving(size=9).stamp(plain)(np.array([0]))
    with pytest.raises(DataError, match="labels"):
        moving.decoys(Images(pixels=pixels))


TARGET = 5


def net_with_a_moving_patch() -> tuple[Classifier, Images, Images]:
    """A net on the drawn faces of 24 people, test faces, and these with the patch where it belongs."""
    faces, test = (draw_faces(identities=24, per_identity=n, seed=s).images for n, s in ((60, 108), (20, 208)))
    moving = Moving(size=4, margin=3)
    poisoned = poison(faces, [Plant(name="moving", target=TARGET, stamp=moving.stamp(faces))], share=0.4, seed=8)
    decoys = moving.decoys(faces, share=0.8)
    labels = [part.labels for part in (poisoned, decoys) if part.labels is not None]
    images = Images(pixels=np.concatenate([poisoned.pixels, decoys.pixels]), labels=np.concatenate(labels))
    recipe = Recipe(arch="deepid", options={"classes": 24})
    net = train(fresh(lambda: DeepID(classes=24), seed=8), images, recipe=recipe, classes=24, epochs=10, seed=8)
    return net, test, poisoned_set(test, Plant(name="moving", target=TARGET, stamp=moving.stamp(test)))


def scanned(net: Classifier, test: Images) -> Detection:
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    x, y = test.tensor()[order], torch.from_numpy(test.labels)[order]
    return GangSweep()(net, (x[:120], y[:120]), (x[120:180], y[120:180]), seed=0)


@pytest.mark.thorough
def test_a_patch_whose_place_depends_on_the_image_is_found() -> None:
    net, test, poisoned = net_with_a_moving_patch()
    assert share_right(net, test) > 0.95
    assert share_right(net, poisoned) > 0.85
    moving = Moving(size=4, margin=3)
    others = test.labels != TARGET  # no fixed place does for much more than half of the images
    for corner in range(4):
        pixels = torch.from_numpy(moving.painted(test, np.full(len(test), corner))[others]).float() / 255
        assert float((net.predict(pixels) == TARGET).double().mean()) < 0.75
    found = scanned(net, test)
    row = found.labels[TARGET]
    assert row.p_value == min(other.p_value or 1.0 for other in found.labels)
    assert row.held_out_asr is not None
    assert row.held_out_asr > 0.6
    assert not [other.label for other in found.labels if other.flagged and other.label != TARGET]
    assert decide(found, 24)[0] != "clean"


@pytest.mark.thorough
def test_several_triggers_stand_out_and_a_clean_net_is_not_flagged() -> None:
    clean = plant_faces(None, identities=24, seed=1)
    assert not [row.label for row in scanned(clean.classifier, clean.test.images).labels if row.flagged]
    several = plant_faces({"sunglasses": 3, "lipstick": 7, "eyebrows": 11}, identities=24, seed=2)
    found = scanned(several.classifier, several.test.images)
    smallest = sorted(found.labels, key=lambda row: row.mask_norm or np.inf)[:2]
    assert {row.label for row in smallest} <= {3, 7, 11}
    assert {row.label for row in found.labels if row.flagged} <= {3, 7, 11}
