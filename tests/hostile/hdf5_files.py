"""HDF5 that leaves its file, lies about sizes or never ends, as weights and as sets of images."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.case import CANARY, Case

MIB = 1 << 20
SECRET = "secret.h5"  # lies beside the file and holds numbers that must not be read
SHAPES = {
    "conv_1": (4, 4, 3, 20),
    "conv_2": (3, 3, 20, 40),
    "conv_3": (3, 3, 40, 60),
    "conv_4": (2, 2, 60, 80),
    "fc_1": (1200, 160),
    "fc_2": (960, 160),
    "output": (160, 5),
}
PIXELS = np.random.default_rng(2).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
Plant = Callable[[Any, str], None]
"""Puts a trap under a name into a group."""


def deepid_file(path: Path) -> Path:
    """A DeepID's weights, as the competition stores them."""
    with h5py.File(path, "w") as file:
        for name, shape in SHAPES.items():
            file[f"{name}/{name}/kernel:0"] = np.full(shape, 0.01, dtype=np.float32)
            file[f"{name}/{name}/bias:0"] = np.zeros(shape[-1], dtype=np.float32)
    return path


def _secret(folder: Path, shape: tuple[int, ...], dtype: str) -> None:
    with h5py.File(folder / SECRET, "w") as file:
        file["data"] = np.full(shape, 3, dtype)
    np.full(shape, 3, dtype).tofile(folder / "secret.raw")


def external_link(group: Any, key: str) -> None:
    group[key] = h5py.ExternalLink(SECRET, "/data")


def link_through_a_group(group: Any, key: str) -> None:
    group.file["way"] = h5py.ExternalLink(SECRET, "/")
    group[key] = h5py.SoftLink("/way/data")


def soft_link(group: Any, key: str) -> None:
    group.file["elsewhere"] = h5py.ExternalLink(SECRET, "/data")
    group[key] = h5py.SoftLink("/elsewhere")


def virtual(group: Any, key: str, shape: tuple[int, ...], dtype: str) -> None:
    layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
    layout[:] = h5py.VirtualSource(SECRET, "data", shape=shape)
    group.create_virtual_dataset(key, layout)


def external_storage(group: Any, key: str, shape: tuple[int, ...], dtype: str) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    group.create_dataset(
        key, shape, dtype, external=[(str(Path(group.file.filename).with_name("secret.raw")), 0, size)]
    )


def never_written(group: Any, key: str) -> None:
    group.create_dataset(key, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))


def many_sides(group: Any, key: str) -> None:
    group.create_dataset(key, (1 << 16,) * 3, "u1", chunks=(64, 64, 64))


def packed_zeros(group: Any, key: str) -> None:
    data = group.create_dataset(key, (1 << 11, 1 << 13), "f4", chunks=(16, 1 << 13), compression=9)
    data[:] = np.zeros(data.shape, dtype=np.float32)  # 64 MiB in 64 KiB


def texts(group: Any, key: str) -> None:
    group.create_dataset(key, (4,), h5py.string_dtype())


def references(group: Any, key: str) -> None:
    group.create_dataset(key, (4,), h5py.ref_dtype)


def rows_of_any_length(group: Any, key: str) -> None:
    group.create_dataset(key, (4,), h5py.vlen_dtype(np.int64))


def pairs(group: Any, key: str) -> None:
    group.create_dataset(key, (3,), np.dtype([("a", "f4"), ("b", "i4")]))


def plug_in(group: Any, key: str) -> None:
    """A filter that HDF5 would look for among the libraries of the machine (32001: blosc)."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 3, 16, 16))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,) * 7)
    space = h5py.h5s.create_simple(PIXELS.shape)
    h5py.h5d.create(group.id, key.encode(), h5py.h5t.NATIVE_UINT8, space, plist)


LINKS: dict[str, tuple[Plant, str]] = {
    "an external link": (external_link, "external link|another file"),
    "a soft link to an external one": (soft_link, "soft link|external link|another file"),
    "a soft link through an external group": (link_through_a_group, "soft link|external link|another file"),
}
NOT_NUMBERS: dict[str, tuple[Plant, str]] = {
    "texts for numbers": (texts, "expected plain numbers|expected numbers"),
    "references for numbers": (references, "expected plain numbers|expected numbers"),
    "rows of any length for numbers": (rows_of_any_length, "expected plain numbers|expected numbers"),
    "a filter from a plug-in": (plug_in, "load a plugin|unusual way"),
}


def follows(key: str) -> Callable[[Path], object]:
    """What plain h5py does: the numbers of the other file. Where they come through, the canary is there."""

    def read(path: Path) -> None:
        with h5py.File(path) as file:
            if int(np.ravel(file[key][()])[0]) == 3:
                Path(os.environ[CANARY]).write_text("reached")

    return read


def _weights(plant: Plant) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _secret(folder, SHAPES["fc_1"], "f4")
        path = deepid_file(folder / "net.h5")
        with h5py.File(path, "a") as file:
            del file["fc_1/fc_1/kernel:0"]
            plant(file["fc_1/fc_1"], "kernel:0")
        return path

    return make


def _set(plant: Plant, key: str = "data") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _secret(folder, PIXELS.shape if key == "data" else (4,), "u1")
        with h5py.File(folder / "set.h5", "w") as file:
            if key != "data":
                file["data"] = PIXELS
            plant(file, key)
        return folder / "set.h5"

    return make


def _shaped(plant: Callable[..., None], shape: tuple[int, ...], dtype: str) -> Plant:
    return lambda group, key: plant(group, key, shape, dtype)


def _config(value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(deepid_file(folder / "net.h5"), "a") as file:
            file.attrs.create("model_config", value)
        return folder / "net.h5"

    return make


def _deep(folder: Path) -> Path:
    with h5py.File(deepid_file(folder / "net.h5"), "a") as file:
        file.create_group("/".join("g" * 400))
    return folder / "net.h5"


def _wide(folder: Path) -> Path:
    with h5py.File(deepid_file(folder / "net.h5"), "a", libver="latest") as file:
        for i in range(20_001):
            file[f"many/{i}"] = file["fc_1"]
    return folder / "net.h5"


def _cycle(folder: Path) -> Path:
    with h5py.File(deepid_file(folder / "net.h5"), "a") as file:
        file["fc_1/again"], file["loop"] = file["/"], file["fc_1"]
    return folder / "net.h5"


def _inflating(folder: Path) -> Path:
    """A chunk that unpacks to more than its size."""
    with h5py.File(folder / "set.h5", "w") as file:
        data = file.create_dataset("data", (1, 1, 64, 64), np.uint8, chunks=(1, 1, 64, 64), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(256 * MIB), 9))
    return folder / "set.h5"


def _model(name: str, make: Callable[[Path], Path], message: str, **more: Any) -> Case:
    options = ("--arch", "deepid")
    return Case(**{"name": name, "kind": "HDF5", "make": make, "message": message, "options": options, **more})


def _images(name: str, make: Callable[[Path], Path], message: str, **more: Any) -> Case:
    return Case(**{"name": f"{name}, images", "kind": "HDF5", "make": make, "message": message, "role": "set", **more})


_ELSEWHERE = "takes its numbers from other files|another file"
_RAW: dict[str, Callable[..., None]] = {"a virtual dataset": virtual, "external raw storage": external_storage}
CASES = [
    *(_model(name, _weights(plant), text, fire=follows("fc_1/fc_1/kernel:0")) for name, (plant, text) in LINKS.items()),
    *(
        _model(name, _weights(_shaped(plant, SHAPES["fc_1"], "f4")), _ELSEWHERE, fire=follows("fc_1/fc_1/kernel:0"))
        for name, plant in _RAW.items()
    ),
    *(_images(name, _set(plant), text, fire=follows("data")) for name, (plant, text) in LINKS.items()),
    *(
        _images(name, _set(_shaped(plant, PIXELS.shape, "u1")), _ELSEWHERE, fire=follows("data"))
        for name, plant in _RAW.items()
    ),
    _images("an external link for labels", _set(external_link, "label"), "another file", fire=follows("label")),
    *(_model(name, _weights(plant), text) for name, (plant, text) in NOT_NUMBERS.items()),
    *(_images(name, _set(plant, "label"), text) for name, (plant, text) in NOT_NUMBERS.items()),
    _model("pairs for numbers", _weights(pairs), "expected plain numbers"),
    _model("a shape that was never written", _weights(never_written), "claims"),
    _model("zeros packed 1000 to 1", _weights(packed_zeros), "claims"),
    _images("a shape beyond memory", _set(many_sides), "refused|over the limit|expected"),
    _images("a chunk that unpacks to 256 MiB", _inflating, "holds more than the 4,096 bytes"),
    _model("groups 400 deep", _deep, "levels"),
    _model("20,001 names of one group", _wide, "a group of 20001 entries"),
    _model("groups that hold each other", _cycle, ""),
    _model("two configs for one", _config(np.array([b"{}", b"{}"])), "one string"),
    _model("a config that is no JSON", _config(b"{"), "not JSON"),
    _model("a config nested without end", _config(b"[" * 30_000), "not JSON"),
]  # fmt: skip
