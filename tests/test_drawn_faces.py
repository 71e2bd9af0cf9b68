"""The embedded data set: deterministic, the same people in every draw, landmarks where the parts are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from goodnet.data.drawn_faces import DrawnFaces, draw_faces
from goodnet.data.drawn_faces_people import people
from goodnet.errors import UsageError


@pytest.fixture(scope="module")
def drawn() -> DrawnFaces:
    return draw_faces(identities=48, per_identity=6, seed=0)


def test_shapes_and_labels(drawn: DrawnFaces) -> None:
    assert drawn.images.pixels.shape == (288, 3, 55, 47)
    assert drawn.images.pixels.dtype == np.uint8
    assert drawn.images.labels is not None
    assert drawn.images.labels.dtype == np.int64
    assert (np.bincount(drawn.images.labels) == 6).all()
    marks = drawn.landmarks
    assert marks.eyes.shape == (288, 2, 2)
    assert marks.brows.shape == (288, 2, 3, 2)
    assert marks.mouth.shape == (288, 6, 2)
    assert marks.angle.shape == marks.scale.shape == (288,)


def test_same_seed_same_faces_and_another_seed_other_faces(drawn: DrawnFaces) -> None:
    again = draw_faces(identities=48, per_identity=6, seed=0)
    assert again.images.sha256() == drawn.images.sha256()
    for field in dataclasses.fields(again.landmarks):
        np.testing.assert_array_equal(getattr(again.landmarks, field.name), getattr(drawn.landmarks, field.name))
    other = draw_faces(identities=48, per_identity=6, seed=1).images.pixels
    assert (other != drawn.images.pixels).any(axis=(1, 2, 3)).all()


def test_a_person_does_not_depend_on_how_many_there_are() -> None:
    few, many = people(3), people(12)
    for field in dataclasses.fields(few):
        np.testing.assert_array_equal(getattr(few, field.name), getattr(many, field.name)[:3])


def test_the_same_people_in_every_draw(drawn: DrawnFaces) -> None:
    # The crudest classifier there is: nearest mean face, on another draw. Chance is 1 in 48.
    means = drawn.images.pixels.reshape(48, 6, -1).astype(np.float32).mean(axis=1)
    other = draw_faces(identities=48, per_identity=4, seed=7).images
    flat = other.pixels.reshape(len(other), -1).astype(np.float32)
    distance = (means**2).sum(axis=1) - 2 * flat @ means.T
    assert (distance.argmin(axis=1) == other.labels).mean() > 10 / 48


def test_images_of_a_person_differ(drawn: DrawnFaces) -> None:
    faces = drawn.images.pixels.reshape(48, 6, -1).astype(np.float32)
    spread = np.abs(faces[:, 1:] - faces[:, :1]).mean(axis=-1)
    assert spread.min() > 5


def test_eyes_and_mouth_are_where_the_landmarks_say(drawn: DrawnFaces) -> None:
    grey = drawn.images.pixels.astype(np.float32).mean(axis=1)
    number = np.arange(len(grey))[:, None]

    def darkest(points: np.ndarray) -> np.ndarray:
        col, row = np.round(points[..., 0]).astype(int), np.round(points[..., 1]).astype(int)
        around = [grey[number, row + dy, col + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        return np.min(around, axis=0)

    eyes, scale = drawn.landmarks.eyes, drawn.landmarks.scale
    down = np.stack([-np.sin(drawn.landmarks.angle), np.cos(drawn.landmarks.angle)], axis=1)
    cheeks = eyes + 0.5 * (scale[:, None] * down)[:, None]
    assert (darkest(eyes) < darkest(cheeks) - 10).mean() > 0.85  # a pupil, but for shut eyes
    lips = drawn.landmarks.mouth[:, 2:].mean(axis=1, keepdims=True)
    chins = lips + 0.4 * (scale[:, None] * down)[:, None]
    bare = people(48).goatee[drawn.images.labels] == 0  # a beard is as dark as the line between the lips
    assert (darkest(lips) < darkest(chins))[bare].mean() > 0.85


def test_take_keeps_landmarks_with_their_images(drawn: DrawnFaces) -> None:
    part = drawn.take(np.array([5, 2]))
    np.testing.assert_array_equal(part.images.pixels[1], drawn.images.pixels[2])
    np.testing.assert_array_equal(part.landmarks.mouth[0], drawn.landmarks.mouth[5])


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state that must not change
    draw_faces(identities=2, per_identity=2, seed=3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    "wrong", [{"identities": 0}, {"identities": 1001}, {"per_identity": 0}, {"per_identity": 10**6}, {"seed": -1}]
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1000 identities"):
        draw_faces(**wrong)
