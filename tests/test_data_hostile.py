"""Image files from somebody who means harm, read with limits of one's own; tests/hostile holds those for the usual."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from goodnet.data.readers import read_images
from goodnet.errors import DataError, GoodnetError, UnsafeFileError
from hostile.pictures import npy, png_of

PIXELS = np.random.default_rng(2).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
MIB = 2**20


def _peak(path: Path, **options: Any) -> int:
    """Peak of Python and NumPy memory, in bytes, while `path` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFileError):
            read_images(path, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_hdf5_sizes_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "shape.h5", "w") as file:
        file.create_dataset("data", (10**6, 3, 1000, 1000), np.uint8, chunks=(1, 3, 100, 100))
    assert _peak(tmp_path / "shape.h5") < MIB
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("data", (1, 3, 8, 8), np.uint8, chunks=(64, 3, 512, 512), maxshape=(None,) * 4)
    assert _peak(tmp_path / "chunk.h5", max_bytes=MIB) < MIB
    with h5py.File(tmp_path / "label.h5", "w") as file:
        file["data"] = PIXELS
        file.create_dataset("label", (4, 10**12), np.uint8, chunks=(1, 1000))
    assert _peak(tmp_path / "label.h5") < MIB


def test_an_hdf5_chunk_that_inflates_beyond_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (1, 1, 64, 64), np.uint8, chunks=(1, 1, 64, 64), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(32 * MIB), 9))
    assert _peak(path, max_bytes=4 * MIB) < MIB
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data", (1, 1, 256, 256), np.uint8, chunks=(1, 1, 256, 256), compression="gzip", shuffle=True
        )
        only_shuffle_skipped = 1
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(32 * MIB), 9), only_shuffle_skipped)
    assert _peak(path, max_bytes=4 * MIB) < MIB


def test_gzip_that_shrinks_little_is_no_bomb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    for name, options in {"plain": {}, "both": {"shuffle": True, "fletcher32": True}}.items():
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("data", data=pixels, chunks=pixels.shape, compression="gzip", **options)
        images = read_images(tmp_path / name, max_bytes=pixels.nbytes)
        np.testing.assert_array_equal(images.pixels, pixels)


def test_hdf5_compressed_twice_is_refused(tmp_path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 3, 16, 16))
    for _ in range(2):
        plist.set_filter(1, h5py.h5z.FLAG_OPTIONAL, (9,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple(PIXELS.shape)
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT8, space, plist)
    with pytest.raises(UnsafeFileError, match="unusual way"):
        read_images(tmp_path / "a.h5")


def test_many_small_jpegs_of_large_images_are_bounded(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("L", (1000, 1000)).save(out, "JPEG")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        column = file.create_dataset("jpeg", (20,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(20):
            column[i] = np.frombuffer(out.getvalue(), dtype=np.uint8)
    assert _peak(tmp_path / "a.h5", max_bytes=16 * MIB) < 4 * MIB


def _zip(path: Path, member: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("data.npy", member)
    return path


def test_npz_sizes_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    huge = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 3, 1000, 1000), }\n")
    assert _peak(_zip(tmp_path / "huge.npz", huge)) < MIB
    bomb = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, {64 * MIB}), }}\n", bytes(64 * MIB))
    assert _peak(_zip(tmp_path / "bomb.npz", bomb), max_bytes=MIB) < MIB
    small = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 2, 2), }\n", bytes(64 * MIB))
    tracemalloc.start()
    assert read_images(_zip(tmp_path / "tail.npz", small)).pixels.shape == (1, 1, 2, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB
    assert _peak(_zip(tmp_path / "lzma.npz", bomb, zipfile.ZIP_LZMA)) < MIB


def test_links_out_of_a_folder_are_refused_and_those_inside_followed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("L", (4, 4), 9).save(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    assert len(read_images(folder)) == 2
    Image.new("L", (4, 4), 9).save(tmp_path / "outside.png")
    (folder / "c.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(UnsafeFileError, match="link to outside"):
        read_images(folder)
    (folder / "c.png").unlink()
    (tmp_path / "more").mkdir()
    (folder / "0").symlink_to(tmp_path / "more")
    with pytest.raises(UnsafeFileError, match="link to outside"):
        read_images(folder)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="something else"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="something else"):
        read_images(tmp_path / "a.png")


@pytest.mark.parametrize("side", [5_000, 11_000, 100_000])
def test_a_png_that_declares_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_of(side, side))
    tracemalloc.start()
    with pytest.raises(GoodnetError, match=r"too many pixels|over the limit"):
        read_images(tmp_path, max_bytes=64 * MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


def _valid(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "h5":
        with h5py.File(out, "w") as file:
            file.create_dataset("data", data=PIXELS, compression="gzip")
            file["label"] = np.arange(4)
    elif kind == "npz":
        np.savez_compressed(out, data=PIXELS, label=np.arange(4))
    else:
        Image.fromarray(np.moveaxis(PIXELS[0], 0, 2)).save(out, kind.upper())
    return out.getvalue()


def _read(path: Path, kind: str) -> Any:
    return read_images(path if kind in ("h5", "npz") else path.parent)


@pytest.mark.parametrize("kind", ["npz", "png", "jpeg"])
def test_flipped_bytes_are_read_or_refused_but_never_crash(tmp_path: Path, kind: str) -> None:
    whole = _valid(kind)
    path = tmp_path / f"a.{kind}"
    rng = np.random.default_rng(4)
    messages = []
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert _read(path, kind).pixels.ndim == 4
        except GoodnetError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_names_from_a_stranger_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["\x1b[31m\n"] = PIXELS
    with pytest.raises(DataError) as caught:
        read_images(tmp_path / "a.h5")
    (tmp_path / "\x1b[31m\n.png").write_bytes(b"no image")
    with pytest.raises(DataError) as also_caught:
        read_images(tmp_path)
    for error in (caught, also_caught):
        assert str(error.value).isprintable()
