"""What the fuzzer has found, each made again by code: a traceback, noise, a hang, or memory taken on a file's word."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fuzz import seeds
from goodnet import strict_json
from goodnet.data.hdf5_heap import heaps_are_whole
from goodnet.data.readers import read_images
from goodnet.errors import DataError, GoodnetError, ModelError, UnsafeFileError
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.inspect_file import inspect_file
from goodnet.models.layer_graph import layer_graph
from goodnet.models.load import load_classifier
from goodnet.record import read_record
from goodnet.report.page import read_parts, render_report
from goodnet.triggers.files import read_triggers
from goodnet.work import Work
from report_records import backdoor, label, scan


@pytest.fixture(autouse=True)
def _no_noise() -> Iterator[None]:
    """A warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def refusal(read: Callable[[Path], Any], path: Path, kind: type[GoodnetError]) -> str:
    """The message, one line, for which no more than 64 MiB were taken, imports of torch among them."""
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def whole(target: str, name: str, folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seeds.MAKERS[target](folder)[name]


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rezipped(content: bytes, change: Callable[[dict[str, bytes]], None], kind: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return out.getvalue()


def heap_file(path: Path) -> Path:
    """Text of any length lies in a heap; its free object is given the size 0."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": []})
        file["data"] = np.zeros(3, np.uint8)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    first = int.from_bytes(content[heap + 24 : heap + 32], "little")
    free = heap + 32 + -(-first // 8) * 8
    assert content[free : free + 2] == b"\0\0"
    content[free + 8 : free + 16] = bytes(8)
    return saved(path, bytes(content))


def test_a_heap_that_hdf5_walks_for_ever(tmp_path: Path) -> None:
    path = heap_file(tmp_path / "net.h5")
    script = (
        "import sys; from goodnet.errors import GoodnetError\n"
        "from goodnet.models.load import load_classifier; from goodnet.data.readers import read_images\n"
        "for read in (load_classifier, read_images):\n"
        "    try: read(sys.argv[1])\n"
        "    except GoodnetError as error: print('damaged' in str(error))\n"
    )  # in a process of its own: no timer is heard inside libhdf5
    run = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert done.stderr == ""


def test_heaps_of_any_shape(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for i in range(300):
            file.attrs[f"a{i}"] = "x" * (i * 7 % 4099)
        file.create_dataset("jpeg", (50,), h5py.vlen_dtype(np.uint8))[:] = [
            np.zeros(i * 211, np.uint8) for i in range(50)
        ]
        for i in range(0, 300, 2):
            del file.attrs[f"a{i}"]
    assert heaps_are_whole(tmp_path / "many.h5")
    assert heaps_are_whole((tmp_path / "many.h5").read_bytes())
    content = (tmp_path / "many.h5").read_bytes()
    heap = content.index(b"GCOL")
    for place, value in ((8, 1 << 40), (24, 1 << 40), (24, 4096)):  # of the heap, of its first object
        assert not heaps_are_whole(content[: heap + place] + value.to_bytes(8, "little") + content[heap + place + 8 :])
    assert not heaps_are_whole(content[: heap + 12])
    saved(tmp_path / "empty", b"")
    assert heaps_are_whole(tmp_path / "empty")


def test_numbers_that_float32_does_not_hold(tmp_path: Path) -> None:
    content = whole("keras-weights", "mlp--old.h5", tmp_path)
    with h5py.File(saved(tmp_path / "net.h5", content), "a") as file:
        name = next(key for key in file["fc1/fc1"] if "kernel" in key)
        del file[f"fc1/fc1/{name}"]
        file[f"fc1/fc1/{name}"] = np.full((16, 4), 1e300)
    assert "infinite" in refusal(lambda path: load_classifier(path, arch="mlp"), tmp_path / "net.h5", ModelError)


@pytest.mark.parametrize(
    ("kind", "key"), [("BatchNormalization", "epsilon"), ("LeakyReLU", "negative_slope"), ("Rescaling", "scale")]
)
def test_settings_that_no_float_holds(kind: str, key: str, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == kind)
        assert key in layer["config"]
        layer["config"][key] = 10**400
        members["config.json"] = json.dumps(config).encode()

    content = rezipped(whole("keras-zip", "none--graph.keras", tmp_path), change)
    refusal(load_classifier, saved(tmp_path / "net.keras", content), ModelError)


def test_names_from_files_stay_on_one_line(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        config["config"]["layers"][1]["class_name"] = "\n\x1b[31m\u202e\u2028Conv"
        members["config.json"] = json.dumps(config).encode()

    content = rezipped(whole("keras-zip", "none--row.keras", tmp_path), change)
    message = refusal(load_classifier, saved(tmp_path / "net.keras", content), ModelError)
    assert message.isprintable()
    assert "[31m" in message
    assert str(DataError("a\nb\x1b\u202e\u00a0\ud800é")) == "a b\ufffd\ufffd \ufffdé"


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_keras_zips_packed_without_a_bound(kind: int, tmp_path: Path) -> None:
    bomb = rezipped(
        whole("keras-zip", "none--row.keras", tmp_path),
        lambda members: members.update({"config.json": b" " * (60 << 20)}),
        kind,
    )
    tracemalloc.reset_peak()
    assert "packed as Keras never does" in refusal(
        load_classifier, saved(tmp_path / "net.keras", bomb), UnsafeFileError
    )
    tracemalloc.reset_peak()


def test_a_keras_zip_whose_deflated_member_is_damaged(tmp_path: Path) -> None:
    content = bytearray(rezipped(whole("keras-zip", "none--row.keras", tmp_path), lambda _: None, zipfile.ZIP_DEFLATED))
    start = content.index(b"config.json") + len("config.json")
    content[start : start + 30] = b"\xff" * 30
    assert "damaged" in refusal(load_classifier, saved(tmp_path / "net.keras", bytes(content)), ModelError)


@pytest.mark.parametrize(("target", "name"), [("torch", "mlp--plain.pt"), ("keras-zip", "none--row.keras")])
def test_zips_of_a_later_version(target: str, name: str, tmp_path: Path) -> None:
    content = bytearray(whole(target, name, tmp_path))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 6] = 255
    assert "damaged archive" in refusal(load_classifier, saved(tmp_path / "net", bytes(content)), ModelError)


def test_layers_of_width_0_are_nothing_to_talk_of(tmp_path: Path) -> None:
    state = {"conv1.0.weight": (16, 1, 5, 5), "conv2.0.weight": (32, 16, 5, 5), "fc1.0.weight": (4, 30),
             "fc2.0.weight": (3, 4)}  # fmt: skip
    save_file({key: torch.zeros(shape) for key, shape in state.items()}, tmp_path / "net.safetensors")
    assert inspect_file(tmp_path / "net.safetensors").suggested == ()
    refusal(lambda path: load_classifier(path, arch="cnn"), tmp_path / "net.safetensors", ModelError)


def test_onnx_names_that_are_no_text(tmp_path: Path) -> None:
    content = whole("onnx", "none--flat.onnx", tmp_path)
    assert content.count(b"BatchNormalization") == 1
    for old, new in ((b"BatchNormalization", b"BatchNormalizatio\xff"), (b"\x0a\x01d\x12", b"\x0a\x01\xff\x12")):
        message = refusal(load_classifier, saved(tmp_path / "net.onnx", content.replace(old, new)), ModelError)
        assert "UTF-8" in message


def test_onnx_operators_that_give_nothing_or_are_set_to_nonsense(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(whole("onnx", "none--mean.onnx", tmp_path))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    del node.output[:]
    assert "gives nothing" in refusal(
        load_classifier, saved(tmp_path / "none.onnx", model.SerializeToString()), ModelError
    )
    model = onnx.load_model_from_string(whole("onnx", "none--flat.onnx", tmp_path))
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.attribute.append(onnx.helper.make_attribute("alpha", float("inf")))
    assert "infinite" in refusal(
        load_classifier, saved(tmp_path / "infinite.onnx", model.SerializeToString()), ModelError
    )


def test_onnx_constants_without_a_value_and_operators_on_two_lines(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(whole("onnx", "none--mean.onnx", tmp_path))
    node = next(node for node in model.graph.node if node.op_type == "Constant")
    del node.attribute[:]
    assert "does not fit" in refusal(
        load_classifier, saved(tmp_path / "constant.onnx", model.SerializeToString()), ModelError
    )
    for changes in ({"op_type": "Re\nlu"}, {"op_type": "Re\nlu", "domain": "x"}):
        model = onnx.load_model_from_string(whole("onnx", "none--flat.onnx", tmp_path))
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        for key, value in changes.items():
            setattr(node, key, value)
        refusal(load_classifier, saved(tmp_path / "lines.onnx", model.SerializeToString()), ModelError)


ODD: dict[str, Callable[[dict[str, Any]], None]] = {
    "output": lambda node: node["outputs"][0]["as_tensor"].update(name={"a": 1}),
    "input": lambda node: node["inputs"][0]["arg"]["as_tensor"].update(name=["a"]),
    "weight": lambda node: node["inputs"][1].update(arg={"as_ints": {"a": 1}}),
    "padding": lambda node: node["inputs"].append({"name": "groups", "arg": {"as_ints": [1]}}),
}


@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8), reason="written from PyTorch 2.8 on")
@pytest.mark.parametrize("where", ODD)
def test_exported_graphs_with_something_else_where_a_word_belongs(where: str, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("models/model.json"))
        model = json.loads(members[name])
        nodes = model["graph_module"]["graph"]["nodes"]
        ODD[where](next(node for node in nodes if node["target"] == "torch.ops.aten.conv2d.default"))
        members[name] = json.dumps(model).encode()

    content = rezipped(whole("export", "none--mixed.pt2", tmp_path), change)
    refusal(load_classifier, saved(tmp_path / "net.pt2", content), ModelError)


def test_pillows_words_on_metadata(tmp_path: Path) -> None:
    pixels = Image.fromarray(np.zeros((6, 5, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "words" * 20
    pixels.save(tmp_path / "0.jpg", exif=exif)
    content = (tmp_path / "0.jpg").read_bytes()
    at = content.index(b"Exif\0\0")
    cut = int.from_bytes(content[at - 2 : at], "big") - 60
    end = at - 2 + cut
    (tmp_path / "0.jpg").write_bytes(content[: at - 2] + cut.to_bytes(2, "big") + content[at:end] + content[end + 60 :])
    out = io.BytesIO()
    pixels.save(out, "PNG")
    actl = b"\0\0\0\x08acTL" + bytes(8) + zipfile.crc32(b"acTL" + bytes(8)).to_bytes(4, "big")
    (tmp_path / "1.png").write_bytes(out.getvalue()[:33] + actl + out.getvalue()[33:])
    assert read_images(tmp_path).pixels.shape == (2, 3, 6, 5)


def test_more_pixels_than_the_bytes_can_hold(tmp_path: Path) -> None:
    for suffix, place in ((".png", 16), (".jpg", 0)):
        out = io.BytesIO()
        Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(out, "PNG" if suffix == ".png" else "JPEG")
        content = bytearray(out.getvalue())
        if suffix == ".png":
            content[place : place + 8] = (9000).to_bytes(4, "big") * 2
            content[29:33] = zipfile.crc32(bytes(content[12:29])).to_bytes(4, "big")
        else:
            place = content.index(b"\xff\xc0") + 5
            content[place : place + 4] = (9000).to_bytes(2, "big") * 2
        folder = tmp_path / suffix
        folder.mkdir()
        saved(folder / f"a{suffix}", bytes(content))
        assert "(9000x9000) for" in refusal(read_images, folder, DataError)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_images_of_one_colour_are_as_small_as_can_be(mode: str, tmp_path: Path) -> None:
    size = (4000, 3000)
    Image.new(mode, size).save(tmp_path / "a.png", optimize=True, compress_level=9)
    assert read_images(tmp_path).pixels.shape[2:] == size[::-1]
    if mode in ("L", "RGB"):
        (tmp_path / "a.png").unlink()
        Image.new(mode, size).save(tmp_path / "a.jpg", quality=1, optimize=True, progressive=True, subsampling=2)
        assert read_images(tmp_path).pixels.shape[2:] == size[::-1]


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_labels_in_half_precision(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 3, 3), np.uint8)
    path = npz(tmp_path / "a.npz", data=images, label=np.array([0, 3], np.float16))
    labels = read_images(path).labels
    assert labels is not None
    assert labels.tolist() == [0, 3]


def header(shape: str, descr: str = "'|u1'") -> bytes:
    words = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(words).to_bytes(2, "little") + words


def test_arrays_that_claim_more_than_the_archive_holds(tmp_path: Path) -> None:
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
            archive.writestr("data.npy", header("(1000, 3, 1000, 1000)") + bytes(1000))
        assert "claims 3,000,000,000 bytes" in refusal(read_images, tmp_path / "a.npz", DataError)


def test_places_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (200, 3, 1000, 1000), "u1", chunks=(1, 3, 100, 100), compression="gzip")
        file["label"] = np.zeros(200)
    assert "600,000,000 bytes but 0 are stored" in refusal(read_images, tmp_path / "a.h5", UnsafeFileError)


DAMAGED = {
    "claims 96 GiB": header("(25769803776,)", "'<f4'"),
    "an open bracket": header("(2, (3"),
    "text of its own": b"no array at all",
    "a header of Python 2": header("(2L, 3L)"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_triggers_that_are_none(name: str, tmp_path: Path) -> None:
    content = whole("triggers", "triggers.npz", tmp_path)
    for key in ("labels", "masks", "flagged"):
        damaged = rezipped(content, lambda members, key=key: members.update({f"{key}.npy": DAMAGED[name]}))  # type: ignore[misc]
        refusal(read_triggers, saved(tmp_path / "triggers.npz", damaged), DataError)


@pytest.mark.parametrize("name", DAMAGED)
def test_checkpoints_that_are_none_are_left_out(name: str, tmp_path: Path) -> None:
    content = whole("work", "000000.npz", tmp_path)
    saved(tmp_path / "000000.npz", content)
    damaged = rezipped(content, lambda members: members.update({"long/0/mask.npy": DAMAGED[name]}))
    saved(tmp_path / "000001.npz", damaged)
    named = rezipped(content, lambda members: members.update({"long/x/mask.npy": members["long/0/mask.npy"]}))
    saved(tmp_path / "000002.npz", named)
    work = Work(tmp_path)
    assert work.resumed == 4
    assert sorted(work.done("long")) == [0, 7]
    assert [array.tolist() for array in work.done("long")[0].values()] == [[1.0] * 3]


@pytest.mark.parametrize(
    "change", [("1234", "1" + "0" * 400), ("200.0", "1" + "0" * 400), ("1234", "-" + "9" * 30)], ids=str
)
def test_records_with_numbers_beyond_all_bounds(change: tuple[str, str], tmp_path: Path) -> None:
    text = whole("records", "scan.json", tmp_path).decode()
    assert change[0] in text
    path = saved(tmp_path / "scan.json", text.replace(*change, 1).encode())
    assert "64 bits" in refusal(read_record, path, DataError)


def test_records_nested_without_end(tmp_path: Path) -> None:
    refusal(read_record, saved(tmp_path / "scan.json", b"[" * 100_000), DataError)


def test_zips_that_claim_to_lie_on_several_disks(tmp_path: Path) -> None:
    """Whether such a file is a zip at all, zipfile answers with an error."""
    for target, name, read, kind in (
        ("torch", "mlp--plain.pt", lambda path: load_classifier(path, arch="mlp"), ModelError),
        ("npz", "bytes.npz", read_images, DataError),
    ):
        content = whole(target, name, tmp_path)
        at = content.rindex(b"PK\x05\x06")
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 7, 0, 9)
        refusal(read, saved(tmp_path / name, content[:at] + locator + content[at:]), kind)


@pytest.mark.parametrize(
    ("target", "name", "key", "read"),
    [
        ("csaw", "packed.h5", "data", read_images),
        ("keras-weights", "mlp--old.h5", "fc1/fc1/kernel:0", lambda path: load_classifier(path, arch="mlp")),
    ],
)
def test_a_chunk_that_claims_more_than_the_file(
    target: str, name: str, key: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    content = whole(target, name, tmp_path)
    with h5py.File(io.BytesIO(content)) as file:
        size = file[key].id.get_chunk_info(0).size
    head = struct.pack("<IIQ", size, 0, 0)
    assert head in content
    damaged = content.replace(head, struct.pack("<IIQ", 0xFFFFFF00, 0, 0))
    message = refusal(read, saved(tmp_path / name, damaged), UnsafeFileError)
    assert "more than the file has" in message


def test_weights_that_inflate_to_more_than_they_declare(tmp_path: Path) -> None:
    """As images' chunks; HDF5 would inflate them to the end."""
    path = saved(tmp_path / "mlp.h5", whole("keras-weights", "mlp--old.h5", tmp_path))
    with h5py.File(path, "r+") as file:
        dataset = file["fc1/fc1/kernel:0"]
        packed = zlib.compressobj()
        parts = [packed.compress(dataset[()].tobytes()), *(packed.compress(bytes(1 << 20)) for _ in range(300))]
        dataset.id.write_direct_chunk((0, 0), b"".join([*parts, packed.flush()]))
    message = refusal(lambda path: load_classifier(path, arch="mlp"), path, UnsafeFileError)
    assert "a chunk that it declares" in message


@pytest.mark.parametrize("chunks", [None, True])
def test_a_picture_that_claims_more_than_the_file(chunks: bool | None, tmp_path: Path) -> None:
    picture = np.frombuffer(whole("pictures", "plain.jpg", tmp_path), np.uint8)
    path = tmp_path / "encoded.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("jpeg", (4,), h5py.vlen_dtype(np.uint8), chunks=chunks)
        for i in range(4):
            data[i] = picture
        file["label"] = np.arange(4) % 2
        file.flush()
        at = data.id.get_offset() if chunks is None else data.id.get_chunk_info(0).byte_offset
    assert len(read_images(path)) == 4
    content = bytearray(path.read_bytes())
    content[at + 16 : at + 20] = (1 << 29).to_bytes(4, "little")
    assert "more bytes than the file" in refusal(read_images, saved(path, bytes(content)), UnsafeFileError)


def test_records_with_a_norm_beyond_all_pixels(tmp_path: Path) -> None:
    made = strict_json.to_json(scan(labels=(label(0), label(1, mask_norm=1e308), backdoor(2))))
    saved(tmp_path / "scan.json", made.encode())
    assert "Suspect" in render_report(read_parts(tmp_path))


def test_a_layer_that_claims_more_weights_than_the_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of 4096 x 4096 took 768 MiB before its weights were compared."""

    def claim(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        conv = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv2D")
        conv["config"].update(kernel_size=[4096, 4096], padding="same")
        members["config.json"] = json.dumps(config).encode()

    def to_empty(net: torch.nn.Module, **_: Any) -> torch.nn.Module:
        raise AssertionError("memory was taken for it")

    monkeypatch.setattr(torch.nn.Module, "to_empty", to_empty)
    path = saved(tmp_path / "net.keras", rezipped(whole("keras-zip", "none--graph.keras", tmp_path), claim))
    assert ".weight is (4, 3, 3, 3), expected (4, 3, 4096, 4096)" in refusal(load_classifier, path, ModelError)


@pytest.mark.parametrize("block", [0, 512])
def test_free_places_that_go_round_in_a_circle(block: int, tmp_path: Path) -> None:
    """HDF5 takes memory for each, and took all there was."""
    path = tmp_path / "many.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        file["data"], file["label"] = np.zeros((4, 3, 5, 5), np.uint8), np.arange(4) % 2
        for number in range(50):
            file.create_group(f"a group with name {number}")
        for number in range(0, 50, 3):
            del file[f"a group with name {number}"]
    assert len(read_images(path)) == 4
    content = bytearray(path.read_bytes())
    heap = content.index(b"HEAP")
    first, at = struct.unpack_from("<QQ", content, heap + 16)
    assert first != 1
    struct.pack_into("<Q", content, block + at + first, first)
    assert "a damaged one" in refusal(read_images, saved(path, bytes(content)), DataError)
    assert "a damaged one" in refusal(lambda path: load_classifier(path, arch="mlp"), path, ModelError)


@pytest.mark.parametrize("version", [None, "latest"])
def test_addresses_of_another_width(version: str | None, tmp_path: Path) -> None:
    """A file could else have heaps in which nobody looks."""
    path = tmp_path / "narrow.h5"
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_sizes(4, 4)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    if version:
        access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, plist, access)) as file:
        file["data"], file["label"] = np.zeros((4, 3, 5, 5), np.uint8), np.arange(4) % 2
    assert "a damaged one" in refusal(read_images, path, DataError)


@pytest.mark.parametrize("shape", [(3, 4096, 4096), (3, 1000, 1000)])
def test_images_of_gigabytes_are_not_run_through_a_net_to_draw_it(shape: Any, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 20, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    spec = InputSpec(channels=3, height=shape[1], width=shape[2])
    net = Classifier(net=layers, input=spec, classes=20, recipe=Recipe(arch="none"))
    with pytest.raises(ModelError, match="its layers are not followed"):
        layer_graph(net)
