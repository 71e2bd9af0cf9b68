"""Every attack by its name: honest shares and labels, covers, test sets, and nets that learn it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from torch import nn

from goodnet.attacks.planting import ATTACKS, CLEAN_LABEL, Planting, planting
from goodnet.attacks.train import fresh, share_right, train
from goodnet.data.images import Images
from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Recipe

CLASSES, TARGET = 5, 2
DIRTY = [name for name in ATTACKS if name not in (*CLEAN_LABEL, "all-to-all")]


def toy(n: int = 100, *, channels: int = 3, dtype: type = np.uint8, seed: int = 0, bar: int = 45) -> Images:
    """Five classes: where on a dark, noisy 16 x 16 ground a bar lies, brighter by `bar`."""
    random = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % CLASSES
    pixels = random.integers(20, 120, (n, channels, 16, 16), dtype=np.uint8)
    for image, label in zip(pixels, labels):
        image[:, 3:13, 3 + 2 * label : 5 + 2 * label] += bar
    return Images(pixels=pixels if dtype is np.uint8 else (pixels / 255).astype(np.float32), labels=labels)


def plan(name: str, images: Images, **settings: object) -> Planting:
    return planting(name, shape=images.shape, classes=CLASSES, target=TARGET, **settings)  # type: ignore[arg-type]


def share_of(name: str) -> float:
    return 0.25 if name in CLEAN_LABEL else 0.05


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_same_seed_gives_the_same_and_nothing_given_is_changed(name: str, channels: int, dtype: type) -> None:
    images = toy(channels=channels, dtype=dtype)
    before = images.sha256()
    one, again = (plan(name, images, share=share_of(name), seed=3) for _ in range(2))
    other = plan(name, images, share=share_of(name), seed=4)
    assert one.train(images).sha256() == again.train(images).sha256() != other.train(images).sha256()
    tests, repeated = one.test(images), again.test(images)
    assert [test.sha256() for test in tests.values()] == [test.sha256() for test in repeated.values()]
    assert images.sha256() == before
    assert images.true_labels is None
    trained_on = one.train(images)
    assert trained_on.pixels.dtype == dtype
    assert not np.shares_memory(trained_on.pixels, images.pixels)
    assert all(test.pixels.dtype == dtype for test in tests.values())


@pytest.mark.parametrize("name", DIRTY)
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_dirty_attacks_add_their_share_exactly(name: str, share: float) -> None:
    images = toy(200)
    count = round(200 * share)
    chosen = plan(name, images, share=share)
    poisoned = chosen.train(images)
    np.testing.assert_array_equal(poisoned.pixels[:200], images.pixels)
    np.testing.assert_array_equal(poisoned.labels[:200], images.labels)
    np.testing.assert_array_equal(poisoned.true_labels[:200], images.labels)
    assert not poisoned.trigger_present[:200].any()
    attacked = poisoned.labels != poisoned.true_labels
    per_trigger = [(poisoned.labels[attacked] == target).sum() for target in chosen.targets]
    triggers = 3 if name.startswith("several-") else 1
    assert sum(per_trigger) == attacked.sum() == triggers * count
    assert set(per_trigger) == {3 * count if name == "several-triggers" else count}
    covers = {"wanet": 2 * count, "source-specific": count}.get(name, 0)
    assert len(poisoned) == 200 + triggers * count + covers


def test_all_to_all_turns_every_class_into_the_next() -> None:
    images = toy(200)
    chosen = plan("all-to-all", images, share=0.2)
    poisoned = chosen.train(images)
    assert chosen.targets == tuple(range(CLASSES))
    assert len(poisoned) == 240
    np.testing.assert_array_equal(poisoned.labels[200:], (poisoned.true_labels[200:] + 1) % CLASSES)
    assert set(poisoned.labels[200:]) == set(range(CLASSES))
    test = chosen.test(images)["patch"]
    assert len(test) == 200
    np.testing.assert_array_equal(test.labels, (images.labels + 1) % CLASSES)
    np.testing.assert_array_equal(test.true_labels, images.labels)


@pytest.mark.parametrize("name", CLEAN_LABEL)
@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_clean_label_attacks_change_no_label_and_only_the_targets_images(name: str, share: float) -> None:
    images = toy(200)  # 40 of each class
    poisoned = plan(name, images, share=share).train(images)
    np.testing.assert_array_equal(poisoned.labels, images.labels)
    np.testing.assert_array_equal(poisoned.true_labels, images.labels)
    changed = (poisoned.pixels != images.pixels).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, poisoned.trigger_present)
    assert changed.sum() == max(1, round(40 * share))
    assert set(images.labels[changed]) == {TARGET}


def test_sig_can_change_labels_too() -> None:
    images = toy(200)
    dirty = plan("sig", images, share=0.1, clean_label=False)
    poisoned = dirty.train(images)
    assert not dirty.clean_label
    assert len(poisoned) == 220
    assert (poisoned.labels[200:] == TARGET).all()
    assert TARGET not in poisoned.true_labels[200:]
    assert plan("sig", images, clean_label=False).share == 0.1
    assert plan("sig", images).share == 0.8


def test_source_specific_attacks_its_sources_and_its_covers_keep_their_labels() -> None:
    images = toy(200)
    chosen = plan("source-specific", images, share=0.1, sources=(0, 4))
    poisoned = chosen.train(images)
    attacked, covers = poisoned.take(slice(200, 220)), poisoned.take(slice(220, None))
    assert len(covers) == 20
    assert set(attacked.true_labels) == {0, 4}
    assert (attacked.labels == TARGET).all()
    np.testing.assert_array_equal(covers.labels, covers.true_labels)
    assert set(covers.labels) == {1, 3}
    assert poisoned.trigger_present[200:].all()
    for some in (attacked, covers):
        assert (some.pixels[:, :, 13:15, 13:15] == 255).all()
    test = chosen.test(images)["patch"]
    assert len(test) == 80
    assert set(test.true_labels) == {0, 4}
    assert plan("source-specific", images).sources == (3, 4)


def test_wanet_covers_keep_their_labels_and_do_not_count_as_triggered() -> None:
    images = toy(200)
    poisoned = plan("wanet", images, share=0.1).train(images)
    covers = poisoned.take(slice(220, None))
    assert len(covers) == 40
    assert not covers.trigger_present.any()
    np.testing.assert_array_equal(covers.labels, covers.true_labels)
    assert poisoned.trigger_present.sum() == 20
    assert all((images.pixels != cover).any(axis=(1, 2, 3)).all() for cover in covers.pixels)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "all-to-all"])
def test_what_asr_is_measured_on_has_no_image_of_its_target(name: str) -> None:
    images = toy(100)
    chosen = plan(name, images)
    tests = chosen.test(images)
    assert len(tests) == (3 if name.startswith("several-") else 1)
    assert tuple(dict.fromkeys(int(test.labels[0]) for test in tests.values())) == chosen.targets
    for test in tests.values():
        target = test.labels[0]
        assert (test.labels == target).all()
        assert target not in test.true_labels
        assert test.trigger_present.all()
        assert len(test) == (40 if name == "source-specific" else 80)
        kept = images.take(np.isin(images.labels, list(set(test.true_labels))))
        np.testing.assert_array_equal(test.true_labels, kept.labels)
        assert (test.pixels != kept.pixels).any(axis=(1, 2, 3)).all()


def test_several_targets_follow_the_first_and_start_over() -> None:
    images = toy()
    chosen = planting("several-targets", shape=images.shape, classes=CLASSES, target=3)
    assert chosen.targets == (3, 4, 0)
    assert planting("several-triggers", shape=images.shape, classes=CLASSES, target=3).targets == (3,)
    places = [test.pixels != images.take(images.labels != target).pixels for (_, test), target in
              zip(chosen.test(images).items(), chosen.targets)]  # fmt: skip
    where = [changed.any(axis=(0, 1)) for changed in places]
    assert [int(area.sum()) for area in where] == [4, 4, 4]
    assert not (where[0] & where[1]).any()
    assert not (where[1] & where[2]).any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "hat"}, "expected one of patch"),
        ({"target": 5}, r"a target in 0\.\.4"),
        ({"target": -1}, r"a target in 0\.\.4"),
        ({"classes": 1}, "at least 2 classes"),
        ({"classes": 2, "target": 0, "name": "several-targets"}, "at least 3 classes"),
        ({"classes": 2, "target": 0, "name": "source-specific"}, "at least 3 classes"),
        ({"shape": (3, 7, 16)}, "at least 8x8"),
        ({"shape": (2, 16, 16)}, "1 or 3 channels"),
        ({"share": 0.0}, r"a share in \(0, 1\]"),
        ({"share": float("nan")}, r"a share in \(0, 1\]"),
        ({"seed": -1}, "seed >= 0"),
        ({"strength": 0.5}, "a strength for blended"),
        ({"strength": 2.0, "name": "blended"}, "opacity"),
        ({"sources": (0,)}, "sources for source-specific alone"),
        ({"sources": (), "name": "source-specific"}, "from 1 to 3 sources"),
        ({"sources": (2,), "name": "source-specific"}, "without the target"),
        ({"sources": (0, 0), "name": "source-specific"}, "none of them twice"),
        ({"sources": (0, 1, 3, 4), "name": "source-specific"}, "from 1 to 3 sources"),
        ({"clean_label": True}, "clean labels for sig alone"),
        ({"clean_label": False, "name": "clean-label"}, "clean labels for sig alone"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, object], expected: str) -> None:
    right = {"name": "patch", "shape": (3, 16, 16), "classes": CLASSES, "target": TARGET}
    given = {**right, **settings}
    with pytest.raises(UsageError, match=expected) as caught:
        planting(given.pop("name"), **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused() -> None:
    images = toy()
    chosen = plan("patch", images)
    for wrong, expected in [
        (Images(pixels=images.pixels), "with labels"),
        (toy(channels=1), "of shape"),
        (Images(pixels=images.pixels, labels=images.labels + 1), r"labels in 0\.\.4"),
        (images.take(slice(0, 0)), r"labels in 0\.\.4"),
    ]:
        for do in (chosen.train, chosen.test):
            with pytest.raises(DataError, match=expected):
                do(wrong)
    without = images.take(images.labels != TARGET)
    with pytest.raises(DataError, match="of the target 2 to poison"):
        plan("clean-label", images).train(without)
    with pytest.raises(DataError, match="of other classes than 2"):
        chosen.test(images.take(images.labels == TARGET))
    with pytest.raises(DataError, match="of the classes"):
        plan("source-specific", images).test(without.take(without.labels < 2))
    for name, share in [("patch", 0.9), ("source-specific", 0.5), ("wanet", 0.6)]:
        with pytest.raises(UsageError, match="lower the share"):
            plan(name, images, share=share).train(images)


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1),
                         nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, CLASSES))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an attack needs to take on a net of a few seconds, and the ASR that it has then."""

    images: int = 1500
    bar: int = 45
    epochs: int = 8
    asr: float = 0.9
    settings: dict[str, float] = field(default_factory=dict)


# clean-label attacks take where the class itself is hard to see; a bending needs many images
TASKS = {
    "wanet": Task(images=8000, epochs=12, asr=0.7, settings={"strength": 4.0}),
    "sig": Task(images=2000, bar=12, asr=0.8, settings={"strength": 0.2}),
    "clean-label": Task(images=2000, bar=15, asr=0.75),
    "all-to-all": Task(images=2000, epochs=12, settings={"share": 0.3}),
    "moving": Task(asr=0.85),
    "source-specific": Task(asr=0.85),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_net_learns_it(name: str) -> None:
    task = TASKS.get(name, Task())
    clean, test = toy(task.images, bar=task.bar), toy(400, seed=1, bar=task.bar)
    chosen = plan(name, clean, **task.settings)
    acc, asr = _taught(chosen.train(clean), test, chosen, task.epochs)
    assert acc >= 0.85
    assert min(asr.values()) >= task.asr, asr
    _, without = _taught(clean, test, chosen, task.epochs)
    assert max(without.values()) < 0.4, without


def _taught(images: Images, test: Images, chosen: Planting, epochs: int) -> tuple[float, dict[str, float]]:
    """ACC and, by trigger, ASR of a net trained on the images."""
    net = train(fresh(_net, seed=0), images, recipe=Recipe(arch="none"), classes=CLASSES, epochs=epochs)
    asr = {trigger: round(share_right(net, some), 3) for trigger, some in chosen.test(test).items()}
    return share_right(net, test), asr
