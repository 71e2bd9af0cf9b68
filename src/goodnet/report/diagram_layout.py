"""The layer diagram of a net laid out: rows from top to bottom, branches side by side, lines around the boxes.

A net that is too long for one column goes on in the next, at a row where a single layer's output is all that goes on.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from goodnet.errors import ModelError
from goodnet.layers import LayerGraph, LayerNode
from goodnet.report.diagram_parts import (
    MAX_NAME,
    Box,
    Drawing,
    Line,
    Text,
    box_height,
    box_texts,
    is_wide,
    make_box,
    make_text,
    needed_width,
    shortened,
)
from goodnet.report.diagram_places import Places, place

MAX_NODES, MAX_EDGES = 2_000, 10_000
MAX_SIDE = 60_000
MARGIN, HEADER, COLUMN_GAP = 32, 92, 56
GAP, TRACK, LANE_GAP, GROUP_ROOM, GROUP_FOOT, EXIT = 24, 12, 30, 34, 16, 10
MAX_TITLE = 60
COLUMN_HEIGHT = 1500


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A column: nodes and edges of its own."""

    nodes: list[LayerNode]
    edges: list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Where a column's nodes, lanes and gaps lie. `tops` and `bottoms` are the rows'."""

    places: Places
    boxes: list[Box]
    centres: list[float]
    tracks: list[float]
    tops: list[float]
    bottoms: list[float]
    width: float


def lay_out(graph: LayerGraph) -> Drawing:
    """Raises ModelError for a net of more than MAX_NODES layers or MAX_EDGES lines, or over MAX_SIDE pixels."""
    if len(graph.nodes) > MAX_NODES:
        raise ModelError(f"expected a net of at most {MAX_NODES} layers to draw, got {len(graph.nodes)}")
    if len(graph.edges) > MAX_EDGES:
        raise ModelError(f"expected a net of at most {MAX_EDGES} lines between layers to draw, got {len(graph.edges)}")
    title, summary = shortened(graph.title, MAX_TITLE), shortened(graph.summary, 2 * MAX_TITLE)
    hint = "Shapes: height x width x channels."
    texts = [make_text(MARGIN, MARGIN + 16, title, "title"), make_text(MARGIN, MARGIN + 40, summary, "soft")]
    texts.append(make_text(MARGIN, MARGIN + 58, hint, "soft"))
    wide = _box_width(graph.nodes)
    boxes: list[Box] = []
    lines: list[Line] = []
    left, bottom = float(MARGIN), float(HEADER)
    for part in _parts(graph):
        grid = _grid(part, wide, left)
        boxes += [*_group_boxes(part, grid, texts), *grid.boxes]
        lines += _lines(part, grid)
        texts += [text for node, box in zip(part.nodes, grid.boxes) for text in box_texts(node, box)]
        left += grid.width + COLUMN_GAP
        bottom = max(bottom, grid.bottoms[-1])
    width = max(left - COLUMN_GAP, *(text.x + text.width for text in texts if text.anchor == "start")) + MARGIN
    height = bottom + MARGIN
    if max(width, height) > MAX_SIDE:
        raise ModelError(f"a diagram of {width:.0f} x {height:.0f} px is too large; its layers are listed without one")
    boxes.sort(key=lambda box: box.style != "group")
    return Drawing(width=width, height=height, title=title, boxes=tuple(boxes), texts=tuple(texts), lines=tuple(lines))


def _box_width(nodes: Sequence[LayerNode]) -> float:
    return max([220.0, *(needed_width(node) for node in nodes if is_wide(node))])


def _parts(graph: LayerGraph) -> list[_Part]:
    """The net cut into columns of about the same height; each cut leaves two ports, one at either end."""
    edges = sorted({(edge.source, edge.target) for edge in graph.edges})
    rows = place([""] * len(graph.nodes), edges).rows
    heights = [float(GAP)] * (max(rows) + 1)
    for node, row in zip(graph.nodes, rows):
        heights[row] = max(heights[row], GAP + box_height(node))
    limit = max(COLUMN_HEIGHT, math.sqrt(sum(heights) * 420 * 0.8))
    cuts = [] if any(node.group for node in graph.nodes) else _cuts(rows, edges, heights, limit)
    parts = []
    for number, (start, end) in enumerate(zip([-1, *cuts], [*cuts, max(rows)]), start=1):
        inside = [index for index, row in enumerate(rows) if start < row <= end]
        nodes = [graph.nodes[index] for index in inside]
        at = {index: new for new, index in enumerate(inside)}
        if number > 1:
            before = next(source for source, target in edges if rows[source] <= start < rows[target])
            nodes.insert(0, _port(graph.nodes[before], f"column {number}"))
            at = {**{index: new + 1 for index, new in at.items()}, before: 0}
        own = [(at[source], at[target]) for source, target in edges if source in at and target in at]
        if end < max(rows):
            last = next(source for source, target in edges if rows[source] <= end < rows[target])
            own.append((at[last], len(nodes)))
            nodes.append(_port(graph.nodes[last], f"goes on in column {number + 1}"))
        parts.append(_Part(nodes=nodes, edges=own))
    return parts


def _port(node: LayerNode, text: str) -> LayerNode:
    return replace(node, name="", kind=text, role="output", parameters=0, detail="", group="")


def _cuts(rows: list[int], edges: list[tuple[int, int]], heights: list[float], limit: float) -> list[int]:
    """Rows after which a column ends: there, one node's output is all that goes on."""
    sources: list[set[int]] = [set() for _ in heights]
    for source, target in edges:
        for row in range(rows[source], rows[target]):
            sources[row].add(source)
    waists = [row for row, live in enumerate(sources) if len(live) == 1]
    ends = list(itertools.accumulate(heights))
    columns = math.ceil(ends[-1] / limit)
    cuts: list[int] = []
    for number in range(1, columns):
        goal = ends[-1] * number / columns
        best = min(waists, key=lambda row: abs(ends[row] - goal), default=-1)
        if best > max(cuts, default=0) and abs(ends[best] - goal) < limit / 2:
            cuts.append(best)
    return cuts


def _grid(part: _Part, wide: float, left: float) -> _Grid:
    places = place([node.group for node in part.nodes], part.edges)
    centred = _centred(part, places)
    widths = [
        max(
            [
                wide if is_wide(node) else needed_width(node)
                for node, own in zip(part.nodes, places.lanes)
                if own == lane
            ]
        )
        for lane in range(len(places.groups))
    ]
    centres, tracks, x = [], [], left
    for lane, width in enumerate(widths):
        if lane in centred:
            centres.append(x)
            tracks.append(x)
            continue
        if places.groups[lane] and places.groups[lane] != (places.groups[lane - 1] if lane else ""):
            x += TRACK
        centres.append(x + width / 2)
        tracks.append(x + width + TRACK)
        x += width + TRACK * max([track + 1 for track in places.tracks[lane].values()], default=0) + LANE_GAP
    x -= LANE_GAP
    for lane in centred:
        centres[lane] = (left + x) / 2
        tracks[lane] = x + TRACK
    reach = max([TRACK * (track + 1) for lane in centred for track in places.tracks[lane].values()], default=0)
    tops, bottoms = _rows(part, places)
    middles = _middles(part, places, tops)
    boxes = [make_box(node, centres[places.lanes[i]], middles[i], wide) for i, node in enumerate(part.nodes)]
    width = max([x + reach, *(box.x + box.width for box in boxes)]) - left
    shift = max(0.0, left - min(box.x for box in boxes))
    boxes = [replace(box, x=box.x + shift) for box in boxes]
    return _Grid(
        places=places,
        boxes=boxes,
        centres=[centre + shift for centre in centres],
        tracks=[track + shift for track in tracks],
        tops=tops,
        bottoms=bottoms,
        width=width + shift,
    )


def _centred(part: _Part, places: Places) -> set[int]:
    """Lanes over and under a GoodNet's two nets, which stand in the middle; none where they would meet its layers."""
    grouped = {row for node, row in zip(part.nodes, places.rows) if node.group}
    alone = {row for node, row in zip(part.nodes, places.rows) if not node.group}
    lanes = {lane for lane, group in enumerate(places.groups) if not group}
    return lanes if grouped and not grouped & alone and len(lanes) == 1 else set()


def _rows(part: _Part, places: Places) -> tuple[list[float], list[float]]:
    """Tops and bottoms of the rows, each gap as high as its lines need."""
    count = max(places.rows) + 1
    heights = [0.0] * count
    for node, row in zip(part.nodes, places.rows):
        heights[row] = max(heights[row], box_height(node))
    turns = _turns(part, places)
    groups = {node.group for node in part.nodes if node.group}
    ends = {max(row for node, row in zip(part.nodes, places.rows) if node.group == group) for group in groups}
    starts = {min(row for node, row in zip(part.nodes, places.rows) if node.group == group) for group in groups}
    tops, bottoms, y = [], [], float(HEADER + 20)
    for row in range(count):
        y += GROUP_ROOM if row in starts else 0
        tops.append(y)
        bottoms.append(y + heights[row])
        y += heights[row] + GAP + 8 * max(0, len(turns[row]) - 1)
        if row in ends:  # below the field: lines turn there, not on its edge
            bottoms[-1] += GROUP_FOOT
            y += GROUP_FOOT
    return tops, bottoms


def _middles(part: _Part, places: Places, tops: list[float]) -> list[float]:
    """Of the row that each node is in."""
    heights = [0.0] * len(tops)
    for node, row in zip(part.nodes, places.rows):
        heights[row] = max(heights[row], box_height(node))
    return [tops[row] + heights[row] / 2 for row in places.rows]


def _group_boxes(part: _Part, grid: _Grid, texts: list[Text]) -> list[Box]:
    """A field behind each of a GoodNet's nets, named at its top."""
    fields = []
    for group in dict.fromkeys(node.group for node in part.nodes if node.group):
        inside = [box for node, box in zip(part.nodes, grid.boxes) if node.group == group]
        left, top = min(box.x for box in inside) - TRACK, min(box.y for box in inside) - GROUP_ROOM + 4
        right = max(box.x + box.width for box in inside)
        for lane, own in enumerate(grid.places.groups):
            tracks = grid.places.tracks[lane].values()
            right = max([right, *(grid.tracks[lane] + TRACK * track for track in tracks if own == group)])
        bottom = max(box.y + box.height for box in inside) + TRACK
        fields.append(Box(x=left, y=top, width=right - left + TRACK, height=bottom - top, style="group"))
        texts.append(make_text(left + TRACK, top + 19, shortened(group, MAX_NAME), "soft"))
    return fields


def _turns(part: _Part, places: Places) -> list[list[tuple[str, int]]]:
    """For each gap what runs sideways in it: lines that leave a node (`out`) first, then lines that reach one."""
    out: list[dict[tuple[str, int], None]] = [{} for _ in range(max(places.rows) + 1)]
    into: list[dict[tuple[str, int], None]] = [{} for _ in out]
    alone = _alone(part)
    for source, target in part.edges:
        above, below = places.rows[source], places.rows[target] - 1
        tracked = not _is_direct(places, source, target)
        if tracked:
            out[above]["out", source] = None
        if tracked or places.lanes[source] != places.lanes[target]:
            way = _way(places, source, target, alone)
            (out if way[0] == "out" else into)[below][way] = None
    return [[*first, *then] for first, then in zip(out, into)]


def _alone(part: _Part) -> set[int]:
    """Nodes with a single line out of them."""
    counts = collections.Counter(source for source, _ in part.edges)
    return {source for source, count in counts.items() if count == 1}


def _way(places: Places, source: int, target: int, alone: set[int]) -> tuple[str, int]:
    """Which of the last gap's lines leads to `target`: those that end there share one, those that part do as well."""
    neighbours = places.rows[target] == places.rows[source] + 1
    return ("out", source) if neighbours and source not in alone else ("in", target)


def _is_direct(places: Places, source: int, target: int) -> bool:
    """Whether the line leaves in its own lane and needs no track."""
    return places.rows[target] == places.rows[source] + 1 or source not in places.tracks[places.lanes[source]]


def _lines(part: _Part, grid: _Grid) -> list[Line]:
    places = grid.places
    alone = _alone(part)
    turns = _turns(part, places)
    heights = {
        (row, *way): grid.bottoms[row] + 9 + 8 * number
        for row, ways in enumerate(turns)
        for number, way in enumerate(ways)
    }
    lines = []
    for source, target in sorted(set(part.edges)):
        start, end = grid.boxes[source], grid.boxes[target]
        x, goal = (grid.centres[places.lanes[node]] for node in (source, target))
        above, below = places.rows[source], places.rows[target] - 1
        tracked = not _is_direct(places, source, target)
        if len(turns[above]) > 1 and (tracked or (x != goal and above == below)):
            x += EXIT  # else it would run together with what another layer sends into the lane below
        points = [(x, start.y + start.height)]
        if tracked:
            height, lane = heights[above, "out", source], places.lanes[source]
            track = grid.tracks[lane] + TRACK * places.tracks[lane][source]
            points += [(x, height), (track, height)]
            x = track
        if x != goal:
            key = (below, *_way(places, source, target, alone))
            height = heights[key]
            points += [(x, height), (goal, height)]
        lines.append(Line(points=(*points, (goal, end.y))))
    return lines
