"""The example pictures that a scan names, checked and embedded.

The record and its pictures may come from a stranger. A name that leaves the folder is an error; a file that is
missing or no PNG of modest size is shown as missing, with the reason. What is embedded was decoded here and written
anew, so a browser never meets the stranger's bytes.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from goodnet.errors import DataError
from goodnet.record import Example, LabelResult, ScanRecord

MAX_BYTES = 2 << 20
MAX_SIDE = 1024
MAX_LABELS = 12
MAX_PAIRS = 6
DRAWN_SIDE = 168


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`uri` is null where the picture is missing, and `missing` says why; sides in CSS pixels, a whole multiple."""

    uri: str | None = None
    width: int = DRAWN_SIDE
    height: int = DRAWN_SIDE
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image before and after the trigger, with the net's answers."""

    index: int | None
    clean: Picture
    triggered: Picture
    clean_answer: int | None
    triggered_answer: int | None


@dataclass(frozen=True, kw_only=True)
class TriggerView:
    """All pictures of one label's trigger; `left_out` counts pairs that were not drawn.

    `stamped`: images under the label's plain stamp, with the net's answers.

    `label` is null for a trigger that turns each class into another.
    """

    label: int | None
    flagged: bool
    result: LabelResult | None
    mask: Picture
    pattern: Picture
    pairs: tuple[Pair, ...]
    left_out: int
    stamped: tuple[tuple[Picture, int | None], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The labels with pictures, flagged first; `left_out` counts labels that were not drawn."""

    triggers: tuple[TriggerView, ...]
    left_out: int


def gallery(record: ScanRecord, folder: Path) -> Gallery:
    """Reads the pictures of at most MAX_LABELS labels and MAX_PAIRS pairs each.

    Raises:
        DataError: a name that leaves the folder.
    """
    for example in record.examples:
        _inside(folder, example.file)
    flagged = set(record.flagged_labels)
    labels = sorted({example.label for example in record.examples}, key=lambda label: _rank(label, flagged))
    results = {result.label: result for result in record.labels}
    views = tuple(
        _view(
            label,
            [one for one in record.examples if one.label == label],
            folder,
            None if label is None else results.get(label),
            _is_flagged(label, record),
        )
        for label in labels[:MAX_LABELS]
    )
    return Gallery(triggers=views, left_out=len(labels) - len(views))


def embed(folder: Path, file: str) -> Picture:
    """One PNG of `folder` as a data URI.

    Raises:
        DataError: `file` leaves the folder.
    """
    path = _inside(folder, file)
    if not path.is_file():
        return Picture(missing="file not found")
    try:
        if path.stat().st_size > MAX_BYTES:
            return Picture(missing=f"file larger than {MAX_BYTES >> 20} MiB")
        return _reencode(path.read_bytes())
    except OSError:
        return Picture(missing="file cannot be read as PNG")


def _inside(folder: Path, file: str) -> Path:
    root = folder.resolve()
    try:
        path = (root / file).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a loop of links, a name too long
        raise DataError(f"{folder}: expected picture names of files in this folder, got {file[:80]!r}") from error
    if not path.is_relative_to(root) or path == root:
        raise DataError(
            f"{folder}: expected pictures inside this folder, got {file[:80]!r}, which leaves it; "
            f"do not trust this record, scan again"
        )
    return path


def _reencode(raw: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE:
                return Picture(missing=f"picture larger than {MAX_SIDE} x {MAX_SIDE}")
            gray = image.mode in ("1", "L", "I;16", "I")
            plain = image.convert("L" if gray else "RGB")
    except Exception:  # a decoder that is fed hostile bytes may raise anything
        return Picture(missing="file cannot be read as PNG")
    target = io.BytesIO()
    plain.save(target, "PNG", optimize=True)
    # whole multiples, so that every pixel of the image is the same square on the page
    scale = max(1, round(DRAWN_SIDE / max(width, height)))
    uri = f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"
    return Picture(uri=uri, width=width * scale, height=height * scale)


def _rank(label: int | None, flagged: set[int]) -> tuple[bool, int]:
    """The trigger of all classes first, then flagged labels."""
    return (False, -1) if label is None else (label not in flagged, label)


def _is_flagged(label: int | None, record: ScanRecord) -> bool:
    if label is None:
        return record.all_to_all is not None and record.all_to_all.flagged
    return label in record.flagged_labels


def _view(
    label: int | None, examples: list[Example], folder: Path, result: LabelResult | None, flagged: bool
) -> TriggerView:
    pairs = _pairs(examples)
    return TriggerView(
        label=label,
        flagged=flagged,
        result=result,
        mask=_picture(_first(examples, "mask"), folder),
        pattern=_picture(_first(examples, "pattern"), folder),
        pairs=tuple(_pair(clean, triggered, folder) for clean, triggered in pairs[:MAX_PAIRS]),
        left_out=max(0, len(pairs) - MAX_PAIRS),
        stamped=tuple((_picture(one, folder), one.answer) for one in examples if one.kind == "stamped")[:MAX_PAIRS],
    )


def _pairs(examples: list[Example]) -> list[tuple[Example | None, Example | None]]:
    """Clean and triggered pictures of one image index side by side, in the record's order."""
    found: dict[tuple[int | None, int], dict[str, Example]] = {}
    turns: Counter[tuple[str, int | None]] = Counter()
    for example in examples:
        if example.kind in ("clean", "triggered"):
            turn = turns[example.kind, example.index]
            turns[example.kind, example.index] += 1
            found.setdefault((example.index, turn), {})[example.kind] = example
    return [(pair.get("clean"), pair.get("triggered")) for pair in found.values()]


def _pair(clean: Example | None, triggered: Example | None, folder: Path) -> Pair:
    either = clean or triggered
    return Pair(
        index=either.index if either else None,
        clean=_picture(clean, folder),
        triggered=_picture(triggered, folder),
        clean_answer=clean.answer if clean else None,
        triggered_answer=triggered.answer if triggered else None,
    )


def _first(examples: list[Example], kind: str) -> Example | None:
    return next((example for example in examples if example.kind == kind), None)


def _picture(example: Example | None, folder: Path) -> Picture:
    return embed(folder, example.file) if example else Picture(missing="not in the record")
