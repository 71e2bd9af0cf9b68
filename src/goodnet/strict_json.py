"""Frozen dataclasses <-> strict, versioned JSON.

Reading is strict: an unknown format, a missing key or a value of the wrong type is an error, for a record may come
from a stranger too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from goodnet.errors import DataError
from goodnet.outputs import replacing

_T = TypeVar("_T")
_MAX_WHOLE = 1 << 64


def to_json(record: Any) -> str:
    """A dataclass with a `format`, or a plain value, as strict JSON, ending in a newline.

    `format` stands first; NaN and Infinity become null.
    """
    plain = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # type: ignore[arg-type]
    if isinstance(plain, dict):
        plain = {"format": plain.pop("format"), **plain}
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def write_record(record: Any, path: Path) -> None:
    """Writes to a temporary name beside `path` and renames, so that a crash leaves the old file whole."""
    with writing_record(record, path):
        pass


@contextmanager
def writing_record(record: Any, path: Path) -> Iterator[None]:
    """`write_record` in two steps: written before the `with`, renamed after it if nothing was raised inside."""
    with replacing(path) as part:
        part.write_text(to_json(record), encoding="utf-8")
        yield


def read(path: Path, formats: Mapping[str, type]) -> Any:
    """Reads a record of any of the `formats`, by its own word for which it is.

    Raises:
        DataError: not there, not JSON, of an unknown format, or with keys or values that do not belong.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: expected a goodnet record, but it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a goodnet record (JSON), got something else ({error})") from error
    kind = formats.get(str(raw.get("format"))) if isinstance(raw, dict) else None
    if kind is None:
        later = _later(raw, formats)
        if later:
            raise DataError(f"{path}: a record of format {later}, of a later goodnet; update goodnet to read it")
        raise DataError(f"{path}: expected a record of format {', '.join(formats)}; got none of them")
    try:
        return _build(kind, raw, kind.__name__)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: not a whole {raw['format']} record: {error}") from error


def _later(raw: Any, formats: Mapping[str, type]) -> str:
    """The record's format where it is a later version of one that is known, else empty."""
    said = raw.get("format") if isinstance(raw, dict) else None
    name, _, version = said.partition("/") if isinstance(said, str) else ("", "", "")
    known = [int(one.partition("/")[2]) for one in formats if one.partition("/")[0] == name]
    newer = bool(known) and version.isascii() and version.isdigit() and len(version) < 9 and int(version) > max(known)
    return f"{name}/{version}" if newer else ""


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _build(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, nested dataclasses and tuples too."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _build(options[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{where}: expected a list")
        return tuple(_build(typing.get_args(hint)[0], item, where) for item in value)
    wanted = origin or hint
    if isinstance(value, int) and abs(value) > _MAX_WHOLE:
        raise ValueError(f"{where}: a number of more than 64 bits")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise TypeError(f"{where}: expected {wanted.__name__}, got {type(value).__name__}")
    return value


def _build_dataclass(kind: type[_T], value: Any, where: str) -> _T:
    if not isinstance(value, dict):
        raise TypeError(f"{where}: expected an object")
    hints = typing.get_type_hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise TypeError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    built = {key: _build(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    return kind(**built)
