"""Pictures and sets of pictures: bombs, lies and cuts, and formats that are read as they mean, or refused."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.case import SIDE, Case, writes

MIB = 1 << 20
_RANDOM = np.random.default_rng(5)
GRAY = _RANDOM.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
RGB = _RANDOM.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
COLOURS = _RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)


def png_of(width: int, height: int, rows: bytes = bytes(100), *, bits: int = 8) -> bytes:
    """A PNG that declares width x height, with next to nothing behind it."""

    def piece(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 2, 0, 0, 0])
    pieces = piece(b"IHDR", header) + piece(b"IDAT", zlib.compress(rows, 9)) + piece(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    return make


def _palette() -> Image.Image:
    image = Image.fromarray(GRAY, "L").copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(COLOURS.tobytes())
    return image


def _text_bomb() -> bytes:
    """A compressed text chunk of 64 MiB."""
    body = b"comment\0\0" + zlib.compress(bytes(64 * MIB), 9)
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    whole = encoded(Image.fromarray(GRAY))()
    return whole[:33] + chunk + whole[33:]  # behind the header


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def zipped(member: bytes, method: int = zipfile.ZIP_DEFLATED) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            archive.writestr("data.npy", member)
        return out.getvalue()

    return make


def _of(shape: str) -> str:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"


def _link_out(folder: Path) -> Path:
    Image.fromarray(GRAY).save(folder / "outside.png")
    (folder / "set").mkdir()
    (folder / "set" / "a.png").symlink_to(folder / "outside.png")
    return folder / "set"


def _picture(name: str, file: str, content: Callable[[], bytes], message: str, **more: Any) -> Case:
    made = {"name": name, "kind": "pictures", "make": writes(file, content), "message": message, "role": "picture"}
    return Case(**{**made, **more})


def _set(name: str, content: Callable[[], bytes], message: str, **more: Any) -> Case:
    made = {"name": name, "kind": "pictures", "make": writes("set.npz", content), "message": message, "role": "set"}
    return Case(**{**made, **more})


_L, _C = GRAY[None], RGB.transpose(2, 0, 1)
_DEEP = Image.fromarray((GRAY.astype(np.uint16) << 8) + 7)
CASES = [
    _picture("a bomb of 10^10 pixels", "a.png", lambda: png_of(100_000, 100_000), "too many pixels|expected an image"),
    _picture("a bomb of 10^8 pixels, all there", "a.png", lambda: png_of(10_000, 10_000, bytes(30_010_000)),
             "too many pixels|expected an image of"),
    _picture("a text of 64 MiB in 64 KiB", "a.png", _text_bomb, "damaged|Decompressed"),
    _picture("sides of nothing", "a.png", lambda: png_of(0, 8), "damaged|expected"),
    _picture("fewer rows than declared", "a.png", lambda: png_of(SIDE, SIDE, b""), "damaged"),
    _picture("a text with a picture's name", "a.png", lambda: b"#!/bin/sh\ntouch x\n", "expected a PNG or JPEG"),
    _picture("SVG with a script", "a.png", lambda: b"<svg><script>alert(1)</script></svg>", "expected a PNG or JPEG"),
    _picture("PostScript, which Pillow would run", "a.jpg",
             lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "expected a PNG or JPEG"),
    _picture("GIF", "a.png", encoded(Image.fromarray(GRAY), "GIF"), "expected a PNG or JPEG"),
    _picture("16 bits", "a.png", encoded(_DEEP), "expected 8 bits a channel, got 16"),
    _picture("CMYK", "a.jpg", encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "got CMYK; convert it to RGB"),
    _picture("transparent pixels", "a.png", encoded(Image.fromarray(np.dstack([RGB, GRAY]), "RGBA")), "transparent"),
    _picture("another size", "a.png", encoded(Image.new("L", (9, 9))), "crop or scale it first"),
    _picture("a palette", "a.png", encoded(_palette()), "", pixels=COLOURS[GRAY].transpose(2, 0, 1)),
    _picture("one bit", "a.png", encoded(Image.fromarray(GRAY > 127)), "", pixels=(_L > 127) * np.uint8(255)),
    _picture("a PNG named .jpg", "a.jpg", encoded(Image.fromarray(RGB)), "", pixels=_C),
    _picture("opaque alpha", "a.png", encoded(Image.fromarray(np.dstack([RGB, GRAY * 0 + 255]), "RGBA")), "",
             pixels=_C),
    _set("an .npy that declares a terabyte", zipped(npy(_of("(1000000, 3, 1000, 1000)"))), "refused|limit|bytes"),
    _set("64 MiB in 64 KiB, LZMA", zipped(npy(_of(f"(1, 1, 1, {64 * MIB})"), bytes(64 * MIB)), zipfile.ZIP_LZMA),
         "compressed in an unusual way"),
    _set("a negative side", zipped(npy(_of("(-1, 3, 2, 2)"), bytes(12))), "expected|damaged"),
    _set("fewer bytes than declared", zipped(npy(_of("(2, 3, 2, 2)"), bytes(12))), "expected|damaged"),
    _set("a header that calls", zipped(npy(_of("__import__('os').mkdir('ran')"), bytes(12))), "expected|damaged"),
    _set("a header nested without end", zipped(npy("(" * 9000 + "\n", bytes(12))), "expected|damaged"),
    _set("a link out of the folder", lambda: b"", "link to outside", make=_link_out),
]  # fmt: skip
