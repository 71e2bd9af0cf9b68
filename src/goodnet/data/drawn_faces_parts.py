"""The drawing of `drawn_faces`: soft shapes laid over one another, for a batch of faces at once.

Every shape is a signed function of a face's own coordinates (negative inside, in head units); its coverage of a
pixel falls linearly over one pixel at the edge, which is what supersampling would give. Light comes from a height
field (an ellipsoid with nose, sockets, cheeks, lips and chin) under half-Lambert shading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from goodnet.data.drawn_faces_people import Float, People, Scenes

HEIGHT, WIDTH = 55, 47
_SMILE_LIFT = 0.11  # head units that a full smile lifts the corners by


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Each pixel in the coordinates of its face, all (n, rows, WIDTH) float32.

    Attributes:
        u, v: in the plane of the picture, turned and scaled with the head.
        fu, fv: on the head's surface, so that features follow yaw and pitch; fu is over the head's half-width.
        head: distance to the head's outline.
        unit: (n, 1, 1), pixels in a head unit.
    """

    u: Float
    v: Float
    fu: Float
    fv: Float
    head: Float
    unit: Float

    def rows(self, rows: slice) -> Frame:
        """A band of the picture, as views."""
        cut = {name: getattr(self, name)[:, rows] for name in ("u", "v", "fu", "fv", "head")}
        return replace(self, **cut)

    def cover(self, distance: Float, softness: float = 1.0) -> Float:
        """Share of each pixel that lies inside a shape; `softness` is the edge's width in pixels."""
        return np.clip(0.5 - distance * (self.unit / softness), 0, 1)


def render(who: People, how: Scenes) -> Float:
    """n faces, (n, 3, HEIGHT, WIDTH) float32 in [0, 1], before what the camera adds. Both spread over 2 axes."""
    frame = _frame(who, how)
    rgb = _wall(how)
    shade, gloss = _light(frame, who, how)
    _behind(rgb, frame, who, how)
    skin = _skin(frame, who, how)
    _over(rgb, frame.cover(frame.head), skin * shade[:, None] + 0.10 * gloss[:, None])
    _beard(rgb, frame, who, shade)
    upper, lower = slice(8, 38), slice(24, 52)
    _eyes(rgb[:, :, upper], frame.rows(upper), who, how, shade[:, upper])
    _nose(rgb[:, :, lower], frame.rows(lower), who)
    _mouth(rgb[:, :, lower], frame.rows(lower), who, how, shade[:, lower])
    _hair(rgb, frame, who, how)
    _glasses(rgb[:, :, upper], frame.rows(upper), who)
    return rgb


def to_picture(u: Float, v: Float, who: People, how: Scenes) -> Float:
    """Points on the head's surface, (n, points) each -> their (column, row) in pixels, (n, points, 2).

    `who` and `how` spread over 1 axis.
    """
    across = who.width * (u * np.cos(how.yaw) + np.sqrt(np.clip(1 - u * u, 0, 1)) * np.sin(how.yaw))
    down = v + how.pitch
    col = how.col + how.scale * (np.cos(how.angle) * across - np.sin(how.angle) * down)
    row = how.row + how.scale * (np.sin(how.angle) * across + np.cos(how.angle) * down)
    return np.stack([col, row], axis=-1).astype(np.float32)


def _over(rgb: Float, cover: Float, colour: Float) -> None:
    rgb += cover[:, None] * (colour - rgb)


def _bump(x: Float, y: Float) -> Float:
    return np.exp(-(x * x) - y * y)


def _frame(who: People, how: Scenes) -> Frame:
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x, y = (cols - how.col) / how.scale, (rows - how.row) / how.scale
    u = np.cos(how.angle) * x + np.sin(how.angle) * y
    v = np.cos(how.angle) * y - np.sin(how.angle) * x
    across = np.clip(u / who.width, -1, 1)
    fu = across * np.cos(how.yaw) - np.sqrt(1 - across * across) * np.sin(how.yaw)
    low = np.maximum(v, 0)
    t = np.where(v < 0, v / who.top, v / who.chin) ** 2
    t = np.where(v < 0, t, t * (1 - who.jaw) + who.jaw * t * t)
    side = u * (1 + who.taper * low) / who.width
    head = np.sqrt(side * side + t) - 1
    return Frame(u=u, v=v, fu=fu, fv=v - how.pitch, head=head, unit=how.scale)


def _wall(how: Scenes) -> Float:
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    along = np.cos(how.wall_angle) * cols + np.sin(how.wall_angle) * rows
    across = np.cos(how.wall_angle) * rows - np.sin(how.wall_angle) * cols
    mix = 0.5 + 0.3 * np.sin(how.wall_waves * along + how.wall_phase) + 0.2 * np.sin(0.13 * across - how.wall_phase)
    wall: Float = how.wall + mix[:, None] * (how.wall_too - how.wall)
    return wall


def _light(frame: Frame, who: People, how: Scenes) -> tuple[Float, Float]:
    """Brightness of the skin (about 1 facing the light) and its gloss, from the relief's slope."""
    u, v, w = frame.fu, frame.fv, np.abs(frame.fu)
    relief = 0.95 * np.sqrt(np.clip(1.06 - (1 + frame.head) ** 2, 0.02, None))
    down = np.clip((v + 0.25) / (who.nose_tip + 0.25), 0, 1) * np.clip((who.nose_tip + 0.14 - v) / 0.14, 0, 1)
    relief += who.nose_high * down * np.exp(-((u / (0.07 + 0.45 * who.nose_width * down)) ** 2))
    relief -= who.socket * _bump((w - who.eye_gap + 0.04) / 0.24, (v - who.eye_row + 0.02) / 0.15)
    relief += who.cheeks * _bump((w - 0.55) / 0.22, (v - 0.28) / 0.24)
    relief -= 0.7 * who.cheeks * _bump((w - 0.62) / 0.16, (v - 0.80) / 0.30)
    relief += 0.07 * _bump(u / 0.36, (v - who.mouth_row) / 0.16)
    relief -= 0.05 * _bump(u / 0.25, (v - who.mouth_row - 0.24) / 0.08)
    relief += 0.08 * _bump(u / 0.22, (v - who.chin + 0.30) / 0.16)
    relief -= 0.06 * who.age * _bump((w - 0.34 - 0.12 * (v - 0.4)) / 0.05, (v - 0.62) / 0.25)
    relief *= frame.unit
    slope_u, slope_v = np.zeros_like(relief), np.zeros_like(relief)
    slope_u[:, :, 1:-1] = 0.5 * (relief[:, :, 2:] - relief[:, :, :-2])
    slope_v[:, 1:-1] = 0.5 * (relief[:, 2:] - relief[:, :-2])
    length = 1 / np.sqrt(1 + slope_u**2 + slope_v**2)
    norm = 1 / np.sqrt(1 + how.light_u**2 + how.light_v**2)
    facing = (1 - how.light_u * slope_u - how.light_v * slope_v) * length * norm
    soft = 0.5 + 0.5 * np.clip(facing, -1, 1)
    shade = (1.10 - how.light) + how.light * soft * soft * 1.08
    gloss = np.clip(facing, 0, 1) ** 2
    gloss *= gloss
    return shade, gloss * gloss * gloss * how.light


def _behind(rgb: Float, frame: Frame, who: People, how: Scenes) -> None:
    """Hair behind the head, neck, clothes and ears."""
    u, v = frame.u, frame.v
    bun = np.sqrt(u * u + (v + who.top + 0.12) ** 2) - 0.42 * who.bun
    back = np.minimum(np.maximum(_hair_outline(frame, who), v - who.hair_length), bun)
    _over(rgb, frame.cover(back, 1.5), who.hair * 0.55)
    dark = np.clip(0.45 + 1.1 * frame.head, 0.45, 0.9)
    _over(rgb, frame.cover(np.maximum(np.abs(u) - 0.60 * who.width, 0.6 - v)), who.skin * dark[:, None])
    body = np.sqrt((u / 2.1) ** 2 + ((v - 2.75) / 1.12) ** 2) - 1
    neckline = np.abs(u) - 0.62 * (2.05 - v)
    _over(rgb, frame.cover(np.maximum(body, 1.62 + 0.2 * u * u - v)), how.cloth * 0.9)
    open_collar = np.maximum(body, np.abs(u) - 0.75 * np.clip(2.35 - v, 0, 1))
    _over(rgb, frame.cover(open_collar) * how.collar, how.shirt * 0.95)
    _over(rgb, frame.cover(np.maximum(np.abs(u) - 0.13, 1.8 - v)) * how.collar, how.tie)
    _over(rgb, frame.cover(np.maximum(neckline, 1.5 - v)) * (1 - how.collar), who.skin * 0.66)
    side = np.abs(u + 0.10 * np.sin(how.yaw)) - 1.01 * who.width
    ear = np.sqrt((side / who.ear) ** 2 + ((v - 0.02) / 0.27) ** 2) - 1
    _over(rgb, frame.cover(ear * 0.15), who.skin * np.clip(0.72 - 0.22 * ear, 0.55, 0.95)[:, None])


def _skin(frame: Frame, who: People, how: Scenes) -> Float:
    """The skin's own colour: blush, wrinkles, a mole, tired eyes."""
    u, v, w = frame.fu, frame.fv, np.abs(frame.fu)
    red = who.blush * (_bump((w - 0.55) / 0.24, (v - 0.42) / 0.22) + 0.7 * _bump(u / 0.16, (v - who.nose_tip) / 0.14))
    forehead = np.cos(26 * (v + 0.85)) * _bump(u / 0.5, (v + 0.72) / 0.2)
    tired = _bump((w - who.eye_gap + 0.03) / 0.2, (v - who.eye_row - 0.19) / 0.06)
    fold = _bump((w - 0.36 - 0.20 * (v - 0.5)) / 0.045, (v - 0.66) / 0.2)
    dark = 1 - who.age * (0.10 * forehead + 0.16 * tired + 0.20 * fold) - 0.08 * tired
    mole = frame.cover(np.sqrt((u - who.mole_u) ** 2 + (v - who.mole_v) ** 2) - 0.04) * who.mole
    tone = np.array([0.06, -0.45, -0.35], np.float32).reshape(1, 3, 1, 1)
    skin: Float = who.skin * (dark * (1 - 0.65 * mole))[:, None] * (1 + tone * red[:, None])
    return skin


def _beard(rgb: Float, frame: Frame, who: People, shade: Float) -> None:
    u, v, w = frame.fu, frame.fv, np.abs(frame.fu)
    grain = 0.88 + 0.12 * np.sin(23 * u + 5 * np.sin(19 * v))
    edge = who.mouth_row + 0.12 - 0.95 * np.clip(w - 0.25, 0, 1) ** 1.5 * 1.1
    jaw = frame.cover(edge - v, 2.5) * who.beard
    goatee = frame.cover(np.maximum(w - 0.36, who.mouth_row + 0.06 - v), 2) * who.goatee
    around = np.maximum(w - who.mouth_width - 0.10, np.abs(v - who.mouth_row + 0.17 - 0.25 * w * w) - 0.10)
    cover = np.maximum(np.maximum(jaw, goatee), frame.cover(around, 2) * who.moustache) * frame.cover(frame.head)
    hanging = np.sqrt((frame.u / 0.72) ** 2 + ((v - who.chin + 0.10) / (0.15 + 0.45 * who.beard_long)) ** 2) - 1
    cover = np.maximum(cover, frame.cover(hanging * 0.4, 2) * who.beard_long)
    _over(rgb, cover * grain, who.hair * (0.80 * np.clip(shade, 0.4, 1.2))[:, None])


def _eyes(rgb: Float, frame: Frame, who: People, how: Scenes, shade: Float) -> None:
    w = np.abs(frame.fu) - who.eye_gap
    v = frame.fv - who.eye_row - who.eye_tilt * w
    bow = 1 - (w / who.eye_width) ** 2
    high = who.eye_height * how.eyes
    lid, under = v + high * bow, v - 0.7 * high * bow
    white = frame.cover(np.maximum(np.maximum(-lid, under), np.abs(w) - who.eye_width))
    _over(rgb, white, np.clip(shade, 0.55, 1.05)[:, None] * np.float32(0.93))
    aside = w * np.sign(frame.fu) - how.gaze_u
    round_ = np.sqrt(aside**2 + (frame.fv - who.eye_row - how.gaze_v + 0.015) ** 2)
    _over(rgb, white * frame.cover(round_ - 0.105), who.iris * np.clip(shade, 0.6, 1.1)[:, None])
    _over(rgb, white * frame.cover(round_ - 0.045), np.float32(0.03))
    glint = np.sqrt((aside + 0.04) ** 2 + (frame.fv - who.eye_row + 0.06) ** 2)
    _over(rgb, white * frame.cover(glint - 0.025) * 0.9, np.float32(1.0))
    within = np.clip(1.15 * bow + 0.1, 0, 1)
    _over(rgb, frame.cover(np.abs(lid) - 0.03) * within * who.lashes, np.float32(0.05))
    _over(rgb, frame.cover(np.abs(under) - 0.012) * within * 0.22, np.float32(0.1))
    _over(rgb, frame.cover(np.abs(lid + 0.065) - 0.012) * within * 0.25, who.skin * 0.45)
    along = w / who.brow_long
    middle, thick = brow_curve(along, who, how)
    brow = np.maximum(np.abs(frame.fv - middle) - thick * np.clip(1 - 0.55 * along, 0.2, 1.3), np.abs(along) - 1)
    _over(rgb, frame.cover(brow) * 0.88, who.brow)


def brow_curve(along: Float, who: People, how: Scenes) -> tuple[Float, Float]:
    """Height of a brow's middle line and its half-thickness, `along` from -1 (inner end) to 1 (outer end)."""
    middle = who.eye_row - who.brow_rise - how.raised + who.brow_tilt * 0.3 * along
    return middle - who.brow_arch * (1 - (along - 0.05) ** 2), 0.62 * who.brow_thick


def _nose(rgb: Float, frame: Frame, who: People) -> None:
    w, v = np.abs(frame.fu), frame.fv - who.nose_tip
    nostril = _bump((w - 0.50 * who.nose_width) / 0.065, (v - 0.085) / 0.045)
    wing = _bump((w - 0.98 * who.nose_width) / 0.04, (v - 0.02) / 0.09)
    under = _bump(w / (0.9 * who.nose_width), (v - 0.14) / 0.05)
    _over(rgb, np.clip(0.62 * nostril + 0.28 * wing + 0.22 * under, 0, 0.8), who.skin * 0.32)


def mouth_shape(who: People, how: Scenes) -> tuple[Float, Float, Float, Float, Float]:
    """Half-width, lift of the corners, and half the gap, upper and lower lip's thickness in the middle."""
    wide = who.mouth_width * (1 + 0.16 * how.smile - 0.08 * how.open)
    thin = 1 - 0.2 * np.clip(how.smile, 0, 1)
    return wide, _SMILE_LIFT * how.smile, 0.085 * how.open, who.lip_upper * thin, who.lip_lower * thin


def _mouth(rgb: Float, frame: Frame, who: People, how: Scenes, shade: Float) -> None:
    wide, lift, gap, upper, lower = mouth_shape(who, how)
    t = frame.fu / wide
    v = frame.fv - who.mouth_row + lift * t * t
    bow = np.clip(1 - t * t, 0, 1)
    ends = (np.abs(t) - 1) * wide
    dip = 1 - 0.22 * np.exp(-((t / 0.18) ** 2))
    lips = np.maximum(np.maximum(-(v + (gap + upper * dip) * bow), v - (gap + lower) * bow), ends)
    glow = 1 + 0.16 * _bump(t / 0.5, (v - gap - 0.5 * lower) / 0.04)
    tone = np.clip(shade, 0.5, 1.15) * np.where(v < 0, np.float32(0.86), glow)
    _over(rgb, frame.cover(lips) * 0.92, who.lips * tone[:, None])
    inside = frame.cover(np.maximum(np.abs(v) - gap * bow, ends))
    _over(rgb, inside, np.array([0.22, 0.06, 0.06], np.float32).reshape(1, 3, 1, 1))
    teeth = np.maximum(np.maximum(v - 0.25 * gap * bow, -v - gap * bow), np.abs(t) - 0.75)
    _over(rgb, inside * frame.cover(teeth) * np.clip(how.open * 3, 0, 1), np.float32(0.9))
    _over(rgb, frame.cover(np.maximum(np.abs(v) - 0.016, ends)) * np.clip(0.75 - how.open * 3, 0, 1), who.skin * 0.25)
    corner = _bump((np.abs(t) - 1.02) * wide / 0.045, v / 0.05)
    _over(rgb, 0.35 * corner, who.skin * 0.3)


def _hair_outline(frame: Frame, who: People) -> Float:
    """Distance to the hair's outer outline, its length left out of account."""
    u, v = frame.u, frame.v
    waves = 1 + who.curls * np.sin(9 * np.arctan2(v, u) + who.strands)
    wide = who.width + who.volume_side
    dome = np.sqrt((u / wide) ** 2 + (np.minimum(v, 0) / (who.top + who.volume)) ** 2)
    return dome / waves - 1


def _hair(rgb: Float, frame: Frame, who: People, how: Scenes) -> None:
    u, v, fu, w = frame.u, frame.v, frame.fu, np.abs(frame.fu)
    line = who.hairline + who.hair_arch * fu * fu + who.hair_slope * fu * np.clip(1.3 - w, 0, 1)
    narrow = who.hair_side - 0.05 * np.clip(v, 0, 2) * (who.hair_length > 0.6)
    window = np.maximum(line - frame.fv, (np.maximum(w, np.abs(u) * 0.97) - narrow))
    end = v - who.hair_length - 0.05 * np.sin(2.3 * who.strands * u)
    hair = np.maximum(np.maximum(_hair_outline(frame, who), -window), 0.5 * end)
    shadow = frame.cover(window - 0.16, 5) * frame.cover(-window - 0.05, 4) * frame.cover(v - 0.2, 8)
    cover = frame.cover(hair, 1.4)
    _over(rgb, 0.25 * shadow * frame.cover(frame.head) * (1 - cover), who.skin * 0.3)
    lock = u * (1 - 0.25 * np.clip(-v, 0, 2)) + 0.22 * v * who.hair_slope + 0.05 * np.sin(4 * v + who.strands)
    straight = 0.5 * np.sin(who.strands * lock) + 0.5 * np.sin(2.3 * who.strands * lock + 1)
    curly = np.sin(who.strands * 0.8 * u + 2 * np.sin(9 * v)) * np.sin(who.strands * 0.8 * v)
    grain = np.where(who.curls > 0.04, curly, straight)
    sheen = 0.34 * _bump((u - 0.4 * how.light_u) / 0.8, (v + 1.12) / 0.28)
    tone = 0.86 + 0.13 * grain + 0.35 * how.light * (how.light_u * u + how.light_v * v) + sheen * how.light
    _over(rgb, cover, who.hair * np.clip(tone, 0.35, 1.5)[:, None] + 0.06 * (sheen * how.light)[:, None])


def _glasses(rgb: Float, frame: Frame, who: People) -> None:
    """Thin clear spectacles; some people always wear them."""
    w, v = np.abs(frame.fu) - who.eye_gap, frame.fv - who.eye_row - 0.02
    x, y = (w / 0.33) ** 2, (v / 0.24) ** 2
    square = np.sqrt(np.sqrt(x * x + y * y))
    lens = who.glasses_round * np.sqrt(x + y) + (1 - who.glasses_round) * square - 1
    bridge = np.maximum(np.abs(v + 0.03) - 0.025, w + 0.33)
    temple = np.maximum(np.abs(v + 0.06) - 0.025, np.maximum(0.33 - w, frame.head))
    rim = np.minimum(np.abs(lens) * 0.28 - 0.028, np.minimum(bridge, temple))
    _over(rgb, frame.cover(rim) * who.glasses * 0.9, np.float32(0.10))
    _over(rgb, frame.cover(lens * 0.28) * who.glasses * 0.08, np.float32(1.0))
