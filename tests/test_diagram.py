"""Diagrams: whole XML, nothing clipped, nothing on top of anything else, whatever names a file holds."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageFont

from goodnet.errors import ModelError, UsageError
from goodnet.layers import LayerEdge, LayerGraph, LayerNode
from goodnet.report.diagram import check_suffix, diagram, png, svg
from goodnet.report.diagram_layout import MAX_NODES, lay_out
from goodnet.report.diagram_parts import SIZE, Box, Drawing, Line, Text, shortened, text_width

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>alert(1)</script>",
    "a\"b'c&amp;<![CDATA[",
    "\x00\x1b[31m\x07\n\r\t",
    "\u202egnp.exe",
    "\ud800\udfff\ufffe\uffff",
    "漢字" * 300,
    "W" * 100_000,
    "",
)


def graph(count: int, edges: list[tuple[int, int]], names: tuple[str, ...] = ("layer",), **groups: range) -> LayerGraph:
    """`count` nodes with these edges; `names` over and over; weights in every second one."""
    nodes = []
    for index in range(count):
        name = names[index % len(names)]
        role = "input" if index == 0 else "output" if index == count - 1 else ("layer", "operation")[index % 5 == 4]
        group = next((key for key, inside in groups.items() if index in inside), "")
        nodes.append(
            LayerNode(name=name, kind="Conv2d", role=role, shape=(64, 128, 128), parameters=index % 2, group=group)
        )
    return LayerGraph(
        title=names[0],
        summary="deepid",
        nodes=tuple(nodes),
        edges=tuple(LayerEdge(source=source, target=target) for source, target in edges),
    )


def chain(count: int) -> list[tuple[int, int]]:
    return list(zip(range(count - 1), range(1, count)))


def some(seed: int, most: int = 60) -> LayerGraph:
    """A chain, a few branches, many skips."""
    chance = random.Random(seed)
    count = chance.randint(5, most)
    edges = {(max(0, index - chance.choice((1, 1, 1, 2, 3))), index) for index in range(1, count)}
    edges |= {tuple(sorted(chance.sample(range(count), 2))) for _ in range(chance.randint(0, count))}  # type: ignore[misc]
    return graph(count, sorted(edges))


GRAPHS = {
    "chain": graph(12, chain(12)),
    "hundreds": graph(700, chain(700)),
    "residual": graph(100, [*chain(100), *((i, i + 4) for i in range(1, 90, 4))]),
    "dense": graph(30, list(itertools.combinations(range(30), 2))),
    "fan": graph(42, [*((0, i) for i in range(1, 41)), *((i, 41) for i in range(1, 41))]),
    "crossing": graph(6, [(0, 1), (0, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 5), (4, 5)]),
    "two nets": graph(
        12, [(0, 1), (0, 6), *chain(6)[1:], *zip(range(6, 10), range(7, 11)), (5, 11), (10, 11)],
        good=range(1, 6), bad=range(6, 11),
    ),
    "groups of unlike length": graph(
        9, [(0, 1), (1, 2), (0, 3), (3, 4), (4, 5), (5, 6), (2, 7), (6, 7), (7, 8)], good=range(1, 3), bad=range(3, 7)
    ),
    "no edges": graph(3, []),
    "one node": graph(1, []),
    **{f"random {seed}": some(seed) for seed in range(12)},
    **{f"hostile {index}": graph(6, chain(6), (name,)) for index, name in enumerate(HOSTILE)},
}  # fmt: skip


def span(text: Text) -> tuple[float, float, float, float]:
    left = {"start": text.x, "middle": text.x - text.width / 2, "end": text.x - text.width}[text.anchor]
    return left, text.y - SIZE, left + text.width, text.y + 4


def meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x, box.y, box.x + box.width, box.y + box.height


def overlaps(spans: list[tuple[float, float, float, float]]) -> list[object]:
    return [pair for pair in itertools.combinations(spans, 2) if meet(*pair)]


@pytest.fixture(params=sorted(GRAPHS))
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return lay_out(GRAPHS[request.param])


def test_nothing_is_clipped_and_nothing_overlaps(drawing: Drawing) -> None:
    page = (0.0, 0.0, drawing.width, drawing.height)
    layers = [corners(box) for box in drawing.boxes if box.style != "group"]
    texts = [span(text) for text in drawing.texts]
    for left, top, right, bottom in [*layers, *texts, *(corners(box) for box in drawing.boxes)]:
        assert left >= page[0]
        assert top >= page[1]
        assert right <= page[2]
        assert bottom <= page[3]
    if len(layers) <= 150:  # all pairs
        assert not overlaps(layers)
        assert not overlaps(texts)
    inside = [text for text in texts if any(meet(text, box) for box in layers)]
    for left, top, right, bottom in inside:
        assert any(box[0] <= left and right <= box[2] and box[1] <= top and bottom <= box[3] for box in layers)


def test_lines_stay_on_the_page_and_out_of_boxes(drawing: Drawing) -> None:
    layers = [corners(box) for box in drawing.boxes if box.style != "group"]
    for line in drawing.lines[:300]:
        for (ax, ay), (bx, by) in itertools.pairwise(line.points):
            assert ax == bx or ay == by
            low, high = (min(ax, bx), min(ay, by) + 0.01), (max(ax, bx), max(ay, by) - 0.01)
            assert 0 <= low[0] <= high[0] <= drawing.width
            assert 0 <= ay <= drawing.height
            assert not [box for box in layers if meet(box, (low[0], low[1], high[0] + 0.01, high[1]))]


def test_svg_is_whole_xml_without_script(drawing: Drawing) -> None:
    root = ElementTree.fromstring(svg(drawing))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "style", "rect", "path", "text", "tspan"),
    }
    assert len(list(root.iter(f"{SVG}text"))) == len(drawing.texts)
    written = "".join(root.itertext())
    assert all(character.isprintable() or character == "\n" for character in written)
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    assert svg(drawing).encode("utf-8")


def test_every_edge_is_a_line_from_box_to_box() -> None:
    for seed in range(12):
        net = some(seed, 20)  # so few that one column does
        drawing = lay_out(net)
        assert len(drawing.lines) == len(net.edges)
        boxes = [corners(box) for box in drawing.boxes]
        ends = set()
        for line in drawing.lines:
            (ax, ay), (bx, by) = line.points[0], line.points[-1]
            source = [index for index, box in enumerate(boxes) if box[3] == ay and box[0] < ax < box[2]]
            target = [index for index, box in enumerate(boxes) if box[1] == by and box[0] < bx < box[2]]
            ends.add((*source, *target))
        assert ends == {(edge.source, edge.target) for edge in net.edges}


def segments(line: Line) -> list[tuple[bool, float, float, float]]:
    """Upright or not, where, from, to."""
    parts = []
    for (ax, ay), (bx, by) in itertools.pairwise(line.points):
        parts.append((True, ax, min(ay, by), max(ay, by)) if ax == bx else (False, ay, min(ax, bx), max(ax, bx)))
    return parts


@pytest.mark.parametrize("name", [name for name, net in GRAPHS.items() if len(net.edges) <= 100])
def test_lines_run_together_only_from_or_to_the_same_layer(name: str) -> None:
    for one, other in itertools.combinations(lay_out(GRAPHS[name]).lines, 2):
        if one.points[0] == other.points[0] or one.points[-1] == other.points[-1]:
            continue
        for a, b in itertools.product(segments(one), segments(other)):
            together = min(a[3], b[3]) - max(a[2], b[2])
            assert a[0] != b[0] or abs(a[1] - b[1]) >= 3 or together <= 0.5


def test_a_long_net_goes_on_in_columns() -> None:
    drawing = lay_out(GRAPHS["hundreds"])
    columns = [text.text for text in drawing.texts if text.text.startswith("column ")]
    onwards = [text.text for text in drawing.texts if text.text.startswith("goes on in ")]
    assert [f"goes on in {one}" for one in columns] == onwards
    assert len(columns) >= 3
    assert 0.3 < drawing.width / drawing.height < 3


def test_too_large_a_net_is_an_error() -> None:
    with pytest.raises(ModelError, match="at most"):
        lay_out(graph(MAX_NODES + 1, chain(MAX_NODES + 1)))
    with pytest.raises(ModelError, match="lines between"):
        lay_out(graph(200, list(itertools.combinations(range(200), 2))))
    with pytest.raises(ModelError, match="too large"):  # as many branches side by side
        lay_out(graph(800, [(0, index) for index in range(1, 800)]))
    with pytest.raises(ModelError, match=r"name an \.svg"):
        diagram(graph(MAX_NODES, chain(MAX_NODES)), ".png")
    assert len(diagram(graph(MAX_NODES, chain(MAX_NODES)), ".svg")) < 2_000_000


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_cut_and_made_visible(name: str) -> None:
    short = shortened(name, 36)
    assert len(short) <= 36
    assert short.isprintable()
    assert Image.open(io.BytesIO(diagram(graph(4, chain(4), (name,)), ".png"))).mode == "RGB"


def test_texts_are_no_wider_than_planned() -> None:
    font = ImageFont.load_default(100)
    for text in ("block1.layer.0.convShortcut", "MaxPool2d", "1,283 classes", "WMW", "iiii", "a_b-c.d:e", "0x1"):
        assert font.getlength(text) / 100 * SIZE <= text_width(text)


def test_png_is_the_drawing_at_twice_its_size() -> None:
    drawing = lay_out(GRAPHS["residual"])
    picture = Image.open(io.BytesIO(png(drawing)))
    scale = picture.width / drawing.width
    assert 0.9 <= scale <= 2.01
    for box in drawing.boxes:  # the middle of the upper edge is drawn, a little above it is not, but for a line
        x, y = int((box.x + 8) * scale), int(box.y * scale)
        assert picture.getpixel((x, y - 6)) == (251, 250, 246)
        assert any(picture.getpixel((x, y + step)) != (251, 250, 246) for step in range(-1, 14))


def test_suffixes() -> None:
    for name in ("a.png", "a.SVG", "b/c.d.png"):
        check_suffix(Path(name))
    for name in ("a", "a.jpg", "png", ".svg"):
        with pytest.raises(UsageError, match=r"\.png or \.svg"):
            check_suffix(Path(name))
