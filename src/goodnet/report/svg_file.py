"""What drawings that are files of their own are made of: they bring their own colours, and open in any browser."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

_STYLE = """
svg { background: #ffffff; font: 12.5px system-ui, sans-serif; } text { fill: #595e65; } .head { fill: #1d1f22;
font-weight: 600; } path, line { fill: none; } .grid { stroke: #e1dcd1; }"""
DISC, CROSS = "m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0", "m-3.4-3.4l6.8 6.8m0-6.8l-6.8 6.8"


def svg_file(width: float, height: float, title: str, style: str, parts: Sequence[Markup]) -> str:
    """`style` holds what the drawing's own classes look like."""
    return str(
        Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {:.0f}" width="{}" height="{:.0f}" role="img">'
               "<title>{}</title><style>{} {}\n</style>{}</svg>\n")
        .format(width, height, width, height, title, Markup(_STYLE), Markup(style), Markup("").join(parts))
    )  # fmt: skip


def line(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x, y, to_x, to_y)


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(words)
    )
