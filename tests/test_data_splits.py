"""Splits: whole, disjoint, by class, and no twin of a fitted image ever judges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goodnet.data.images import Images
from goodnet.data.splits import Splits, split
from goodnet.errors import DataError, UsageError


def _images(n: int, labels: list[int] | None = None, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)
    return Images(pixels=pixels, labels=None if labels is None else np.array(labels, dtype=np.int64))


def _parts(splits: Splits) -> list[np.ndarray]:
    return [splits.fit, splits.choose, splits.judge]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=3, max_size=60),
    groups=st.integers(3, 30),
    seed=st.integers(0, 2**32),
    shares=st.sampled_from([(0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (0.1, 0.1, 0.8), (0.98, 0.01, 0.01)]),
)
def test_any_split_is_whole_disjoint_and_keeps_groups_and_twins_together(
    labels: list[int], groups: int, seed: int, shares: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    images = _images(len(labels), labels)
    twin_of = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, len(labels), len(labels)), np.arange(len(labels)))
    images = Images(pixels=images.pixels[twin_of], labels=images.labels)
    group = rng.integers(0, groups, len(labels))
    units = _chains(group, twin_of)
    if len(np.unique(units)) < 3:
        with pytest.raises(DataError, match="at least 3 images"):
            split(images, seed=seed, shares=shares, groups=group)
        return
    parts = _parts(split(images, seed=seed, shares=shares, groups=group))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(len(part) for part in parts)
    assert sum(len(np.unique(units[part])) for part in parts) == len(np.unique(units))


def _chains(*columns: np.ndarray) -> np.ndarray:
    """Oracle: spread the smallest number along equal values until nothing changes."""
    number = np.arange(len(columns[0]))
    while True:
        before = number.copy()
        for column in columns:
            for value in np.unique(column):
                number[column == value] = number[column == value].min()
        if (number == before).all():
            return number


def test_classes_spread_over_all_parts_by_the_shares() -> None:
    labels = [label for label in range(20) for _ in range(8)]
    images = _images(len(labels), labels)
    for part, expected in zip(_parts(split(images, seed=3)), (4, 2, 2)):
        assert np.bincount(images.labels[part], minlength=20).tolist() == [expected] * 20


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7])
def test_a_class_of_few_images_reaches_as_many_parts_as_it_can(count: int) -> None:
    labels = [label for label in range(12) for _ in range(count)]
    images = _images(len(labels), labels)
    parts = _parts(split(images, seed=1))
    for label in range(12):
        assert sum(label in images.labels[part] for part in parts) == min(count, 3)


def test_one_image_a_class_is_still_split_by_the_shares() -> None:
    sizes = [len(part) for part in _parts(split(_images(1283, list(range(1283))), seed=0))]
    assert sum(sizes) == 1283
    assert np.abs(np.array(sizes) - 1283 * np.array([0.5, 0.25, 0.25])).max() <= 1


def test_without_labels_the_shares_hold() -> None:
    assert [len(part) for part in _parts(split(_images(100), seed=0, shares=(0.6, 0.3, 0.1)))] == [60, 30, 10]


def test_groups_of_very_different_sizes_come_close_to_the_shares() -> None:
    group = np.repeat(np.arange(60), np.random.default_rng(5).integers(1, 40, 60))
    sizes = np.array([len(part) for part in _parts(split(_images(len(group)), seed=0, groups=group))])
    assert np.abs(sizes / len(group) - [0.5, 0.25, 0.25]).max() < 0.03


@pytest.mark.parametrize(("largest", "expected"), [(25, [50, 25, 25]), (50, [50, 25, 25]), (60, [60, 20, 20])])
def test_one_large_group_does_not_upset_the_shares(largest: int, expected: list[int]) -> None:
    group = np.maximum(np.arange(100), largest - 1)
    parts = _parts(split(_images(100), seed=0, groups=group[::-1].copy()))
    assert [len(part) for part in parts] == expected


def test_a_class_that_cannot_be_divided_well_does_not_skew_the_others() -> None:
    group = np.concatenate([np.zeros(60, dtype=int), np.arange(1, 49)])
    images = _images(108, [0] * 100 + [1] * 8)
    parts = _parts(split(images, seed=0, groups=group))
    assert [np.bincount(images.labels[part], minlength=2).tolist() for part in parts] == [[60, 4], [20, 2], [20, 2]]


def test_a_chain_of_groups_and_twins_stays_together() -> None:
    images = _images(9)
    images.pixels[1] = images.pixels[0]
    group = np.array([0, 1, 1, 2, 3, 4, 5, 6, 7])
    for seed in range(20):
        where = {i: p for p, part in enumerate(_parts(split(images, seed=seed, groups=group))) for i in part}
        assert where[0] == where[1] == where[2]


def test_the_seed_decides_and_nothing_else() -> None:
    images = _images(60, [i % 5 for i in range(60)])
    np.random.seed(1)  # noqa: NPY002
    first = split(images, seed=7)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    again = split(images, seed=7)
    assert [part.tolist() for part in _parts(first)] == [part.tolist() for part in _parts(again)]
    np.random.seed(1)  # noqa: NPY002
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert split(images, seed=8).judge.tolist() != first.judge.tolist()
    assert len(split(images, seed=-1).fit) == 30


def test_every_image_can_come_to_every_part() -> None:
    images = _images(12, [0] * 12)
    judged = {int(i) for seed in range(60) for i in split(images, seed=seed).judge}
    fitted = {int(i) for seed in range(60) for i in split(images, seed=seed).fit}
    assert judged == fitted == set(range(12))


def test_too_few_images_name_the_minimum() -> None:
    with pytest.raises(DataError, match="at least 3 images to split, got 2"):
        split(_images(2), seed=0)
    twins = Images(pixels=np.zeros((50, 1, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="at least 3 images to split, got 1"):
        split(twins, seed=0)
    with pytest.raises(DataError, match="one group an image"):
        split(_images(5), seed=0, groups=np.arange(4))


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.5, 0.25, 0.5), (1.5, -0.25, -0.25), (0.5, float("nan"), 0.5)])
def test_shares_must_be_positive_and_add_up(shares: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split(_images(9), seed=0, shares=shares)


def test_tracks_of_real_signs_never_straddle(shared_data) -> None:
    from goodnet.data.readers import read_images

    path = shared_data / "gtsrb" / "train_third.h5"
    images = read_images(path, classes=43)
    tracks = images.groups
    assert tracks is not None
    parts = _parts(split(images, seed=0))
    seen = [set(tracks[part].tolist()) for part in parts]
    assert sum(len(part) for part in seen) == len(set(tracks.tolist()))
    assert np.abs(np.array([len(part) for part in parts]) / len(images) - [0.5, 0.25, 0.25]).max() < 0.01
    assert all(set(images.labels[part].tolist()) == set(range(43)) for part in parts)
