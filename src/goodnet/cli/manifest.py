"""A manifest: a CSV file that names nets, and how each is read. The user's own file, as the command line is."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from goodnet.cli.options import numbers, shape, whole_numbers
from goodnet.errors import UsageError
from goodnet.fleet.nets import MAX_NETS
from goodnet.models.formats import SCALES

_MAX_BYTES = 16 << 20


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise click.BadParameter(f"expected a whole number; got {value!r}")
    return int(value)


def _range(value: str) -> str:
    if value not in SCALES:
        raise click.BadParameter(f"expected {' or '.join(SCALES)}; got {value!r}")
    return value


_KINDS: dict[str, Callable[[str], Any]] = {
    "model": str,
    "clean": str,
    "arch": str,
    "classes": _whole,
    "input_range": _range,
    "mean": numbers,
    "std": numbers,
    "input_shape": shape,
    "data_range": _range,
    "labels": whole_numbers,
}
COLUMNS = tuple(name.replace("_", "-") for name in _KINDS)


def read_manifest(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Lines and what stands in them, a net each; an empty cell is left out. `model`, `clean` and code in `arch` are
    taken from the manifest's folder.

    Raises:
        UsageError: it cannot be read, has no rows, columns that are not known or twice, cells that mean nothing, or
            names a net twice.
    """
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    found: list[tuple[int, dict[str, Any]]] = []
    lines: dict[Path, int] = {}
    try:
        columns = _columns(path, next(rows, []))
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) > len(columns):
                raise UsageError(
                    f"{where}: expected at most {len(columns)} cells, got {len(row)}; quote what has commas"
                )
            cells = _cells(where, path.parent, dict(zip(columns, map(str.strip, row))))
            twice = lines.setdefault(Path(cells["model"]).absolute(), rows.line_num)
            if twice != rows.line_num:
                raise UsageError(f"{where}: expected each net once, but line {twice} names the same")
            found.append((rows.line_num, cells))
            if len(found) > MAX_NETS:
                raise UsageError(f"{path}: expected at most {MAX_NETS:,} nets, got more; make several manifests of it")
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: expected comma-separated values ({error})") from error
    if not found:
        raise UsageError(f"{path}: expected a row a net below the columns' names, got none")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path}: expected a manifest of at most {_MAX_BYTES >> 20} MiB, got a larger file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: expected a manifest, but it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected a manifest in UTF-8, got other bytes; save it as CSV UTF-8") from error


def _columns(path: Path, head: list[str]) -> list[str]:
    columns = [cell.strip().lower().replace("-", "_") for cell in head]
    unknown = next((cell for cell, name in zip(head, columns) if name not in _KINDS), None)
    if unknown is not None or "model" not in columns:
        got = "no column model" if unknown is None else f"{unknown.strip()!r:.60}"
        raise UsageError(f"{path}: expected columns model and, as needed, {', '.join(COLUMNS[1:])}; got {got}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: expected each column once, got {twice} twice")
    return columns


def _cells(where: str, folder: Path, row: dict[str, str]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, text in row.items():
        if not text:
            continue
        if "\0" in text:
            raise UsageError(f"{where}: {name}: expected text, got a NUL character")
        try:
            cells[name] = _KINDS[name](text)
        except click.BadParameter as error:
            raise UsageError(f"{where}: {name.replace('_', '-')}: {error.message}") from error
    if "model" not in cells:
        raise UsageError(f"{where}: expected a model, got an empty cell")
    cells["name"] = cells["model"]
    cells["model"] = str(folder / cells["model"])
    if "clean" in cells:
        cells["clean"] = str(folder / cells["clean"])
    if ".py:" in cells.get("arch", ""):
        cells["arch"] = str(folder / cells["arch"])
    return cells
