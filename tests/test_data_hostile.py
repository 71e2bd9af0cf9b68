"""Image files from somebody who means harm: nothing leaves the file, runs, or takes more memory than allowed."""

from __future__ import annotations

import io
import os
import pickle
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

PIXELS = np.random.default_rng(2).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
MIB = 2**20


def _secret(folder: Path) -> Path:
    path = folder / "secret.h5"
    with h5py.File(path, "w") as file:
        file["data"] = PIXELS
    return path


def _external_link(file: Any, secret: Path) -> None:
    file["data"] = h5py.ExternalLink(str(secret), "/data")


def _soft_link_through_external_group(file: Any, secret: Path) -> None:
    file["way"] = h5py.ExternalLink(str(secret), "/")
    file["data"] = h5py.SoftLink("/way/data")


def _virtual(file: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=PIXELS.shape, dtype=np.uint8)
    layout[:] = h5py.VirtualSource(str(secret), "data", shape=PIXELS.shape)
    file.create_virtual_dataset("data", layout)


def _external_storage(file: Any, secret: Path) -> None:
    file.create_dataset("data", PIXELS.shape, np.uint8, external=[(str(secret), 0, PIXELS.nbytes)])


def _labels_elsewhere(file: Any, secret: Path) -> None:
    file["data"] = PIXELS
    file["label"] = h5py.ExternalLink(str(secret), "/data")


@pytest.mark.parametrize(
    "plant", [_external_link, _soft_link_through_external_group, _virtual, _external_storage, _labels_elsewhere]
)
def test_hdf5_never_leaves_the_file(tmp_path: Path, plant: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plant(file, _secret(tmp_path))
    with pytest.raises(UnsafeFileError, match="another file"):
        read_images(tmp_path / "a.h5")


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


def test_hdf5_filters_from_plug_ins_and_double_compression_are_refused(tmp_path: Path) -> None:
    blosc = 32001
    for name, filters in {"plug-in": [(blosc, (0,) * 7)], "double": [(1, (9,)), (1, (9,))]}.items():
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 3, 16, 16))
        for code, values in filters:
            plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        with h5py.File(tmp_path / name, "w") as file:
            space = h5py.h5s.create_simple(PIXELS.shape)
            h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT8, space, plist)
        with pytest.raises(UnsafeFileError, match="unusual way"):
            read_images(tmp_path / name)


def test_hdf5_references_and_strings_are_no_numbers(tmp_path: Path) -> None:
    for i, dtype in enumerate([h5py.ref_dtype, h5py.string_dtype(), h5py.vlen_dtype(np.int64)]):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["x"] = PIXELS
            file.create_dataset("label", (4,), dtype=dtype)
        with pytest.raises(DataError, match="expected numbers"):
            read_images(tmp_path / f"{i}.h5")


def test_many_small_jpegs_of_large_images_are_bounded(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("L", (1000, 1000)).save(out, "JPEG")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        column = file.create_dataset("jpeg", (20,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(20):
            column[i] = np.frombuffer(out.getvalue(), dtype=np.uint8)
    assert _peak(tmp_path / "a.h5", max_bytes=16 * MIB) < 4 * MIB


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def _zip(path: Path, member: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("data.npy", member)
    return path


class _Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_npz_pickles_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = np.empty(1, dtype=object)
    bomb[0] = _Bomb()
    np.savez("a.npz", data=bomb)
    with pytest.raises(UnsafeFileError, match="pickled"):
        read_images("a.npz")
    plain = pickle.dumps(_Bomb())
    for member in (plain, _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", plain)):
        with pytest.raises(GoodnetError):
            read_images(_zip(tmp_path / "b.npz", member))
    assert not (tmp_path / "executed").exists()


def test_npz_sizes_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    huge = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 3, 1000, 1000), }\n")
    assert _peak(_zip(tmp_path / "huge.npz", huge)) < MIB
    bomb = _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, {64 * MIB}), }}\n", bytes(64 * MIB))
    assert _peak(_zip(tmp_path / "bomb.npz", bomb), max_bytes=MIB) < MIB
    small = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 2, 2), }\n", bytes(64 * MIB))
    tracemalloc.start()
    assert read_images(_zip(tmp_path / "tail.npz", small)).pixels.shape == (1, 1, 2, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB
    assert _peak(_zip(tmp_path / "lzma.npz", bomb, zipfile.ZIP_LZMA)) < MIB


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3, 2, 2), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 2, 2), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os'), }\n",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 1, 1, 1), }\n",
        "(" * 9000 + "\n",
    ],
)
def test_npz_headers_that_lie_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError):
        read_images(_zip(tmp_path / "a.npz", _npy(header, b"\x00" * 12)))


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


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header declares width x height, with next to nothing behind it."""

    def piece(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pieces = piece(b"IHDR", header) + piece(b"IDAT", zlib.compress(bytes(100))) + piece(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


@pytest.mark.parametrize("side", [5_000, 11_000, 100_000])
def test_a_png_that_declares_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(_png_of(side, side))
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


@pytest.mark.parametrize("kind", ["h5", "npz", "png", "jpeg"])
def test_a_truncated_file_is_an_error_and_never_a_traceback(tmp_path: Path, kind: str) -> None:
    whole = _valid(kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(whole)
    assert _read(path, kind).pixels.shape[1:] == (3, 16, 16)
    # The last bytes of a PNG (its end mark) and a JPEG (padding) carry no pixel, so these may still be read.
    for length in np.linspace(0, len(whole) - 40, 60, dtype=int):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            _read(path, kind)
        assert "\n" not in str(caught.value)


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
