"""What damages one format's parts and leaves its frame whole: sums, lengths and directories fit again afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import struct
import zipfile
import zlib
from random import Random
from typing import Any

import h5py
import numpy as np

from .mutate import Mutator, Others, damage, json_text, json_value, numbers

_PNG = b"\x89PNG\r\n\x1a\n"


def zipped(inner: Mutator, *, packed: bool = False) -> Mutator:
    """A zip's member changed by what fits its name, renamed or doubled; then zipped again, so that CRCs fit."""

    def change(data: bytes, rng: Random, others: Others) -> bytes:
        if not data.startswith(b"PK"):  # torch.save's older format
            return inner(data, rng, others)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        for at in rng.sample(range(len(members)), min(len(members), rng.choice((1, 1, 1, 2)))):
            name, content = members[at]
            action = rng.random()
            if action < 0.86:
                members[at] = (name, _member(name, inner)(content, rng, [other for _, other in members]))
            elif action < 0.9:
                members[at] = (rng.choice(members)[0], content)
            elif action < 0.95:
                members[at] = (damage(name.encode(), rng, []).decode("latin-1")[:200], content)
            else:
                members.append((name, damage(content, rng, [])))
        odd = rng.random() < (0.5 if packed else 0.03)
        return _zip(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)) if odd else 0)

    return change


def _member(name: str, inner: Mutator) -> Mutator:
    return json_text if name.endswith(".json") else inner


def _zip(members: list[tuple[str, bytes]], kind: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), content, kind)
    return out.getvalue()


def array(data: bytes, rng: Random, others: Others) -> bytes:
    """A `.npy`: its header's words and numbers, or its bytes."""
    if rng.random() < 0.3 or len(data) < 12:
        return damage(data, rng, others)
    size = int.from_bytes(data[8:10], "little")
    head = data[10 : 10 + size]
    if rng.random() < 0.5:
        head = numbers(head, rng, others)
    else:
        words = (
            b"'<f4'",
            b"'|O'",
            b"'<U9'",
            b"'<c8'",
            b"'|V4'",
            b"'>i8'",
            b"'<f2'",
            b"'|b1'",
            b"[('a', '<f4')]",
            b"''",
        )
        start = head.find(b"'descr': ") + 9
        head = head[:start] + rng.choice(words) + head[max(head.find(b",", start), start) :]
    return data[:8] + len(head).to_bytes(2, "little") + head + data[10 + size :]


def pickled(data: bytes, rng: Random, others: Others) -> bytes:
    """A pickle with instructions dropped, doubled, swapped or put in, and with other numbers and names."""
    try:
        at = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # not a pickle, such as a member of raw numbers
        return damage(data, rng, others)
    end = [*at[1:], at[-1] + 1]
    parts = [data[start:stop] for start, stop in zip(at, end)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(parts))
        action = rng.random()
        if action < 0.3:
            parts[i] = damage(parts[i], rng, others) if len(parts[i]) > 2 else rng.choice(_INSTRUCTIONS)
        elif action < 0.5:
            parts.insert(i, rng.choice(_INSTRUCTIONS))
        elif action < 0.65:
            del parts[i]
        elif action < 0.8:
            parts.insert(i, rng.choice(parts))
        else:
            j = rng.randrange(len(parts))
            parts[i], parts[j] = parts[j], parts[i]
        parts = parts or [b"."]
    return b"".join(parts) + data[end[-1] :]


_INSTRUCTIONS = (
    b"(", b".", b"0", b"1", b"2", b"N", b"}", b"]", b")", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87", b"b",
    b"R", b"Q", b"K\x05", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"h\x01",
    b"q\x01", b"j\xff\xff\x00\x00", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nSize\n", b"ctorch\ndevice\n", b"X\x04\x00\x00\x00echo",
    b"ctorch.nn.modules.linear\nLinear\n", b"c__builtin__\nset\n", b"G" + b"\xff" * 8, b"\x81", b"\x88", b"l", b"d",
)  # fmt: skip


def safetensors(data: bytes, rng: Random, others: Others) -> bytes:
    """The header's JSON, its length put right."""
    size = int.from_bytes(data[:8], "little")
    head = json_text(data[8 : 8 + size], rng, others)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


def tensors(data: bytes, rng: Random, others: Others) -> bytes:
    """A file of weights, in whichever of the two formats."""
    if data.startswith(b"PK"):
        return zipped(pickled)(data, rng, others)
    return rng.choice((safetensors, safetensors, damage))(data, rng, others)


def protobuf(data: bytes, rng: Random, others: Others) -> bytes:
    """A message with one to three fields changed, at any depth; lengths are written anew. The schema is not known."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _message(data, rng, 0)
    return data


def _message(data: bytes, rng: Random, depth: int) -> bytes:
    fields = _fields(data)
    if not fields:
        return damage(data, rng, ())
    at = rng.randrange(len(fields))
    number, kind, value = fields[at]
    action = rng.random()
    if kind == 2 and depth < 8 and action < 0.75:
        inner = _message if _fields(value) and rng.random() < 0.9 else (lambda text, rng, depth: damage(text, rng, ()))
        fields[at] = (number, kind, inner(value, rng, depth + 1))
    elif action < 0.4 and kind == 0:
        new = rng.choice((0, 1, 2, 3, 7, 8, 17, 255, 1 << 20, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, int(value) + 1))
        fields[at] = (number, kind, new)
    elif action < 0.55:
        del fields[at]
    elif action < 0.7:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif action < 0.85:
        other = rng.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    elif action < 0.93:
        fields[at] = (rng.choice((1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 20, 536870911)), kind, value)
    else:
        fields[at] = (number, 0, rng.randrange(300)) if kind == 2 else (number, 2, rng.randbytes(rng.randrange(9)))
    return b"".join(map(_field, fields))


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """(number, kind, value) of each field; none where the bytes are no message."""
    fields: list[tuple[int, int, Any]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if not number or kind not in (0, 1, 2, 5):
            return []
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = (8 if kind == 1 else 4, at) if kind != 2 else _varint(data, at)
            value, at = data[at : at + size], at + size
        if at > len(data):
            return []
        fields.append((number, kind, value))
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << (7 * i)
        if data[at + i] < 128:
            return value, at + i + 1
    return value, len(data) + 1


def _field(field: tuple[int, int, Any]) -> bytes:
    number, kind, value = field
    body = _digits(value) if kind == 0 else _digits(len(value)) + value if kind == 2 else value
    return _digits(number << 3 | kind) + body


def _digits(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 127:
        out, value = out + bytes((value & 127 | 128,)), value >> 7
    return out + bytes((value,))


def picture(data: bytes, rng: Random, others: Others) -> bytes:
    """A PNG's chunk or a JPEG's segment changed, its length and sum put right."""
    return _png(data, rng) if data.startswith(_PNG) else _jpeg(data, rng)


def _png(data: bytes, rng: Random) -> bytes:
    chunks, at = [], len(_PNG)
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    i, action = rng.randrange(len(chunks)), rng.random()
    kind, body = chunks[i]
    if action < 0.6:
        if kind == b"IDAT" and rng.random() < 0.7:
            body = zlib.compress(damage(zlib.decompress(body), rng, ()))
        else:
            body = damage(body, rng, ())
        chunks[i] = (kind, body)
    elif action < 0.75:
        chunks.insert(i, (rng.choice(_PNG_CHUNKS), rng.choice((body, rng.randbytes(rng.randrange(40)), _ZTXT))))
    elif action < 0.85:
        del chunks[i]
    else:
        j = rng.randrange(len(chunks))
        chunks[i], chunks[j] = chunks[j], chunks[i]
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


_PNG_CHUNKS = (b"tRNS", b"PLTE", b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA",
               b"IHDR", b"IDAT", b"IEND", b"sRGB", b"pHYs", b"cHRM")  # fmt: skip
_ZTXT = b"k\0\0" + zlib.compress(b"\0" * (8 << 20))


def _jpeg(data: bytes, rng: Random) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
        if segments[-1][0] == 0xDA:
            break
    if not segments:
        return damage(data, rng, ())
    i, action = rng.randrange(len(segments)), rng.random()
    marker, body = segments[i]
    if action < 0.6:
        segments[i] = (marker, damage(body, rng, ())[:65000])
    elif action < 0.75:
        segments.insert(i, (rng.choice((0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xDA, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)), body))
    elif action < 0.9:
        del segments[i]
    else:
        segments[i] = (rng.randrange(0xC0, 0xFF), body)
    head = b"".join(bytes((0xFF, kind)) + struct.pack(">H", len(part) + 2) + part for kind, part in segments)
    return data[:2] + head + data[at:]


def hdf5(data: bytes, rng: Random, others: Others) -> bytes:
    """An HDF5 file with a dataset, link or attribute replaced by what h5py itself writes."""
    memory = io.BytesIO(data)
    with h5py.File(memory, "a") as file:
        found: list[str] = []
        file.visit(found.append)
        for _ in range(rng.choice((1, 1, 2))):
            with contextlib.suppress(ValueError, TypeError, OSError, RuntimeError, KeyError):  # h5py may decline
                found = _change(file, found, rng)
    return memory.getvalue()


def _change(file: Any, found: list[str], rng: Random) -> list[str]:
    """Changes one thing; the names that are still there."""
    if not found or rng.random() < 0.45:
        _attribute(file if not found or rng.random() < 0.8 else file[rng.choice(found)], rng)
        return found
    name = rng.choice(found)
    _object(file, name, rng)
    return [other for other in found if other != name and not other.startswith(f"{name}/")]


def hdf5_or_bytes(data: bytes, rng: Random, others: Others) -> bytes:
    """For members of a zip of which some are HDF5."""
    return hdf5(data, rng, others) if data.startswith(b"\x89HDF") and rng.random() < 0.6 else damage(data, rng, others)


def graphs(data: bytes, rng: Random, others: Others) -> bytes:
    """A zip whose JSON members alone are changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.choice([i for i, (name, _) in enumerate(members) if name.endswith(".json")])
    members[at] = (members[at][0], json_text(members[at][1], rng, others))
    return _zip(members, zipfile.ZIP_STORED)


def _attribute(item: Any, rng: Random) -> None:
    names = list(item.attrs)
    if not names or rng.random() < 0.1:
        item.attrs[rng.choice(("keras_version", "model_config", "backend", "name"))] = rng.choice(_ATTRIBUTES)
        return
    name = "model_config" if "model_config" in names and rng.random() < 0.8 else rng.choice(names)
    old = item.attrs[name]
    if isinstance(old, str | bytes) and name == "model_config" and rng.random() < 0.95:
        text = old if isinstance(old, bytes) else old.encode()
        new = json_text(text, rng, ()).replace(b"\0", b" ") or b" "
        item.attrs[name] = new if rng.random() < 0.2 else new.decode("utf-8", "replace")
    elif rng.random() < 0.2:
        del item.attrs[name]
    else:
        item.attrs[name] = rng.choice(_ATTRIBUTES)


_ATTRIBUTES: tuple[Any, ...] = ("", "x", "1", b"{}", b"\xff\xfe", 5, 0.5, [1, 2], ["a", "b"], "[" * 5000,
                                np.zeros(3000, np.float32), h5py.Empty("f4"))  # fmt: skip


def _object(file: Any, name: str, rng: Random) -> None:
    old = file[name]
    values = old[()] if isinstance(old, h5py.Dataset) else None
    group, short = old.parent, name.rpartition("/")[2]
    del old
    action = rng.random()
    if action < 0.1:
        group.move(short, rng.choice(("kernel:0", "data", "label", "vars", "0", "jpeg", "x/y/kernel", "a" * 300)))
        return
    del group[short]
    if action < 0.2:
        return
    if action < 0.3:
        links = (h5py.SoftLink("/nothing"), h5py.ExternalLink("canary.h5", "data"), h5py.SoftLink("/"), file["/"])
        group[short] = rng.choice(links)
    elif action < 0.4 or values is None or h5py.check_vlen_dtype(values.dtype):
        group.create_group(short)
    else:
        _dataset(group, short, values, rng)


def _dataset(group: Any, short: str, values: Any, rng: Random) -> None:
    shape = values.shape
    kinds = ("f4", "f2", "f8", "i8", "u1", "?", "c8", "S3", [("a", "f4")], h5py.string_dtype(), h5py.vlen_dtype("u1"))
    action = rng.random()
    if action < 0.25:
        group.create_dataset(short, shape, rng.choice(kinds))
    elif action < 0.5:
        sides = list(shape) or [1]
        sides[rng.randrange(len(sides))] = rng.choice((0, 1, 2, 3, 5, 1 << 20, 1 << 33))
        group.create_dataset(short, sides, values.dtype, chunks=tuple(max(1, min(side, 8)) for side in sides))
    elif action < 0.6:
        group.create_dataset(short, data=values.T)
    elif action < 0.7:
        group.create_dataset(short, data=rng.choice((np.float32(1), h5py.Empty("f4"), np.zeros((2,) * 9, np.float32))))
    elif action < 0.9 and shape:
        options = rng.choice(({"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {"compression": "lzf"}))
        group.create_dataset(short, data=values, chunks=True, maxshape=(None,) * len(shape), **options)
    else:
        odd = np.array(values, np.float64)
        odd.flat[rng.randrange(max(odd.size, 1)) if odd.size else slice(None)] = rng.choice((np.nan, np.inf, 1e300, -1))
        group.create_dataset(short, data=odd)


def json_bytes(data: bytes, rng: Random, others: Others) -> bytes:
    """A record: its values, its text or its bytes."""
    return rng.choice((json_text, json_text, json_text, numbers, damage))(data, rng, others)


def _goodnet_words(head: dict[str, Any], rng: Random) -> dict[str, Any]:
    about = json_value(json.loads(head["__metadata__"]["goodnet"]), rng)
    return {**head, "__metadata__": {"goodnet": json.dumps(about)}}


def goodnet(data: bytes, rng: Random, others: Others) -> bytes:
    """The recipe in a GoodNet's header, most of the time; else as any safetensors file."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return safetensors(data, rng, others)
    head = json.loads(data[8 : 8 + size])
    for _ in range(rng.choice((1, 1, 2))):
        head = _goodnet_words(head, rng)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
