"""Who is drawn, and how the photograph is taken: the parameters behind `drawn_faces`.

A *person* is a few dozen numbers drawn from a generator seeded by the person's number alone, so person 7 is the
same face in every draw, whatever the seed and however many people there are. A *scene* (pose, light, expression,
clothes, background) depends on the draw's seed.

Lengths are in head units: 1 is half a head's width, u runs right, v runs down, (0, 0) is the head's middle.
Colours are in [0, 1].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]  # float32 throughout; NumPy's stubs widen it at every power
_Column = TypeVar("_Column", bound="Columns")
_IDENTITY_SEED = 20260
_SKIN = ((0.94, 0.80, 0.71), (0.91, 0.71, 0.57), (0.80, 0.57, 0.42), (0.58, 0.37, 0.25), (0.36, 0.23, 0.17))
_HAIR = {
    "black": (0.07, 0.06, 0.07),
    "brown": (0.25, 0.15, 0.09),
    "chestnut": (0.42, 0.22, 0.11),
    "blond": (0.84, 0.66, 0.36),
    "ginger": (0.72, 0.33, 0.11),
    "grey": (0.60, 0.60, 0.61),
    "white": (0.90, 0.89, 0.86),
}
_IRIS = ((0.20, 0.11, 0.06), (0.36, 0.22, 0.10), (0.26, 0.42, 0.22), (0.25, 0.48, 0.72), (0.50, 0.55, 0.58))
# volume on top and at the sides, hairline's height, its arch, slope, half-width of the face's window, length, curls
_STYLES = {
    "crop": (0.08, 0.05, -0.92, 0.10, 0.00, 0.93, -0.10, 0.00),
    "quiff": (0.26, 0.06, -0.98, 0.05, 0.10, 0.94, -0.15, 0.02),
    "parted": (0.16, 0.09, -0.86, 0.22, 0.42, 0.90, 0.00, 0.00),
    "receding": (0.05, 0.05, -1.00, -0.45, 0.00, 0.95, -0.05, 0.00),
    "bald": (-0.40, 0.03, -2.20, 0.00, 0.00, 0.97, 0.05, 0.00),
    "fringe": (0.18, 0.14, -0.58, 0.03, 0.00, 0.86, 0.70, 0.00),
    "long": (0.16, 0.22, -1.02, 0.75, 0.15, 0.82, 2.60, 0.01),
    "bob": (0.20, 0.30, -0.90, 0.35, 0.35, 0.80, 1.15, 0.01),
    "waves": (0.24, 0.38, -0.86, 0.30, -0.30, 0.84, 1.80, 0.05),
    "afro": (0.42, 0.46, -0.86, 0.25, 0.00, 0.93, 0.45, 0.05),
    "bun": (0.07, 0.04, -0.98, 0.22, 0.00, 0.93, -0.05, 0.00),
}
_SHORT = ("crop", "crop", "quiff", "parted", "parted", "receding", "bald", "afro", "long")
_LONG = ("long", "long", "bob", "waves", "waves", "fringe", "fringe", "bun", "afro", "crop")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Arrays of one row a person or image."""

    def rows(self: _Column, index: npt.NDArray[np.integer] | slice) -> _Column:
        """The rows at `index`."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def spread(self: _Column, axes: int) -> _Column:
        """Every field with `axes` axes of length 1 behind, to broadcast against points (1) or pixels (2)."""
        behind = (..., *([None] * axes))
        return type(self)(**{f.name: getattr(self, f.name)[behind] for f in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class People(Columns):
    """The looks of n people; every field is (n,) or, for colours, (n, 3)."""

    skin: Float
    width: Float
    top: Float
    chin: Float
    jaw: Float
    taper: Float
    ear: Float
    cheeks: Float
    blush: Float
    age: Float
    hair: Float
    volume: Float
    volume_side: Float
    hairline: Float
    hair_arch: Float
    hair_slope: Float
    hair_side: Float
    hair_length: Float
    curls: Float
    strands: Float
    bun: Float
    iris: Float
    eye_gap: Float
    eye_row: Float
    eye_width: Float
    eye_height: Float
    eye_tilt: Float
    lashes: Float
    socket: Float
    brow: Float
    brow_rise: Float
    brow_thick: Float
    brow_arch: Float
    brow_tilt: Float
    brow_long: Float
    nose_width: Float
    nose_tip: Float
    nose_high: Float
    lips: Float
    mouth_row: Float
    mouth_width: Float
    lip_upper: Float
    lip_lower: Float
    beard: Float
    beard_long: Float
    goatee: Float
    moustache: Float
    glasses: Float
    glasses_round: Float
    mole: Float
    mole_u: Float
    mole_v: Float


@dataclass(frozen=True, kw_only=True)
class Scenes(Columns):
    """How n photographs are taken; (n,), or (n, 3) for colours. Columns and rows in pixels, angles in radians."""

    col: Float
    row: Float
    scale: Float
    angle: Float
    yaw: Float
    pitch: Float
    light_u: Float
    light_v: Float
    light: Float
    smile: Float
    open: Float
    raised: Float
    eyes: Float
    gaze_u: Float
    gaze_v: Float
    cloth: Float
    shirt: Float
    collar: Float
    tie: Float
    wall: Float
    wall_too: Float
    wall_angle: Float
    wall_waves: Float
    wall_phase: Float
    gain: Float
    contrast: Float
    tint: Float
    blur: Float
    noise: Float


def people(count: int) -> People:
    """The first `count` people."""
    rows = [_person(np.random.default_rng([_IDENTITY_SEED, number])) for number in range(count)]
    return People(**{key: np.array([row[key] for row in rows], np.float32) for key in rows[0]})


def _person(rng: np.random.Generator) -> dict[str, Any]:
    slender = float(rng.random() < 0.5)  # finer brows and jaw, fuller lips, no beard: a face's second great divide
    old = float(rng.beta(1.0, 2.0))
    tone = rng.random()
    skin = _mix(_SKIN, tone) * rng.normal(1.0, [0.03, 0.02, 0.03])
    hair = np.array(_HAIR[_hair_colour(rng, tone=tone, old=old)]) * rng.uniform(0.8, 1.2)
    bare = rng.random() < 0.45
    lips = skin * (0.86, 0.60, 0.60) if bare or not slender else (0.74, 0.22 + 0.15 * rng.random(), 0.26)

    def about(middle: float, spread: float) -> float:
        return middle + spread * float(np.clip(rng.normal(), -1.8, 1.8))

    looks = {
        "skin": np.clip(skin, 0, 1),
        "width": about(0.98, 0.065),
        "top": about(1.42, 0.06),
        "chin": about(1.56 - 0.04 * slender, 0.08),
        "jaw": about(0.35 - 0.35 * slender, 0.30),
        "taper": about(0.06 + 0.06 * slender, 0.05),
        "ear": about(0.13, 0.04),
        "cheeks": about(0.08, 0.05),
        "blush": max(0.0, about(0.12 + 0.12 * slender, 0.12)),
        "age": old,
        "hair": np.clip(hair, 0, 1),
        "iris": _IRIS[int(np.clip(rng.integers(0, 5) * (tone < 0.6) + rng.integers(0, 2), 0, 4))],
        "eye_gap": about(0.43, 0.035),
        "eye_row": about(-0.20, 0.045),
        "eye_width": about(0.22, 0.022),
        "eye_height": about(0.095, 0.022),
        "eye_tilt": about(-0.06 * slender, 0.10),
        "lashes": 0.35 + 0.4 * slender * rng.random(),
        "socket": about(0.10, 0.05),
        "brow": np.clip(hair * (0.35 if hair.mean() < 0.5 else 0.62), 0.03, 1),
        "brow_rise": about(0.25 + 0.02 * slender, 0.035),
        "brow_thick": max(0.03, about(0.085 - 0.035 * slender, 0.022)),
        "brow_arch": about(0.06, 0.05),
        "brow_tilt": about(0.10, 0.13),
        "brow_long": about(0.29, 0.03),
        "nose_width": about(0.22 - 0.03 * slender + 0.05 * tone, 0.035),
        "nose_tip": about(0.40, 0.06),
        "nose_high": about(0.34, 0.10),
        "lips": np.clip(lips, 0, 1),
        "mouth_row": about(0.87, 0.05),
        "mouth_width": about(0.36, 0.045),
        "lip_upper": max(0.02, about(0.06 + 0.02 * slender + 0.02 * tone, 0.022)),
        "lip_lower": max(0.03, about(0.085 + 0.02 * slender + 0.03 * tone, 0.025)),
        "glasses": float(rng.random() < 0.14),
        "glasses_round": rng.random(),
        "mole": float(rng.random() < 0.2),
        "mole_u": rng.uniform(-0.6, 0.6),
        "mole_v": rng.choice([-0.75, 0.45, 0.7, 1.15]),
    }
    return {**looks, **_hair(rng, slender), **_beard(rng, slender)}


def _hair_colour(rng: np.random.Generator, *, tone: float, old: float) -> str:
    if old > 0.5 and rng.random() < 0.8:
        return "white" if old > 0.7 else "grey"
    names = ("black", "brown", "chestnut", "blond", "ginger")
    pale = (0.16, 0.24, 0.2, 0.26, 0.14)
    return str(rng.choice(names, p=pale if tone < 0.5 else (0.7, 0.22, 0.05, 0.02, 0.01)))


def _hair(rng: np.random.Generator, slender: float) -> dict[str, float]:
    style = str(rng.choice(_LONG if slender else _SHORT))
    keys = ("volume", "volume_side", "hairline", "hair_arch", "hair_slope", "hair_side", "hair_length", "curls")
    looks = dict(zip(keys, (float(value) for value in _STYLES[style])))
    looks["volume"] += rng.uniform(-0.03, 0.06)
    looks["volume_side"] += rng.uniform(-0.02, 0.05)
    looks["hairline"] += rng.uniform(-0.06, 0.06)
    looks["hair_length"] += rng.uniform(-0.1, 0.15)
    looks["hair_slope"] *= float(rng.choice([-1.0, 1.0]))
    return {**looks, "strands": rng.uniform(9.0, 20.0), "bun": float(style == "bun")}


def _beard(rng: np.random.Generator, slender: float) -> dict[str, float]:
    kind = "none" if slender else str(rng.choice(["none", "none", "stubble", "full", "long", "goatee", "moustache"]))
    density = {"stubble": 0.35, "full": 0.85, "long": 0.95}.get(kind, 0.0)
    return {
        "beard": density,
        "beard_long": float(kind == "long") * rng.uniform(0.6, 1.0),
        "goatee": max(density, 0.9 * float(kind == "goatee")),
        "moustache": max(density, 0.95 * float(kind in ("moustache", "goatee"))),
    }


def scenes(count: int, rng: np.random.Generator) -> Scenes:
    """How `count` photographs are taken."""

    def about(middle: float, spread: float) -> Float:
        return (middle + spread * np.clip(rng.normal(size=count), -2, 2)).astype(np.float32)

    def between(low: float, high: float, *shape: int) -> Float:
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)

    wall = _muted(between(0.08, 0.88, 1), between(-0.16, 0.16, 3))
    return Scenes(
        col=about(23.0, 0.8),
        row=about(25.5, 0.8),
        scale=about(14.8, 0.45),
        angle=about(0.0, 0.055),
        yaw=about(0.0, 0.17),
        pitch=about(0.0, 0.04),
        light_u=between(-0.8, 0.8),
        light_v=between(-0.8, 0.1),
        light=between(0.25, 0.75),
        smile=between(-0.3, 1.0),
        open=np.maximum(between(-0.6, 1.0), 0),
        raised=about(0.0, 0.025),
        eyes=between(0.75, 1.15) * np.where(between(0, 1) < 0.03, np.float32(0.25), np.float32(1)),
        gaze_u=about(0.0, 0.035),
        gaze_v=about(0.0, 0.012),
        cloth=_muted(between(0.05, 0.8, 1), between(-0.22, 0.22, 3)),
        shirt=_muted(between(0.7, 0.95, 1), between(-0.1, 0.1, 3)),
        collar=(between(0, 1) < 0.45).astype(np.float32),
        tie=between(0.1, 0.7, 3),
        wall=wall,
        wall_too=_muted(wall, between(-0.28, 0.28, 1) + between(-0.1, 0.1, 3)),
        wall_angle=between(0, 2 * np.pi),
        wall_waves=between(0.02, 0.25),
        wall_phase=between(0, 2 * np.pi),
        gain=between(0.76, 1.06),
        contrast=between(0.85, 1.15),
        tint=between(0.95, 1.05, 3),
        blur=between(0.0, 0.55),
        noise=between(0.0, 0.022),
    )


def _muted(grey: Float, colour: Float) -> Float:
    """A colour not far from grey, as walls and clothes are."""
    return np.clip(grey + colour, 0.02, 0.98)


def _mix(colours: tuple[tuple[float, ...], ...], at: float) -> npt.NDArray[np.float64]:
    """The colour at `at` in [0, 1] along a row of colours."""
    stops = np.linspace(0, 1, len(colours))
    return np.array([np.interp(at, stops, channel) for channel in zip(*colours)])
