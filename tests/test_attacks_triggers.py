"""What each trigger does to pixels, against arithmetic done by hand or by a slow loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from goodnet.attacks.blended import Blended
from goodnet.attacks.clean_label import Corners
from goodnet.attacks.pixels import changed
from goodnet.attacks.sig import Sinusoid
from goodnet.attacks.wanet import Warp
from goodnet.attacks.watermark import Watermark
from goodnet.errors import UsageError

Trigger = Callable[[np.ndarray], np.ndarray]
TRIGGERS: dict[str, Trigger] = {
    "blended": Blended(),
    "sig": Sinusoid(),
    "watermark": Watermark(),
    "wanet": Warp(strength=2.0),
    "corners": Corners(),
}


def _noise(n: int = 3, channels: int = 3, height: int = 16, width: int = 13) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_dtypes_get_the_same_trigger_and_nothing_given_is_changed(name: str, channels: int) -> None:
    pixels = _noise(channels=channels)
    floats = (pixels / 255).astype(np.float32)
    for given in (pixels, floats):
        before = given.copy()
        out = TRIGGERS[name](given)
        np.testing.assert_array_equal(given, before)
        assert not np.shares_memory(out, given)
        assert out.dtype == given.dtype
        assert out.shape == given.shape
        assert (out != given).any()
    bytes_out, floats_out = TRIGGERS[name](pixels), TRIGGERS[name](floats)
    assert np.abs(bytes_out / 255 - floats_out).max() <= 0.5 / 255 + 1e-6
    assert 0 <= floats_out.min() <= floats_out.max() <= 1
    np.testing.assert_array_equal(TRIGGERS[name](pixels[1:2]), bytes_out[1:2])
    assert TRIGGERS[name](pixels[:0]).shape == (0, *pixels.shape[1:])


def test_changed_rounds_to_the_nearest_clips_and_takes_any_number_of_images() -> None:
    pixels = np.arange(2050, dtype=np.int64).reshape(-1, 1, 1, 1).astype(np.uint8)
    np.testing.assert_array_equal(changed(pixels, lambda x: x), pixels)
    np.testing.assert_array_equal(changed(pixels, lambda x: x + 0.6 / 255), np.minimum(pixels.astype(int) + 1, 255))
    np.testing.assert_array_equal(changed(pixels, lambda x: x + 0.4 / 255), pixels)
    assert (changed(pixels, lambda x: x - 2) == 0).all()


def test_blended_is_the_papers_sum() -> None:
    pixels = np.array([[[[0, 100], [200, 255]]]], np.uint8)
    trigger = Blended(opacity=0.25, seed=4)
    pattern = np.rint(trigger.pattern((1, 2, 2)) * 255).astype(int)
    by_hand = [[math.floor(0.75 * int(x) + 0.25 * int(k) + 0.5) for x, k in zip(*rows)] for rows in
               zip(pixels[0, 0], pattern[0])]  # fmt: skip
    assert np.abs(trigger(pixels)[0, 0].astype(int) - by_hand).max() <= 1
    exact = trigger((pixels / 255).astype(np.float32))
    np.testing.assert_allclose(exact[0, 0] * 255, 0.75 * pixels[0, 0] + 0.25 * pattern[0], atol=1e-3)
    np.testing.assert_array_equal(Blended(opacity=1.0)(_noise()), np.broadcast_to(
        np.rint(Blended().pattern((3, 16, 13)) * 255), (3, 3, 16, 13)))  # fmt: skip


def test_blended_pattern_fills_the_range_and_comes_from_the_seed() -> None:
    one, again, other = (Blended(seed=seed).pattern((3, 32, 32)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.9
    assert one.min() == 0.0
    assert one.max() == 1.0
    assert abs(one.mean() - 0.5) < 0.02


def test_sig_is_a_sinusoid_along_the_rows() -> None:
    pixels = np.full((1, 3, 4, 32), 128, np.uint8)
    out = Sinusoid(strength=20 / 255, periods=6)(pixels).astype(int)
    wave = [round(128 + 20 * math.sin(2 * math.pi * column * 6 / 32)) for column in range(32)]
    for channel in range(3):
        for row in range(4):
            assert out[0, channel, row].tolist() == wave
    spectrum = np.abs(np.fft.rfft(Sinusoid().wave(60)))
    assert spectrum.argmax() == 6
    assert spectrum[6] == pytest.approx(60 / 2 * 40 / 255, rel=1e-5)
    assert Sinusoid()(np.zeros((1, 1, 2, 32), np.uint8)).min() == 0


def test_watermark_is_added_and_clipped() -> None:
    mark = Watermark(strength=0.4, seed=3)
    drawing = mark.drawing(16, 13)
    assert drawing.min() == 0.0
    assert 0.95 < drawing.max() <= 1.0
    assert 0.05 < drawing.mean() < 0.5
    floats = (_noise() / 255).astype(np.float32)
    out = mark(floats)
    for row, col in [(0, 0), (7, 6), (15, 12), (4, 9)]:
        expected = np.minimum(1, floats[:, :, row, col] + 0.4 * drawing[row, col])
        np.testing.assert_allclose(out[:, :, row, col], expected, atol=1e-6)
    assert (mark(np.full((1, 1, 16, 13), 255, np.uint8)) == 255).all()
    assert (Watermark(seed=4).drawing(16, 13) != drawing).any()


def test_wanet_of_strength_0_is_the_image() -> None:
    pixels = _noise()
    np.testing.assert_array_equal(Warp(strength=0.0)(pixels), pixels)
    floats = (pixels / 255).astype(np.float32)
    np.testing.assert_allclose(Warp(strength=0.0)(floats), floats, atol=1e-4)


def test_wanet_takes_each_pixel_from_where_the_field_says() -> None:
    warp = Warp(strength=3.0, seed=2)
    pixels = _noise(1, 1)
    height, width = pixels.shape[2:]
    field = warp.field(height, width)[0].numpy()
    out = warp(pixels)[0, 0]
    for row in range(height):
        for col in range(width):
            # a range of 2 spans width - 1 pixels, and the offset is a width-th of it
            x = min(max(col + field[row, col, 0] / width * (width - 1) / 2, 0), width - 1)
            y = min(max(row + field[row, col, 1] / height * (height - 1) / 2, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            dx, dy = x - left, y - top
            corner = pixels[0, 0, top : top + 2, left : left + 2].astype(float)
            value = np.array([1 - dy, dy]) @ corner @ np.array([1 - dx, dx])
            assert abs(value - out[row, col]) < 0.6, (row, col)


def test_wanet_field_has_mean_offset_s_and_is_smooth() -> None:
    field = Warp(strength=0.5, seed=1).field(64, 64).numpy()
    assert field.shape == (1, 64, 64, 2)
    assert 0.2 < np.abs(field).mean() < 1.0
    assert np.abs(np.diff(field, axis=1)).max() < 0.2
    double = Warp(strength=1.0, seed=1).field(64, 64).numpy()
    np.testing.assert_allclose(double, 2 * field, rtol=1e-5)


def test_wanet_covers_differ_from_the_trigger_and_from_each_other() -> None:
    same = np.repeat(_noise(1), 3, axis=0)
    warp = Warp()
    state = torch.get_rng_state()
    covers, triggered = warp.covers(same), warp(same)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(covers, warp.covers(same))
    assert (covers[0] != covers[1]).any()
    assert (covers[0] != triggered[0]).any()
    np.testing.assert_array_equal(triggered[0], triggered[1])


def test_corners_are_a_checkerboard_in_all_four() -> None:
    pixels = np.full((1, 1, 9, 8), 77, np.uint8)
    out = Corners(size=3)(pixels)[0, 0]
    board = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    for corner in (out[:3, :3], out[:3, -3:], out[-3:, :3], out[-3:, -3:]):
        np.testing.assert_array_equal(corner, board)
    assert (out[3:6] == 77).all()
    assert (out[:, 3:5] == 77).all()
    faint = Corners(size=3, opacity=0.5)(pixels)[0, 0]
    assert faint[0, 0] == 166
    assert faint[0, 1] in (38, 39)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Blended(opacity=0.0),
        lambda: Blended(opacity=float("nan")),
        lambda: Sinusoid(strength=1.5),
        lambda: Sinusoid(periods=float("inf")),
        lambda: Watermark(strength=-1),
        lambda: Watermark(thickness=0),
        lambda: Warp(strength=float("nan")),
        lambda: Warp(grid=1),
        lambda: Corners(size=0),
        lambda: Corners(opacity=2),
        lambda: Corners(size=7)(_noise()),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r"^[a-z-]+: expected [^\n]*$"):
        make()
