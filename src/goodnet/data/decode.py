"""PNG and JPEG bytes -> pixels. Nothing but these two decoders runs, whatever the file is called.

Sizes come from the headers and are bounded before a pixel is decoded. What would need a guess is refused, and the
message says what to do: 16 bits a channel, CMYK, transparent pixels. Bilevel counts as grayscale, a palette as RGB.
EXIF orientation is not applied (as in torchvision's ImageFolder). Of an animation, the first frame counts.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from goodnet.data.columns import MAX_INFLATION, check_bytes
from goodnet.errors import DataError, GoodnetError

_GRAY_MODES, _RGB_MODES, _ALPHA_MODES = ("1", "L"), ("RGB", "P"), ("LA", "PA", "RGBA")
_PNG_BIT_DEPTH = 24  # its place in a PNG file: signature 8, chunk head 8, width 4, height 4

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type, the byte after
_JPEG_PIXELS = 1024  # a byte: each 8x8 block takes at least a bit, and twice that to be safe


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an encoded image says of itself: height and width in pixels, 1 (grayscale) or 3 (RGB) channels."""

    height: int
    width: int
    channels: int


def decode_all(names: Sequence[str], load: Callable[[int], bytes], *, max_bytes: int) -> npt.NDArray[np.uint8]:
    """Decodes images of one size.

    Grayscale throughout gives one channel. Where any image is RGB, the grayscale ones are repeated three times.

    Args:
        names: one an image, for messages.
        load: gives the encoded bytes of image i; called twice, so that headers are known before memory is taken.
        max_bytes: limit of the result.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        DataError: none at all, not PNG or JPEG, truncated, or not of the first one's size.
        UnsafeFileError: more than max_bytes.
    """
    if not names:
        raise DataError("expected at least one PNG or JPEG image, got none")
    headers = [read_header(load(i), name) for i, name in enumerate(names)]
    first = headers[0]
    for header, name in zip(headers, names):
        if (header.height, header.width) != (first.height, first.width):
            raise DataError(
                f"{name}: expected {first.height}x{first.width} (height x width) as {names[0]}, "
                f"got {header.height}x{header.width}; bring all images to one size"
            )
    shape = (len(names), max(header.channels for header in headers), first.height, first.width)
    check_bytes(math.prod(shape), max_bytes, f"{names[0]} and {len(names) - 1} more")
    pixels = np.empty(shape, dtype=np.uint8)
    for i, name in enumerate(names):
        pixels[i] = decode(load(i), name, channels=shape[1])
    return pixels


def read_header(encoded: bytes, name: str) -> Header:
    """Size and channels, nothing decoded but the header.

    Raises:
        DataError: not PNG or JPEG, or a mode that the module's docstring refuses.
    """
    with _opened(encoded, name) as image:
        _check_claim(image, encoded, name)
        return Header(height=image.height, width=image.width, channels=_channels(image, name, encoded))


def decode(encoded: bytes, name: str, *, channels: int) -> npt.NDArray[np.uint8]:
    """One image as (channels, H, W) uint8: grayscale repeated to RGB, RGB to grayscale as ITU-R 601 luma.

    Raises:
        DataError: not PNG or JPEG, truncated, refused mode, or transparent pixels.
    """
    with _opened(encoded, name) as image:
        _channels(image, name, encoded)
        opaque = _without_alpha(image, name)
        gray = opaque.mode in _GRAY_MODES
        array = np.asarray(opaque.convert("L" if gray or channels == 1 else "RGB"), dtype=np.uint8)
    return np.repeat(array[None], channels, axis=0) if array.ndim == 2 else np.moveaxis(array, 2, 0)


@contextmanager
def _opened(encoded: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's words on damaged metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
                yield image
    except GoodnetError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: expected a PNG or JPEG image, got something else") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: expected an image for a classifier, got one of too many pixels ({error})") from error
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise DataError(f"{name}: expected a whole image, got a damaged one ({error})") from error


def _check_claim(image: Image.Image, encoded: bytes, name: str) -> None:
    """Refuses more pixels than the bytes can hold: memory is taken for as many as the header says."""
    pixels, least = image.height * image.width, _JPEG_PIXELS * len(encoded)
    if image.format == "PNG":
        bits = encoded[_PNG_BIT_DEPTH] * _PNG_SAMPLES.get(encoded[_PNG_BIT_DEPTH + 1], 1)
        pixels, least = pixels * bits // 8, MAX_INFLATION * len(encoded)
    if pixels > least:
        raise DataError(
            f"{name}: expected a whole image, got too many pixels ({image.height}x{image.width}) "
            f"for {len(encoded)} bytes"
        )


def _channels(image: Image.Image, name: str, encoded: bytes) -> int:
    if image.format == "PNG" and encoded[_PNG_BIT_DEPTH] == 16:
        raise DataError(f"{name}: expected 8 bits a channel, got 16; convert it to 8 bits")
    if image.mode in (*_GRAY_MODES, "LA"):
        return 1
    if image.mode in (*_RGB_MODES, *_ALPHA_MODES):
        return 3
    raise DataError(f"{name}: expected grayscale or RGB, got {image.mode}; convert it to RGB")


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if alpha.min() < 255:
        raise DataError(f"{name}: expected an opaque image, got transparent pixels; put it on a background first")
    return image.convert("L") if image.mode in ("L", "LA") else image.convert("RGB")
