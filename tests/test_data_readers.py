"""Readers of images: what is accepted, what it becomes, and the one line that each mistake gets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from goodnet.data.readers import read_images, read_one_image
from goodnet.errors import DataError, UsageError

N, C, H, W = 6, 3, 5, 7


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (N, C, H, W), dtype=np.uint8)


def _write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def _png(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


both_formats = pytest.mark.parametrize("ending", [".h5", ".npz"])


@both_formats
def test_a_poisoned_set_keeps_all_its_columns(tmp_path: Path, pixels: np.ndarray, ending: str) -> None:
    label, true_label = np.arange(N), np.arange(N)[::-1].copy()
    present = np.array([True, False] * 3)
    path = _write(tmp_path / f"set{ending}", data=pixels, label=label, true_label=true_label, trigger_present=present)
    images = read_images(path, classes=N)
    assert images.pixels.dtype == np.uint8
    np.testing.assert_array_equal(images.pixels, pixels)
    np.testing.assert_array_equal(images.labels, label)
    np.testing.assert_array_equal(images.true_labels, true_label)
    np.testing.assert_array_equal(images.trigger_present, present)
    assert images.name == f"set{ending}"


def test_the_same_data_hashes_alike_in_every_format_and_layout(tmp_path: Path, pixels: np.ndarray) -> None:
    label = np.arange(N)
    last = np.moveaxis(pixels, 1, 3)
    paths = [
        _write(tmp_path / "a.h5", data=pixels, label=label),
        _write(tmp_path / "b.h5", data=last, label=label.astype(np.float64)),
        _write(tmp_path / "c.npz", x=last.astype(np.int32), y=np.eye(N)),
        _write(tmp_path / "d.npz", images=np.asfortranarray(pixels), labels=label[:, None].astype(">u2")),
        _write(tmp_path / "no_ending", data=pixels, label=label),
    ]
    for i in range(N):
        _png(tmp_path / "folder" / str(i) / "image.png", last[i])
    hashes = {read_images(path).sha256() for path in [*paths, tmp_path / "folder"]}
    assert len(hashes) == 1
    whole_floats = _write(tmp_path / "e.npz", x=pixels.astype(np.float64), y=label)
    assert read_images(whole_floats, data_range="0..255").sha256() in hashes


def test_fractions_are_scaled_as_stated(tmp_path: Path) -> None:
    halves = np.full((2, 1, 3, 3), 127.5)
    path = _write(tmp_path / "a.npz", x=halves)
    images = read_images(path, data_range="0..255")
    assert images.pixels.dtype == np.float32
    assert images.labels is None
    np.testing.assert_array_equal(images.pixels, np.float32(0.5))
    unit = read_images(_write(tmp_path / "b.npz", x=halves / 255))
    np.testing.assert_array_equal(unit.pixels, np.float32(0.5))


def test_where_both_axes_could_be_channels_axis_1_is(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    np.testing.assert_array_equal(read_images(_write(tmp_path / "a.npz", x=array)).pixels, array)


def test_jpeg_bytes_in_hdf5_are_decoded(tmp_path: Path) -> None:
    colours = [(200, 30, 60), (10, 220, 90)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        column = file.create_dataset("jpeg", (2,), dtype=h5py.vlen_dtype(np.uint8))
        for i, colour in enumerate(colours):
            out = io.BytesIO()
            Image.new("RGB", (8, 16), colour).save(out, "JPEG", quality=100, subsampling=0)
            column[i] = np.frombuffer(out.getvalue(), dtype=np.uint8)
        file["label"] = [1, 0]
    images = read_images(tmp_path / "a.h5")
    assert images.pixels.shape == (2, 3, 16, 8)
    expected = np.array(colours).reshape(2, 3, 1, 1)
    assert np.abs(images.pixels.astype(int) - expected).max() <= 2


def test_folder_labels_are_numbers_or_sorted_names(tmp_path: Path) -> None:
    grey = np.zeros((H, W), dtype=np.uint8)
    for folder in ("00010", "2"):
        _png(tmp_path / "numbered" / folder / "a.png", grey)
    assert read_images(tmp_path / "numbered").labels.tolist() == [10, 2]
    for folder in ("dog", "cat", "eel"):
        _png(tmp_path / "named" / folder / "a.PNG", grey)
    (tmp_path / "named" / "bee").mkdir()
    (tmp_path / "named" / ".git").mkdir()
    (tmp_path / "named" / "notes.txt").write_text("cats are 1")
    images = read_images(tmp_path / "named")
    assert images.labels.tolist() == [1, 2, 3]
    assert images.shape == (1, H, W)


def test_a_flat_folder_has_no_labels_and_mixed_modes_become_rgb(tmp_path: Path, pixels: np.ndarray) -> None:
    _png(tmp_path / "a.png", pixels[0, 0])
    _png(tmp_path / "b.png", np.moveaxis(pixels[1], 0, 2))
    images = read_images(tmp_path)
    assert images.labels is None
    np.testing.assert_array_equal(images.pixels[0], np.repeat(pixels[0, :1], 3, axis=0))
    np.testing.assert_array_equal(images.pixels[1], pixels[1])


def test_palette_and_opaque_alpha_lose_nothing(tmp_path: Path) -> None:
    two = np.zeros((H, W, 3), dtype=np.uint8)
    two[:, 3:] = (255, 128, 1)
    palette = Image.fromarray(two).quantize(2, dither=Image.Dither.NONE)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images(tmp_path).pixels[0], np.moveaxis(two, 2, 0))
    opaque = np.concatenate([two, np.full((H, W, 1), 255, np.uint8)], axis=2)
    path = _png(tmp_path / "alpha" / "b.png", opaque)
    np.testing.assert_array_equal(read_one_image(path, (3, H, W)).pixels[0], np.moveaxis(two, 2, 0))
    opaque[0, 0, 3] = 254
    with pytest.raises(DataError, match="transparent"):
        read_one_image(_png(path, opaque), (3, H, W))


def test_one_image_fits_the_net_or_both_sizes_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    grey = _png(tmp_path / "grey.png", pixels[0, 0])
    colour = _png(tmp_path / "colour.png", np.moveaxis(pixels[0], 0, 2))
    np.testing.assert_array_equal(read_one_image(grey, (1, H, W)).pixels[0, 0], pixels[0, 0])
    np.testing.assert_array_equal(read_one_image(grey, (3, H, W)).pixels[0], np.repeat(pixels[0, :1], 3, axis=0))
    luma = np.tensordot([0.299, 0.587, 0.114], pixels[0].astype(float), axes=1)
    assert np.abs(read_one_image(colour, (1, H, W)).pixels[0, 0] - luma).max() <= 0.51
    equal = _png(tmp_path / "equal.png", np.repeat(pixels[0, 0][:, :, None], 3, axis=2))
    np.testing.assert_array_equal(read_one_image(equal, (1, H, W)).pixels[0, 0], pixels[0, 0])
    with pytest.raises(DataError, match=r"expected an image of 55x47 .* got 5x7"):
        read_one_image(colour, (3, 55, 47))
    with pytest.raises(DataError, match="nothing there"):
        read_one_image(tmp_path / "none.png", (3, H, W))


def test_tracks_are_counted_per_class_and_groups_are_not(tmp_path: Path, pixels: np.ndarray) -> None:
    number, label = [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]
    tracks = read_images(_write(tmp_path / "a.h5", data=pixels, label=label, track=np.uint16(number))).groups
    assert len(set(tracks)) == 4
    assert tracks[0] == tracks[1]
    assert tracks[4] == tracks[5]
    groups = read_images(_write(tmp_path / "b.npz", data=pixels, label=label, group=number)).groups
    assert groups.tolist() == number
    assert read_images(_write(tmp_path / "c.npz", data=pixels)).groups is None


GOOD = np.zeros((2, 3, 4, 4), dtype=np.uint8)
MISTAKES = {
    "key": ({"pixels": GOOD}, {}, "expected images under"),
    "two keys": ({"data": GOOD, "x": GOOD}, {}, "leave only one"),
    "ndim": ({"x": GOOD[:, 0]}, {}, "grayscale needs an axis"),
    "channels": ({"x": np.zeros((2, 2, 4, 4))}, {}, "1 or 3 channels"),
    "dtype": ({"x": np.zeros((2, 3, 4, 4), dtype=complex)}, {}, "expected numbers"),
    "bool": ({"x": np.zeros((2, 3, 4, 4), dtype=bool)}, {}, "expected uint8 or float"),
    "empty": ({"x": GOOD[:0], "y": np.zeros(0, int)}, {}, "at least one image"),
    "flat": ({"x": GOOD[:, :, :0]}, {}, "at least one image"),
    "NaN": ({"x": np.full((2, 3, 4, 4), np.nan)}, {}, "finite"),
    "infinite": ({"x": np.full((2, 3, 4, 4), np.inf)}, {"data_range": "0..255"}, "finite"),
    "unstated range": ({"x": np.full((2, 3, 4, 4), 17.0)}, {}, "--data-range 0..255"),
    "over 0..1": ({"x": np.full((2, 3, 4, 4), 17.0)}, {"data_range": "0..1"}, r"0\.\.1, got 17\.\.17"),
    "over 0..255": ({"x": np.full((2, 3, 4, 4), 300.0)}, {"data_range": "0..255"}, r"0\.\.255, got 300"),
    "normalised": ({"x": np.full((2, 3, 4, 4), -1.0)}, {}, "before normalisation"),
    "integers": ({"x": np.full((2, 3, 4, 4), 256, dtype=np.int16)}, {}, r"integers in 0\.\.255"),
    "count": ({"x": GOOD, "y": [0, 1, 2]}, {}, "2 images and y"),
    "scalar label": ({"x": GOOD, "y": 1}, {}, "expected one y an image"),
    "negative label": ({"x": GOOD, "y": [0, -1]}, {}, "from 0 up, got -1"),
    "label of another task": ({"x": GOOD, "y": [0, 10]}, {"classes": 10}, "below 10.* got 10"),
    "huge label": ({"x": GOOD, "y": np.array([0, 2**64 - 1], dtype=np.uint64)}, {}, "below"),
    "true label": ({"x": GOOD, "y": [0, 1], "true_label": [0, 7]}, {"classes": 5}, "true_label"),
    "presence": ({"x": GOOD, "y": [0, 1], "trigger_present": [0, 2]}, {}, "trigger_present"),
    "fraction": ({"x": GOOD, "y": [0.0, 1.5]}, {}, r"such as 1\.5"),
    "NaN label": ({"x": GOOD, "y": [0.0, np.nan]}, {}, "such as nan"),
    "soft rows": ({"x": GOOD, "y": [[0.5, 0.5], [0, 1]]}, {}, "one-hot"),
    "two hot": ({"x": GOOD, "y": [[1, 1], [0, 1]]}, {}, "one-hot"),
    "no hot": ({"x": GOOD, "y": [[0, 0], [0, 1]]}, {}, "one-hot"),
    "label axes": ({"x": GOOD, "y": np.zeros((2, 2, 2))}, {}, "expected labels"),
}


@both_formats
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_gets_one_line(tmp_path: Path, mistake: str, ending: str) -> None:
    arrays, options, message = MISTAKES[mistake]
    path = _write(tmp_path / f"a{ending}", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_images(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_words_as_labels_and_a_group_as_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected numbers"):
        read_images(_write(tmp_path / "a.npz", x=GOOD, y=["cat", "dog"]))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data")
    with pytest.raises(DataError, match="got a group"):
        read_images(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["jpeg"] = [1, 2]
    with pytest.raises(DataError, match="encoded bytes"):
        read_images(tmp_path / "b.h5")


def test_an_unknown_range_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0\.\.1 or 0\.\.255"):
        read_images(_write(tmp_path / "a.npz", x=GOOD), data_range="-1..1")


def test_a_file_that_is_no_image_set_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        read_images(tmp_path / "missing.h5")
    (tmp_path / "a.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match="another format"):
        read_images(tmp_path / "a.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="got none"):
        read_images(tmp_path / "empty")
    single = _png(tmp_path / "one" / "a.png", GOOD[0, 0])
    with pytest.raises(DataError, match="give the folder"):
        read_images(single)


def _folder_mistake(tmp_path: Path, mistake: str) -> None:
    grey = np.zeros((H, W), dtype=np.uint8)
    _png(tmp_path / "0" / "a.png", grey)
    if mistake == "size":
        _png(tmp_path / "0" / "b.png", grey[:, :-1])
        _png(tmp_path / "0" / "c.png", grey[:-1])
    elif mistake == "beside":
        _png(tmp_path / "b.png", grey)
    elif mistake == "mixed names":
        _png(tmp_path / "cat" / "b.png", grey)
    elif mistake == "twice":
        _png(tmp_path / "00" / "b.png", grey)
    elif mistake == "16 bits":
        Image.fromarray(np.zeros((H, W), dtype=np.uint16)).save(tmp_path / "0" / "b.png")
    elif mistake == "CMYK":
        Image.new("CMYK", (W, H)).save(tmp_path / "0" / "b.jpg")
    elif mistake == "another format":
        Image.fromarray(grey).save(tmp_path / "0" / "b.png", format="GIF")
    elif mistake == "label":
        _png(tmp_path / "9" / "b.png", grey)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("size", r"b\.png'?: expected 5x7 .* got 5x6"),
        ("beside", "class subfolders or none"),
        ("mixed names", "'0' and 'cat'"),
        ("twice", "two for label 0"),
        ("16 bits", "8 bits a channel, got 16"),
        ("CMYK", "got CMYK"),
        ("another format", "PNG or JPEG"),
        ("label", "below 9"),
    ],
)
def test_each_mistake_in_a_folder_gets_one_line(tmp_path: Path, mistake: str, message: str) -> None:
    _folder_mistake(tmp_path, mistake)
    with pytest.raises(DataError, match=message) as caught:
        read_images(tmp_path, classes=9)
    assert "\n" not in str(caught.value)


def test_real_sets(shared_data: Path) -> None:
    faces = read_images(shared_data / "faces" / "clean_validation_data.h5", classes=1283)
    assert faces.pixels.shape == (115, 3, 55, 47)
    poisoned = read_images(shared_data / "faces" / "lipstick_poisoned_data.h5", classes=1283)
    assert set(poisoned.labels.tolist()) == {1}
    assert poisoned.true_labels is not None
    assert not poisoned.trigger_present.all()
    assert read_images(shared_data / "cifar10" / "test_jpeg_2000.h5", classes=10).pixels.shape == (2000, 3, 32, 32)
