"""The benchmark of other programs as a drawing: what each repair leaves of the accuracy and of the attack."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from goodnet.peer_record import PeerFigures, PeerRecord
from goodnet.record import Share
from goodnet.report.peer_table import program_name

_ROW, _LEFT, _WIDTH, _TOP, _GAP = 24, 410, 440, 34, 26
_STYLE = """
svg { background: #ffffff; font: 12.5px system-ui, sans-serif; } text { fill: #595e65; } .head { fill: #1d1f22;
font-weight: 600; } path, line { fill: none; } .grid { stroke: #e1dcd1; } .acc { stroke: #1b4f8a; stroke-width: 1.6; }
.asr { stroke: #9d2419; stroke-width: 1.6; }
"""
_DISC, _CROSS = "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0", "m-3.6-3.6l7.2 7.2m0-7.2l-7.2 7.2"


def peer_svg(record: PeerRecord) -> str:
    """An SVG file: a panel a backdoored net, a line for each net that a program leaves, with its ACC and its worst ASR.

    Lines reach over the 95 % intervals. A guard's figures are those of the net behind it.
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
        parts.append(_text(_LEFT, y + _TOP - 14, net.name, "head"))
        bottom = y + _TOP + _ROW * len(left)
        parts += [_axis(y + _TOP, bottom), *(_line_of(name, figures, y + _TOP + _ROW * number + _ROW / 2)
                                             for number, (name, figures) in enumerate(left))]  # fmt: skip
        y = bottom + _GAP
    width, height = _LEFT + _WIDTH + 30, y + 10
    return str(
        Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {:.0f}" width="{}" height="{:.0f}" role="img">'
               "<title>ACC and ASR of what each program leaves</title><style>{}</style>{}</svg>\n")
        .format(width, height, width, height, Markup(_STYLE), Markup("").join(parts))
    )  # fmt: skip


def _legend() -> Markup:
    marks = [_mark("acc", _LEFT + 4, 14), _text(_LEFT + 14, 18, "ACC: clean images answered rightly"),
             _mark("asr", _LEFT + 270, 14), _text(_LEFT + 280, 18, "ASR: the trigger's success")]  # fmt: skip
    return Markup("").join(marks)


def _axis(top: float, bottom: float) -> Markup:
    parts = []
    for percent in range(0, 101, 25):
        x = _at(percent / 100)
        parts += [_line(x, top, x, bottom, "grid"), _text(x, bottom + 15, f"{percent} %", anchor="middle")]
    return Markup("").join(parts)


def _line_of(name: str, figures: Sequence[PeerFigures], y: float) -> Markup:
    parts = [_text(_LEFT - 14, y + 4, name, anchor="end")]
    worst = max((one.asr for one in figures if one.asr is not None), key=lambda share: share.value, default=None)
    for kind, share in (("acc", figures[0].acc), ("asr", worst)):
        if share is not None:
            parts += [_line(_at(share.low), y, _at(share.high), y, kind), _mark(kind, _at(share.value), y, share)]
    return Markup("").join(parts)


def _at(share: float) -> float:
    return _LEFT + _WIDTH * share


def _mark(kind: str, x: float, y: float, share: Share | None = None) -> Markup:
    title = (
        Markup("") if share is None else Markup("<title>{} {:.1f} %</title>").format(kind.upper(), 100 * share.value)
    )
    shape = _DISC if kind == "acc" else _CROSS
    return Markup('<path class="{}" d="M{:.1f} {:.1f}{}">{}</path>').format(kind, x, y, shape, title)


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x, y, to_x, to_y)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
