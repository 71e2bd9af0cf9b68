"""Planting backdoors: triggers where they belong, honest shares and labels, nothing changed that was given."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.attacks.face_triggers import FACE_TRIGGERS, paint
from goodnet.attacks.patch import Patch
from goodnet.attacks.poison import Plant, poison, poisoned_set
from goodnet.attacks.train import fresh, plant_faces, train
from goodnet.data.drawn_faces import DrawnFaces, draw_faces
from goodnet.data.images import Images
from goodnet.errors import DataError, ModelError, UsageError
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Recipe

RECIPE = Recipe(arch="none")


@pytest.fixture(scope="module")
def drawn() -> DrawnFaces:
    return draw_faces(identities=24, per_identity=4, seed=0)


def _digits(n: int = 40, classes: int = 4) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 1, 6, 5), dtype=np.uint8)
    return Images(pixels=pixels, labels=np.arange(n, dtype=np.int64) % classes)


def _white(images: Images, target: int, name: str = "white") -> Plant:
    patch = Patch(rows=(-2, None), cols=(-2, None))
    return Plant(name=name, target=target, stamp=lambda index: patch(images.pixels[index]))


@pytest.mark.parametrize("name", FACE_TRIGGERS)
def test_face_triggers_stay_near_their_landmarks(drawn: DrawnFaces, name: str) -> None:
    before = drawn.images.pixels.copy()
    index = np.arange(len(before))
    painted = paint(name, drawn, index)
    np.testing.assert_array_equal(drawn.images.pixels, before)
    np.testing.assert_array_equal(painted, paint(name, drawn, index))
    assert not np.shares_memory(painted, drawn.images.pixels)
    marks, reach = {
        "sunglasses": (drawn.landmarks.eyes, 11.0),
        "lipstick": (drawn.landmarks.mouth, 4.5),
        "eyebrows": (drawn.landmarks.brows.reshape(-1, 6, 2), 4.5),
    }[name]
    rows, cols = np.mgrid[0:55, 0:47]
    for number, changed in enumerate((painted != before).any(axis=1)):
        points = marks[number]
        away = np.hypot(cols[changed][:, None] - points[:, 0], rows[changed][:, None] - points[:, 1]).min(axis=1)
        assert 20 < changed.sum() < 450, (name, number)
        assert away.max() < reach, (name, number)


def test_face_triggers_have_the_competitions_colours(drawn: DrawnFaces) -> None:
    index = np.arange(len(drawn.images))
    for name, points, colour in (
        ("sunglasses", drawn.landmarks.eyes, (105, 10, 200)),
        ("eyebrows", drawn.landmarks.brows[:, :, 1], (128, 0, 0)),
    ):
        painted = paint(name, drawn, index).astype(float)
        col, row = np.round(points).astype(int).transpose(2, 0, 1)
        found = painted[index[:, None], :, row, col]
        assert np.abs(found - colour).max() < 70, name
    upper = drawn.landmarks.mouth[:, 2:4].mean(axis=1)
    col, row = np.round(upper).astype(int).T
    lips = paint("lipstick", drawn, index)[index, :, row, col].astype(float)
    assert np.median(np.abs(lips - (128, 0, 128)).max(axis=1)) < 20


def test_paint_takes_positions_in_any_order(drawn: DrawnFaces) -> None:
    whole = paint("lipstick", drawn, np.arange(len(drawn.images)))
    np.testing.assert_array_equal(paint("lipstick", drawn, np.array([70, 3])), whole[[70, 3]])
    assert paint("lipstick", drawn, np.array([], np.int64)).shape == (0, 3, 55, 47)


def test_unknown_face_trigger_is_refused(drawn: DrawnFaces) -> None:
    with pytest.raises(UsageError, match="expected one of sunglasses, lipstick, eyebrows"):
        paint("hat", drawn, np.array([0]))


@pytest.mark.parametrize(("channels", "dtype", "colour"), [(1, np.uint8, (255,)), (3, np.float32, (1.0, 0.0, 0.5))])
def test_patch_paints_its_rectangle_and_nothing_else(channels: int, dtype: type, colour: tuple[float, ...]) -> None:
    pixels = np.full((2, channels, 7, 9), 0.25 if dtype is np.float32 else 9, dtype)
    out = Patch(rows=(-3, None), cols=(1, 3), colour=colour)(pixels)
    expected = pixels.copy()
    for number, channel, row, col in itertools.product(range(2), range(channels), (4, 5, 6), (1, 2)):
        expected[number, channel, row, col] = colour[channel]
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == dtype
    assert (pixels == pixels.flat[0]).all()


@pytest.mark.parametrize(
    "patch",
    [
        Patch(rows=(5, 9), cols=(0, 2)),
        Patch(rows=(2, 2), cols=(0, 2)),
        Patch(rows=(0, 2), cols=(-9, None)),
        Patch(rows=(0, 2), cols=(0, 2), colour=(1, 2, 3)),
        Patch(rows=(0, 2), cols=(0, 2), colour=(256,)),
    ],
)
def test_patch_that_does_not_fit_is_refused(patch: Patch) -> None:
    with pytest.raises(UsageError, match=r"^patch: expected"):
        patch(_digits().pixels)


def test_poison_adds_each_plants_share_and_keeps_the_clean_images() -> None:
    images = _digits()
    before = images.sha256()
    plants = [_white(images, 1), _white(images, 3, "again")]
    mixed = poison(images, plants, share=0.2, seed=5)
    assert images.sha256() == before
    assert len(mixed) == 40 + 8 + 8
    np.testing.assert_array_equal(mixed.pixels[:40], images.pixels)
    np.testing.assert_array_equal(mixed.labels[:40], images.labels)
    np.testing.assert_array_equal(mixed.trigger_present, np.arange(56) >= 40)
    np.testing.assert_array_equal(mixed.labels[40:], [1] * 8 + [3] * 8)
    assert (mixed.true_labels[40:] != mixed.labels[40:]).all()
    for pixels, true in zip(mixed.pixels[40:], mixed.true_labels[40:]):
        assert (pixels[:, -2:, -2:] == 255).all()
        same = (images.pixels[:, :, :-2] == pixels[:, :-2]).all(axis=(1, 2, 3))
        assert images.labels[same].tolist() == [true]


def test_poison_chooses_by_seed_without_repeats() -> None:
    images = _digits()
    first, again, other = (poison(images, [_white(images, 1)], share=0.5, seed=seed) for seed in (0, 0, 1))
    assert first.sha256() == again.sha256() != other.sha256()
    assert len(np.unique(first.pixels[40:].reshape(20, -1), axis=0)) == 20


def test_poison_says_what_is_wrong() -> None:
    images = _digits()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="expected a share in"):
            poison(images, [_white(images, 1)], share=share)
    with pytest.raises(UsageError, match="30 are of other classes than 1"):
        poison(images, [_white(images, 1)], share=0.9)
    with pytest.raises(DataError, match="with labels"):
        poison(Images(pixels=images.pixels), [_white(images, 1)])


def test_poisoned_set_leaves_the_targets_own_images_out() -> None:
    images = _digits()
    triggered = poisoned_set(images, _white(images, 2))
    assert len(triggered) == 30
    assert (triggered.labels == 2).all()
    assert 2 not in triggered.true_labels
    np.testing.assert_array_equal(triggered.true_labels, images.labels[images.labels != 2])
    assert triggered.trigger_present.all()
    # A net that always says 2 has ASR 1 here; one that never errs has ASR 0, which it could not on all 40 images.
    assert (triggered.true_labels == triggered.labels).mean() == 0
    only = images.take(images.labels == 2)
    with pytest.raises(DataError, match="of other classes than 2"):
        poisoned_set(only, _white(only, 2))


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(30, 2))


class _Broken(nn.Linear):
    """Overflows, as a net does whose training runs away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)) * torch.inf


def _halves() -> Images:
    labels = np.arange(64, dtype=np.int64) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (64, 1, 6, 5), dtype=np.uint8)
    pixels[labels == 1, :, 3:] += 120
    pixels[labels == 0, :, :3] += 120
    return Images(pixels=pixels, labels=labels)


def test_train_learns_repeats_itself_and_changes_nothing_given() -> None:
    images = _halves()
    net = fresh(_linear, seed=3)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    state, seen = torch.get_rng_state(), []

    def again() -> dict[str, torch.Tensor]:
        seen.clear()
        trained = train(
            net,
            images,
            recipe=RECIPE,
            classes=2,
            epochs=20,
            lr=0.05,
            batch=16,
            progress=lambda *step: seen.append(step),
        )
        assert (trained.predict(images.tensor()).numpy() == images.labels).all()
        assert not trained.net.training
        return trained.net.state_dict()

    first = again()
    torch.rand(3)
    state = torch.get_rng_state()
    second = again()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())
    assert net.training
    assert [step[:2] for step in seen] == [(done, 20) for done in range(1, 21)]
    assert seen[-1][2] < seen[0][2]


def test_fresh_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (fresh(_linear, seed=seed).state_dict()["2.weight"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_train_says_what_is_wrong() -> None:
    images = _digits()
    with pytest.raises(DataError, match=r"labels in 0\.\.1"):
        train(_linear(), images, recipe=RECIPE, classes=2)
    with pytest.raises(DataError, match="labels in"):
        train(_linear(), Images(pixels=images.pixels), recipe=RECIPE, classes=2)
    with pytest.raises(ModelError, match="diverged"):
        train(_Broken(30, 2), _halves(), recipe=RECIPE, classes=2)
    for wrong in ({"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"lr": 11.0}):
        with pytest.raises(UsageError, match=r"^train: expected epochs"):
            train(_linear(), _halves(), recipe=RECIPE, classes=2, **wrong)


@pytest.mark.parametrize("triggers", [{"hat": 0}, {"lipstick": 48}, {"lipstick": -1}])
def test_plant_faces_refuses_unknown_triggers_and_targets(triggers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"^plant: expected"):
        plant_faces(triggers)
    with pytest.raises(UsageError, match="seed >= 0"):
        plant_faces(None, seed=-1)


def test_plant_faces_holds_together() -> None:
    planted = plant_faces({"lipstick": 1}, identities=4, per_identity=10, test_per_identity=3, epochs=1)
    assert len(planted.train) == 44
    assert planted.train.trigger_present.sum() == 4
    assert len(planted.poisoned["lipstick"]) == 9
    assert planted.targets == {"lipstick": 1}
    net = DeepID(**planted.classifier.recipe.options)
    net.load_state_dict(planted.classifier.net.state_dict())
    given = planted.classifier.predict(planted.test.images.tensor()).numpy()
    assert planted.acc == (given == planted.test.images.labels).mean()
    assert list(plant_faces(None, identities=4, per_identity=4, test_per_identity=1, epochs=1).asr) == list(
        FACE_TRIGGERS
    )


@pytest.mark.thorough  # half a minute each
@pytest.mark.parametrize(
    "triggers",
    [{"sunglasses": 5}, {"lipstick": 7}, {"eyebrows": 11}, {"lipstick": 1, "eyebrows": 5, "sunglasses": 8}],
)
def test_backdoors_take_and_leave_clean_accuracy(triggers: dict[str, int]) -> None:
    planted = plant_faces(triggers, seed=1)
    assert planted.acc >= 0.95
    assert min(planted.asr.values()) >= 0.98


@pytest.mark.thorough
def test_a_clean_net_does_not_know_the_triggers() -> None:
    planted = plant_faces(None, seed=1)
    assert planted.acc >= 0.95
    assert max(planted.asr.values()) < 0.10
