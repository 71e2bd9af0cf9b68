"""What a layer diagram is made of: boxes, texts and lines with coordinates; and what a layer's box says.

Names come from a stranger's file: they are made visible and cut, and every box is as wide as its text may get.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace

from goodnet.layers import LayerNode
from goodnet.report.figures import visible

SIZE, TITLE_SIZE = 13, 22
TALL, LOW, PAD = 46, 28, 12
MAX_NAME = 36
MORE_GAP = 8


@dataclass(frozen=True, kw_only=True)
class Box:
    """`style`: weights, plain, operation, end, group. Pixels; (x, y) is the top left corner."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """`y` is the baseline; `style`: title, name, soft; `anchor`: start, middle, end. `width` is the room it may need.

    `more` follows `text` after MORE_GAP pixels, soft. Both stand at the start then.
    """

    x: float
    y: float
    text: str
    style: str
    anchor: str
    width: float
    more: str = ""
    light: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """Through `points`, ending in an arrow."""

    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """All of a diagram. Boxes in drawing order, groups first."""

    width: float
    height: float
    title: str
    boxes: tuple[Box, ...]
    texts: tuple[Text, ...]
    lines: tuple[Line, ...]


def shortened(text: str, limit: int) -> str:
    """Visible and at most `limit` characters, cut in the middle: a module's path tells most at its ends."""
    text = visible(text[: 4 * limit] + text[-limit:] if len(text) > 5 * limit else text)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def text_width(text: str, size: float = SIZE) -> float:
    """At least as wide as any usual sans-serif font draws it (measured against DejaVu Sans Bold, a wide one)."""
    return size * sum(_em(character) for character in text)


def _em(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF" or not character.isascii():
        return 1.05
    if character in "iljI.,:;|'()[]! ":
        return 0.46
    if character in "mwMW@%":
        return 1.1
    return 0.84 if character.isupper() or character in "#&+<=>~" else 0.72


def make_text(x: float, y: float, text: str, style: str, anchor: str = "start", *, more: str = "") -> Text:
    width = text_width(text, TITLE_SIZE if style == "title" else SIZE) + (MORE_GAP + text_width(more) if more else 0)
    return Text(x=x, y=y, text=text, style=style, anchor=anchor, width=width, more=more)


def _labels(node: LayerNode) -> tuple[tuple[str, str, str], ...]:
    """What stands left, what follows it softly, and what stands right in a box, line by line."""
    shape, name = _shape(node.shape), shortened(node.name, MAX_NAME)
    kind = f"{shortened(node.kind, MAX_NAME)} {shortened(node.detail, MAX_NAME)}".strip()
    if node.parameters and node.role == "layer":
        return (name or kind, "", shape), (kind, "", f"{node.parameters:,} parameters")
    return ((kind, name, "" if node.role == "output" else shape),)


def _shape(shape: tuple[int, ...]) -> str:
    """(C, H, W) as height × width × channels, as the project writes inputs."""
    return "x".join(map(str, (*shape[1:], shape[0]) if len(shape) == 3 else shape))


def needed_width(node: LayerNode) -> float:
    return 2 * PAD + max(
        make_text(0, 0, left, "name", more=more).width + (16 + text_width(right) if right else 0)
        for left, more, right in _labels(node)
    )


def box_height(node: LayerNode) -> float:
    return TALL if node.parameters and node.role == "layer" else LOW


def is_wide(node: LayerNode) -> bool:
    return node.role == "layer"


def make_box(node: LayerNode, centre: float, middle: float, wide: float) -> Box:
    width = wide if is_wide(node) else needed_width(node)
    style = node.role if node.role == "operation" else "weights" if node.parameters and is_wide(node) else "plain"
    style = "end" if node.role in ("input", "output") else style
    height = box_height(node)
    return Box(x=centre - width / 2, y=middle - height / 2, width=width, height=height, style=style)


def box_texts(node: LayerNode, box: Box) -> list[Text]:
    words = []
    for number, (left, more, right) in enumerate(_labels(node)):
        y, style = box.y + 19 + 19 * number, "soft" if number else "name"
        if right:
            words.append(make_text(box.x + PAD, y, left, style, more=more))
            words.append(make_text(box.x + box.width - PAD, y, right, "soft", "end"))
        else:
            words.append(make_text(box.x + box.width / 2, y, left, style, "middle"))
    return [replace(text, light=box.style == "end") for text in words]
