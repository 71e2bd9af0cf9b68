"""The detection benchmark's scores as a drawing: how clean and backdoored nets lie, and how often clean nets score low.

A net's score is the smallest p-value of its labels times their number. Left: a mark a net, by kind. Right: the share
of clean nets whose score is at most x, against x itself, where an exact null would lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from goodnet.detection_record import DetectionRecord, DetectionRow
from goodnet.report.svg_file import CROSS, DISC, line, svg_file, text

_LEAST, _MOST = 1e-9, 10.0
_ROW, _LEFT, _WIDTH, _TOP, _GAP, _SIDE = 26, 150, 430, 46, 90, 260
_STYLE = """.limit { stroke: #595e65; stroke-dasharray:
2 3; } .clean { stroke: #1b4f8a; stroke-width: 1.6; } .bad { stroke: #9d2419; stroke-width: 1.6; } .blind { stroke:
#c9a227; stroke-width: 1.6; } .exact { stroke: #595e65; stroke-dasharray: 6 3; }"""


def detection_svg(record: DetectionRecord, blind_spots: Sequence[str]) -> str:
    """The drawing as an SVG file; nets that are not planted are left out."""
    rows = [row for row in record.rows if row.planted and row.score is not None]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    bottom = _TOP + _ROW * max(len(kinds), 8)
    right = _LEFT + _WIDTH + _GAP
    parts = [_axis(_LEFT, _WIDTH, bottom), text(_LEFT, 20, "p-value of the strongest label, times labels", "head")]
    for number, kind in enumerate(kinds):
        y = _TOP + _ROW * number + _ROW / 2
        parts.append(text(_LEFT - 10, y + 4, kind, anchor="end"))
        parts += [_mark(row, y, blind_spots) for row in rows if row.kind == kind]
    clean = sorted(row.score for row in rows if not row.attack and row.score is not None)
    parts += [text(right, 20, "clean nets at most so low", "head"), _steps(clean, right, bottom)]
    legend = (("o", "clean", "clean net"), ("x", "bad", "backdoored"), ("x", "blind", "known blind spot"))
    for number, (_shape, kind, words) in enumerate(legend):
        x = _LEFT + 130 * number
        parts += [_shape_at(kind, x, bottom + 40), text(x + 10, bottom + 44, words)]
    parts.append(text(right, bottom + 44, f"{len(clean)} nets; dashed: an exact null"))
    width, height = right + _SIDE + 20, bottom + 56
    return svg_file(width, height, "Scores of clean and backdoored nets", _STYLE, parts)


def _at(score: float) -> float:
    """0..1 on the logarithmic axis."""
    span = math.log10(_MOST) - math.log10(_LEAST)
    return (math.log10(min(max(score, _LEAST), _MOST)) - math.log10(_LEAST)) / span


def _axis(left: float, width: float, bottom: float) -> Markup:
    parts = []
    for power in range(-9, 2, 2):
        x = left + width * _at(10.0**power)
        parts.append(line(x, _TOP, x, bottom, "grid"))
        parts.append(text(x, bottom + 18, f"{10.0**power:g}", anchor="middle"))
    for limit, words in ((0.01, "flag"), (0.25, "doubt")):
        x = left + width * _at(limit)
        parts += [line(x, _TOP - 6, x, bottom, "limit"), text(x, _TOP - 10, words, anchor="middle")]
    return Markup("").join(parts)


def _mark(row: DetectionRow, y: float, blind_spots: Sequence[str]) -> Markup:
    kind = "clean" if not row.attack else "blind" if row.attack in blind_spots else "bad"
    return _shape_at(kind, _LEFT + _WIDTH * _at(row.score or _LEAST), y)


def _shape_at(kind: str, x: float, y: float) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}{}"/>').format(kind, x, y, DISC if kind == "clean" else CROSS)


def _steps(scores: Sequence[float], left: float, bottom: float) -> Markup:
    """The empirical distribution of scores up to 1, against the diagonal."""
    height = bottom - _TOP
    path = f"M{left:.1f} {bottom:.1f}"
    for number, score in enumerate(scores, 1):
        if score <= 1:
            path += f"H{left + _SIDE * score:.1f}V{bottom - height * number / len(scores):.1f}"
    parts = [line(left, bottom, left + _SIDE, _TOP, "exact"), Markup('<path class="clean" d="{}"/>').format(path)]
    for value in (0.0, 0.5, 1.0):
        parts.append(text(left + _SIDE * value, bottom + 18, f"{value:g}", anchor="middle"))
        parts.append(text(left - 8, bottom - height * value + 4, f"{value:g}", anchor="end"))
    return Markup("").join(parts)
