"""Where the layers of a net go: rows by depth, branches in lanes side by side, skips in tracks beside the lanes.

A lane holds a chain of layers from where it branches off to where it joins, so its lines run straight. Row r is
followed by gap r, in which lines change sides; what goes past whole rows outside its lane gets a track, one for each
source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Each node's row and lane, each lane's tracks as {source: track}, each lane's group."""

    rows: list[int]
    lanes: list[int]
    tracks: list[dict[int, int]]
    groups: list[str]


def place(groups: Sequence[str], edges: Iterable[tuple[int, int]]) -> Places:
    """Rows, lanes and tracks of nodes 0..n-1 of these groups; every edge leads to a later node."""
    edges = sorted(set(edges))
    after: list[list[int]] = [[] for _ in groups]
    rows = [0] * len(groups)
    for source, target in edges:
        after[source].append(target)
    for source, targets in enumerate(after):
        for target in targets:
            rows[target] = max(rows[target], rows[source] + 1)
    lanes = [0] * len(groups)
    lane_groups: list[str] = []
    chained: set[int] = set()  # what has its lane to itself down to its last successor
    for group in dict.fromkeys(groups):
        first = len(lane_groups)
        spans: list[list[Span]] = []
        for chain in _chains([node for node, own in enumerate(groups) if own == group], after):
            end = max([rows[node] for node in after[chain[-1]]], default=rows[chain[-1]] + 1)
            lane = _free(spans, (rows[chain[0]] - 1, end - 1))
            for node in chain:
                lanes[node] = first + lane
            chained.add(chain[-1])
        lane_groups += [group] * len(spans)
    tracks = _tracks(after, rows, lanes, chained, len(lane_groups))
    return Places(rows=rows, lanes=lanes, tracks=tracks, groups=lane_groups)


def _chains(nodes: list[int], after: list[list[int]]) -> Iterable[list[int]]:
    """The longest chain of nodes, then the longest of what is left, and so on."""
    left = set(nodes)
    while left:
        length: dict[int, int] = {}
        following: dict[int, int] = {}
        for node in sorted(left, reverse=True):
            best = max((one for one in after[node] if one in left), key=lambda one: length[one], default=-1)
            length[node] = 1 + length.get(best, 0)
            following[node] = best
        node = max(sorted(left), key=lambda one: length[one])
        chain = []
        while node >= 0:
            chain.append(node)
            node = following[node]
        left.difference_update(chain)
        yield chain


def _free(spans: list[list[Span]], wanted: Span) -> int:
    """The first of `spans` with room for one more; it is written down there."""
    for index, taken in enumerate(spans):
        if all(end < wanted[0] or wanted[1] < start for start, end in taken):
            taken.append(wanted)
            return index
    spans.append([wanted])
    return len(spans) - 1


def _tracks(
    after: list[list[int]], rows: list[int], lanes: list[int], chained: set[int], count: int
) -> list[dict[int, int]]:
    tracks: list[dict[int, int]] = [{} for _ in range(count)]
    spans: list[list[list[Span]]] = [[] for _ in range(count)]
    next_in_lane = _next_in_lane(after, rows, lanes)
    for source, targets in enumerate(after):
        far = [one for one in targets if rows[one] > rows[source] + 1]
        if source not in chained and any(one != next_in_lane[source] for one in far):
            lane, end = lanes[source], max(rows[one] for one in far)
            tracks[lane][source] = _free(spans[lane], (rows[source], end - 1))
    return tracks


def _next_in_lane(after: list[list[int]], rows: list[int], lanes: list[int]) -> list[int]:
    return [
        min((one for one in targets if lanes[one] == lanes[source]), key=lambda one: rows[one], default=-1)
        for source, targets in enumerate(after)
    ]
