"""The benchmark of other programs as a drawing: what each repair leaves of the accuracy and of the attack."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from goodnet.peer_record import PeerFigures, PeerRecord
from goodnet.record import Share
from goodnet.report.peer_table import program_name
from goodnet.report.svg_file import CROSS, DISC, line, svg_file, text

_ROW, _LEFT, _WIDTH, _TOP, _GAP = 24, 410, 440, 34, 26
_STYLE = """.acc { stroke: #1b4f8a; stroke-width: 1.6; }
.asr { stroke: #9d2419; stroke-width: 1.6; }"""


def peer_svg(record: PeerRecord) -> str:
    """An SVG file: a panel a backdoored net, a line for each net that a program leaves, with its ACC and its worst ASR.

    Lines reach over the 95 % intervals. A guard's figures are those of the net that it guards, which refuses.
    """
    parts, y = [_legend()], 26.0
    for net in record.nets:
        left = [("the net as it came", net.before)]
        for row in record.rows:
            if row.net == net.name and row.figures:
                kinds = dict.fromkeys(one.name for one in row.figures)
                left += [(f"{program_name(row)}: {kind}", tuple(o for o in row.figures if o.name == kind))
                         for kind in kinds]  # fmt: skip
        if not net.targets or len(left) == 1:
            continue
        parts.append(text(_LEFT, y + _TOP - 14, net.name, "head"))
        bottom = y + _TOP + _ROW * len(left)
        parts += [_axis(y + _TOP, bottom), *(_line_of(name, figures, y + _TOP + _ROW * number + _ROW / 2)
                                             for number, (name, figures) in enumerate(left))]  # fmt: skip
        y = bottom + _GAP
    width, height = _LEFT + _WIDTH + 30, y + 10
    return svg_file(width, height, "ACC and ASR of what each program leaves", _STYLE, parts)


def _legend() -> Markup:
    marks = [_mark("acc", _LEFT + 4, 14), text(_LEFT + 14, 18, "ACC: clean images answered rightly"),
             _mark("asr", _LEFT + 270, 14), text(_LEFT + 280, 18, "ASR: the trigger's success")]  # fmt: skip
    return Markup("").join(marks)


def _axis(top: float, bottom: float) -> Markup:
    parts = []
    for percent in range(0, 101, 25):
        x = _at(percent / 100)
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 15, f"{percent} %", anchor="middle")]
    return Markup("").join(parts)


def _line_of(name: str, figures: Sequence[PeerFigures], y: float) -> Markup:
    parts = [text(_LEFT - 14, y + 4, name, anchor="end")]
    worst = max((one.asr for one in figures if one.asr is not None), key=lambda share: share.value, default=None)
    for kind, share in (("acc", figures[0].acc), ("asr", worst)):
        if share is not None:
            parts += [line(_at(share.low), y, _at(share.high), y, kind), _mark(kind, _at(share.value), y, share)]
    return Markup("").join(parts)


def _at(share: float) -> float:
    return _LEFT + _WIDTH * share


def _mark(kind: str, x: float, y: float, share: Share | None = None) -> Markup:
    title = (
        Markup("") if share is None else Markup("<title>{} {:.1f} %</title>").format(kind.upper(), 100 * share.value)
    )
    shape = DISC if kind == "acc" else CROSS
    return Markup('<path class="{}" d="M{:.1f} {:.1f}{}">{}</path>').format(kind, x, y, shape, title)
