"""Faces that goodnet draws itself: the embedded data set of the demo, the tests and the benchmarks.

No photograph and no third party's data: each person is a parametric face (head, skin, hair, brows, eyes, nose,
mouth, ears, beard, spectacles), each image a photograph of it with its own pose, light, expression, clothes,
background, blur and noise. The framing (55x47 RGB, eyes near row 22) is that of YouTube Aligned Faces, which the
CSAW-HackML-2020 competition uses, so its nets' architecture fits and its triggers sit where they sit there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from goodnet.data.drawn_faces_parts import HEIGHT, WIDTH, brow_curve, mouth_shape, render, to_picture
from goodnet.data.drawn_faces_people import Columns, Float, People, Scenes, people, scenes
from goodnet.data.images import Images
from goodnet.errors import UsageError

MAX_IDENTITIES = 1000
MAX_IMAGES = 200_000
_CHUNK = 16  # faces drawn at once: their planes stay in the cache


@dataclass(frozen=True, kw_only=True)
class Landmarks(Columns):
    """Where a face's parts are, for n images; points are (column, row) in pixels, "left" is the picture's left.

    Attributes:
        eyes: (n, 2, 2), the left and the right eye's centre.
        brows: (n, 2, 3, 2), the left and the right brow's inner end, middle and outer end.
        mouth: (n, 6, 2), left corner, right corner, then on the middle line from top to bottom: upper lip's top and
            bottom, lower lip's top and bottom.
        angle: (n,), how far the head is turned in the picture's plane, radians, clockwise positive.
        scale: (n,), half the width of the head of average width, pixels.
    """

    eyes: Float
    brows: Float
    mouth: Float
    angle: Float
    scale: Float


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnFaces:
    """Drawn faces, each person's images next to each other, and the landmarks of every image."""

    images: Images
    landmarks: Landmarks

    def take(self, index: npt.NDArray[np.integer] | slice) -> DrawnFaces:
        """The faces at `index`."""
        return DrawnFaces(images=self.images.take(index), landmarks=self.landmarks.rows(index))


def draw_faces(*, identities: int = 48, per_identity: int = 20, seed: int = 0) -> DrawnFaces:
    """Draws `per_identity` images of each of the first `identities` people.

    Args:
        identities: number of people, the classes 0..identities-1; person i looks the same in every draw.
        per_identity: images of each.
        seed: of everything but the people: pose, light, expression, clothes, background, blur, noise.

    Returns:
        uint8 images (identities * per_identity, 3, 55, 47) with labels, and their landmarks.

    Raises:
        UsageError: fewer than one or more than 1000 identities, fewer than one image of each, more than 200000
            images, or a negative seed.
    """
    count = identities * per_identity
    if not (1 <= identities <= MAX_IDENTITIES and per_identity >= 1 and count <= MAX_IMAGES and seed >= 0):
        raise UsageError(
            f"drawn faces: expected 1 to {MAX_IDENTITIES} identities, at least 1 image of each, at most {MAX_IMAGES} "
            f"images and a seed >= 0, got {identities} x {per_identity} with seed {seed}; change these numbers"
        )
    rng = np.random.default_rng([seed, count])
    labels = np.repeat(np.arange(identities, dtype=np.int64), per_identity)
    who, how = people(identities), scenes(count, rng)
    pixels = np.empty((count, 3, HEIGHT, WIDTH), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        scene = how.rows(part).spread(2)
        pixels[part] = _photograph(render(who.rows(labels[part]).spread(2), scene), scene, rng)
    images = Images(pixels=pixels, labels=labels, name=f"drawn faces (seed {seed})")
    return DrawnFaces(images=images, landmarks=_landmarks(who.rows(labels), how))


def _photograph(rgb: Float, how: Scenes, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """What the camera adds: exposure, contrast, tint, blur and noise."""
    soft = rgb.copy()
    soft[:, :, 1:-1] = 0.25 * (rgb[:, :, :-2] + rgb[:, :, 2:]) + 0.5 * rgb[:, :, 1:-1]
    wide = soft.copy()
    wide[..., 1:-1] = 0.25 * (soft[..., :-2] + soft[..., 2:]) + 0.5 * soft[..., 1:-1]
    rgb = rgb + how.blur[:, None] * (wide - rgb)
    rgb = (rgb - 0.45) * how.contrast[:, None] + 0.45
    rgb *= how.gain[:, None] * how.tint
    rgb += how.noise[:, None] * rng.standard_normal(rgb.shape, dtype=np.float32)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _landmarks(who: People, how: Scenes) -> Landmarks:
    angle, scale = how.angle, how.scale
    who, how = who.spread(1), how.spread(1)
    left_right = np.array([[-1.0, 1.0]], np.float32)
    eyes = to_picture(left_right * who.eye_gap, who.eye_row + 0 * left_right, who, how)
    along = np.array([[-1.0, 0.0, 1.0]], np.float32)
    height, _ = brow_curve(along, who, how)
    brows = [to_picture(side * (who.eye_gap + along * who.brow_long), height, who, how) for side in (-1, 1)]
    wide, lift, slit, upper, lower = mouth_shape(who, how)
    u = wide * np.array([[-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    v = who.mouth_row + np.concatenate([-lift, -lift, -slit - upper, -slit, slit, slit + lower], axis=1)
    mouth = to_picture(u, v, who, how)
    return Landmarks(eyes=eyes, brows=np.stack(brows, axis=1), mouth=mouth, angle=angle, scale=scale)
