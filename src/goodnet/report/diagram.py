"""The layer diagram of a net as SVG or PNG: one layout, two ways to draw it.

The SVG is a file of its own: no script, no link, dark where the reader's system is dark. Everything in it is a number,
a word of ours, or a name that was cut, made visible and escaped. The PNG is the SVG in its light colours.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from markupsafe import escape
from PIL import Image, ImageDraw, ImageFont

from goodnet.errors import ModelError, UsageError
from goodnet.layers import LayerGraph
from goodnet.report.diagram_layout import lay_out
from goodnet.report.diagram_parts import MORE_GAP, SIZE, TITLE_SIZE, Box, Drawing, Line, Text

SUFFIXES = (".png", ".svg")
PNG_SCALE, PNG_MIN_SCALE, PNG_MAX_PIXELS = 2.0, 0.9, 16_000_000
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_SMOOTH = 3
_BAND = 1024
_RADIUS, _TURN, _ARROW = 5.0, 6.0, 4.5
_LIGHT = {
    "paper": "#fbfaf6",
    "raised": "#ffffff",
    "ink": "#1d1f22",
    "soft": "#595e65",
    "line": "#cfc9bb",
    "field": "#f3f0e8",
    "link": "#1b4f8a",
    "tint": "#e9eff6",
}
_DARK = {
    "paper": "#17181a",
    "raised": "#1f2123",
    "ink": "#e9e6df",
    "soft": "#a7a9ab",
    "line": "#4a4d51",
    "field": "#1c1e20",
    "link": "#8fbdf2",
    "tint": "#212c39",
}
_FILLS = {
    "weights": ("tint", "link"),
    "plain": ("raised", "line"),
    "operation": ("paper", "soft"),
    "end": ("soft", "soft"),
    "group": ("field", "line"),
}
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'


def check_suffix(path: Path) -> None:
    """Raises UsageError unless `path` names a picture that `diagram` can make."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot: expected a name that ends in {' or '.join(SUFFIXES)}, got {path.name!r}")


def diagram(graph: LayerGraph, suffix: str) -> bytes:
    """The file's bytes; `suffix` is one of SUFFIXES.

    Raises:
        ModelError: the net has too many layers to draw, or too many for a legible PNG.
    """
    drawing = lay_out(graph)
    return png(drawing) if suffix.lower() == ".png" else svg(drawing).encode("utf-8")


def svg(drawing: Drawing) -> str:
    """A whole SVG file."""
    width, height = math.ceil(drawing.width), math.ceil(drawing.height)
    title = escape(drawing.title)
    groups = [_svg_box(box) for box in drawing.boxes if box.style == "group"]
    others = [_svg_box(box) for box in drawing.boxes if box.style != "group"]
    body = [*groups, *(_svg_line(line) for line in drawing.lines), *others]
    body += [_svg_text(text) for text in drawing.texts]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Layers of {title}">\n<title>Layers of {title}</title>\n<style>{_style()}</style>\n'
        f'<rect class="paper" width="{width}" height="{height}"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _style() -> str:
    dark = f"@media (prefers-color-scheme: dark) {{{_colours(_DARK)}}}"
    fonts = f"text{{font:{SIZE}px {_FONT}}}.title{{font-size:{TITLE_SIZE}px}}"
    return f"{fonts}.name{{font-weight:600}}tspan{{font-weight:400}}{_colours(_LIGHT)}{dark}"


def _colours(colours: dict[str, str]) -> str:
    fills = "".join(
        f".{style}{{fill:{colours[fill]};stroke:{colours[edge]}}}" for style, (fill, edge) in _FILLS.items()
    )
    return (
        f".paper{{fill:{colours['paper']}}}{fills}.wire{{fill:none;stroke:{colours['soft']};stroke-width:1.3}}"
        f".arrow{{fill:{colours['soft']}}}text{{fill:{colours['ink']}}}text.soft,tspan{{fill:{colours['soft']}}}"
        f"text.on{{fill:{colours['paper']}}}"
    )


def _svg_box(box: Box) -> str:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect class="{box.style}" {place} rx="{_radius(box):g}"/>'


def _radius(box: Box) -> float:
    return box.height / 2 if box.style in ("operation", "end") else _RADIUS


def _svg_line(line: Line) -> str:
    start, *turns, (x, y) = line.points
    path = [f"M{start[0]:.1f} {start[1]:.1f}"]
    points = [start, *turns, (x, y - _ARROW)]
    for before, corner, after in zip(points, points[1:], points[2:]):
        first, last = _towards(corner, before), _towards(corner, after)
        path.append(f"L{first[0]:.1f} {first[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {last[0]:.1f} {last[1]:.1f}")
    path.append(f"L{x:.1f} {y - _ARROW:.1f}")
    return f'<path class="wire" d="{"".join(path)}"/><path class="arrow" d="{_svg_arrow(x, y)}"/>'


def _svg_arrow(x: float, y: float) -> str:
    return f"M{x:.1f} {y:.1f}l{-_ARROW:g} {-1.6 * _ARROW:g}h{2 * _ARROW:g}z"


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The point on the way from a corner to the next where its rounding ends."""
    away = math.dist(corner, other)
    part = min(_TURN, away / 2) / away if away else 0.0
    return corner[0] + part * (other[0] - corner[0]), corner[1] + part * (other[1] - corner[1])


def _svg_text(text: Text) -> str:
    anchor = "" if text.anchor == "start" else f' text-anchor="{text.anchor}"'
    style = f"{text.style} on" if text.light else text.style
    more = f'<tspan class="soft" dx="{MORE_GAP}">{escape(text.more)}</tspan>' if text.more else ""
    return f'<text class="{style}" x="{text.x:.1f}" y="{text.y:.1f}"{anchor}>{escape(text.text)}{more}</text>'


def png(drawing: Drawing) -> bytes:
    """A PNG at twice the layout's size, less where that would be more than PNG_MAX_PIXELS.

    Raises:
        ModelError: so large that its texts could not be read.
    """
    scale = min(PNG_SCALE, math.sqrt(PNG_MAX_PIXELS / (drawing.width * drawing.height)))
    if scale < PNG_MIN_SCALE:
        raise ModelError("the net has too many layers for a PNG that can be read; name an .svg file")
    size = math.ceil(drawing.width * scale), math.ceil(drawing.height * scale)
    picture = Image.new("RGB", size, _LIGHT["paper"])
    for top in range(0, size[1], _BAND):  # band by band: the smoothing takes nine times the memory
        band = Image.new("RGB", (size[0] * _SMOOTH, min(_BAND, size[1] - top) * _SMOOTH), _LIGHT["paper"])
        _shapes(ImageDraw.Draw(band), drawing, scale * _SMOOTH, top * _SMOOTH)
        picture.paste(band.resize((size[0], band.height // _SMOOTH), Image.Resampling.BOX), (0, top))
    _png_texts(ImageDraw.Draw(picture), drawing, scale)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _shapes(draw: ImageDraw.ImageDraw, drawing: Drawing, scale: float, top: int) -> None:
    for box in drawing.boxes:
        if box.style == "group":
            _png_box(draw, box, scale, top)
    for line in drawing.lines:
        points = [(x * scale, y * scale - top) for x, y in line.points]
        x, y = points[-1]
        points[-1] = (x, y - _ARROW * scale)
        draw.line(points, fill=_LIGHT["soft"], width=round(1.3 * scale), joint="curve")
        half, high = _ARROW * scale, 1.6 * _ARROW * scale
        draw.polygon([(x, y), (x - half, y - high), (x + half, y - high)], fill=_LIGHT["soft"])
    for box in drawing.boxes:
        if box.style != "group":
            _png_box(draw, box, scale, top)


def _png_box(draw: ImageDraw.ImageDraw, box: Box, scale: float, top: int) -> None:
    fill, edge = _FILLS[box.style]
    corners = (box.x * scale, box.y * scale - top, (box.x + box.width) * scale, (box.y + box.height) * scale - top)
    draw.rounded_rectangle(
        corners, radius=_radius(box) * scale, fill=_LIGHT[fill], outline=_LIGHT[edge], width=round(scale)
    )


def _png_texts(draw: ImageDraw.ImageDraw, drawing: Drawing, scale: float) -> None:
    fonts = {size: ImageFont.load_default(size * scale) for size in (SIZE, TITLE_SIZE)}
    for text in drawing.texts:
        colour = "paper" if text.light else "soft" if text.style == "soft" else "ink"
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
        font = fonts[TITLE_SIZE if text.style == "title" else SIZE]
        x, y, words = text.x * scale, text.y * scale, _drawable(text.text, font)
        draw.text((x, y), words, font=font, fill=_LIGHT[colour], anchor=anchor)
        if text.more:
            x += font.getlength(words) + MORE_GAP * scale
            draw.text((x, y), _drawable(text.more, font), font=font, fill=_LIGHT["soft"], anchor=anchor)


def _drawable(text: str, font: _Font) -> str:
    """`text` with ? for letters that Pillow's own font does not have."""
    if text.isascii():
        return text
    none = bytes(font.getmask("\U0010fffd"))
    return "".join(one if one.isascii() or bytes(font.getmask(one)) != none else "?" for one in text)
