"""Plots as inline SVG, made by hand: no library, no script, colours from the page's style sheet.

Coordinates are those of the view box; the page scales it. Everything that is drawn is a number or a word of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from goodnet.record import Decision, LabelResult, ScanRecord
from goodnet.report import figures

WIDTH, HEIGHT = 880, 350
LEFT, RIGHT, TOP, BOTTOM = 64, 86, 32, 44
MAX_NAMED = 12
_LOG_FROM, _MAX_POWERS = 6.0, 8
_MOST_PIXELS = 1e15  # of no image: a damaged record's norm
_DRAWING_ORDER = ("screened", "failed", "searched", "flagged")
# paths from the point itself: a tick, a cross, a disc, a diamond
SHAPES = {
    "screened": "m0-3v6",
    "failed": "m-3-3l6 6m0-6l-6 6",
    "searched": "m-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0",
    "flagged": "m0-6.5l6.5 6.5l-6.5 6.5l-6.5-6.5z",
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values in [low, high] onto pixels in [start, end], linear or logarithmic; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the axis: 1, 2, 5 times a power of ten."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, about)


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(turn * step, 12) for turn in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    step = -(-len(powers) // _MAX_POWERS)
    ticks = [factor * 10.0**power for power in powers if power % step == 0 for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def drawn_norm(result: LabelResult) -> float | None:
    """The mask norm, or that of the first pass for a label that went no further."""
    for norm in (result.mask_norm, result.screen_norm):
        if norm is not None and figures.exists(norm) and 0 <= norm < _MOST_PIXELS:
            return norm
    return None


def norm_plot(record: ScanRecord) -> Markup | None:
    """All labels' mask norms with median and threshold; null where there is no norm to draw."""
    flagged = set(record.flagged_labels)
    points = [
        ("flagged" if result.label in flagged else result.status, result, norm)
        for result in record.labels
        if (norm := drawn_norm(result)) is not None
    ]
    points = [point for point in points if point[0] in SHAPES]
    if not points:
        return None
    y = _norm_axis([norm for _, _, norm in points], record.decision)
    labels = [result.label for _, result, _ in points]
    x = Axis(low=min(labels) - 0.5, high=max(labels) + 0.5, start=LEFT, end=WIDTH - RIGHT)
    body = [_axes(x, y, "label", "mask norm (px)", about=8, whole=True), *_lines(record, y)]
    for kind in _DRAWING_ORDER:
        body.append(_points(kind, [(result, norm) for one, result, norm in points if one == kind], x, y))
    body.append(_names([(result.label, norm) for kind, result, norm in points if kind == "flagged"], x, y))
    return drawing(body, f"Mask norms of {len(points):,} labels")


def _norm_axis(norms: list[float], decision: Decision) -> Axis:
    positive = [value for value in norms if value > 0]
    smallest = min(positive, default=1.0)
    # a threshold far below every norm would squeeze the points together: the caption gives it
    lines = (decision.median_norm, decision.threshold_norm)
    positive += [line for line in lines if line is not None and figures.exists(line) and line > smallest / 5]
    start, end = HEIGHT - BOTTOM, TOP
    if positive and max(positive) / min(positive) > _LOG_FROM:
        return Axis(low=min(positive) / 1.4, high=max(positive) * 1.25, start=start, end=end, log=True)
    return Axis(low=0.0, high=max(positive, default=1.0) * 1.1, start=start, end=end)


def _lines(record: ScanRecord, y: Axis) -> list[str]:
    """Median and threshold, each named at the right edge; one outside the axis is left to the caption."""
    decision, drawn = record.decision, []
    used: list[float] = []
    for name, value in (("median", decision.median_norm), ("threshold", decision.threshold_norm)):
        if value is None or not figures.exists(value) or not y.low < value <= y.high:
            continue
        height = y(value)
        text = height + 4
        if any(abs(text - other) < 14 for other in used):
            text += 14
        used.append(text)
        drawn.append(
            f'<path class="line {name}" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>'
            f'<text class="name {name}" x="{WIDTH - RIGHT + 6}" y="{text}">{name}</text>'
        )
    return drawn


def _points(kind: str, points: Sequence[tuple[LabelResult, float]], x: Axis, y: Axis) -> str:
    marks = "".join(
        f'<path d="M{x(result.label)} {y(norm)}{SHAPES[kind]}"><title>label {result.label}, {_tip(result, norm)}'
        f"</title></path>"
        for result, norm in points
    )
    return f'<g class="{kind}">{marks}</g>'


def _tip(result: LabelResult, norm: float) -> str:
    status = result.status if result.status in SHAPES else "skipped"
    which = "norm" if result.mask_norm is not None else "norm after the first pass"
    p = "" if result.p_value is None else f", p {figures.p_value(result.p_value).replace('<', 'below')}"
    return f"{status}: {which} {figures.number(norm)}{p}"


def _names(points: list[tuple[int, float]], x: Axis, y: Axis) -> str:
    """Flagged labels' names beside their marks, moved up where they would cover each other."""
    boxes: list[tuple[float, float]] = []
    drawn = []
    for label, norm in points[:MAX_NAMED]:
        left, height = x(label), y(norm) + 4
        while any(abs(left - other) < 70 and abs(height - above) < 15 for other, above in boxes):
            height -= 15
        boxes.append((left, height))
        end = left > WIDTH - RIGHT - 70
        anchor, shift = (' text-anchor="end"', -11) if end else ("", 11)
        drawn.append(f'<text class="flag"{anchor} x="{left + shift:.1f}" y="{height:.1f}">label {label}</text>')
    return "".join(drawn)


def _axes(x: Axis, y: Axis, x_name: str, y_name: str, *, about: int, whole: bool = False) -> str:
    drawn = []
    for tick in y.ticks():
        drawn.append(
            f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>'
            f'<text text-anchor="end" x="{LEFT - 8}" y="{y(tick) + 4}">{tick:,g}</text>'
        )
    for tick in x.ticks(about):
        if not whole or tick == int(tick):
            drawn.append(f'<text text-anchor="middle" x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}">{tick:,g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    drawn.append(f'<text class="title" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{x_name}</text>')
    drawn.append(f'<text class="title" x="4" y="12">{y_name}{", log scale" if y.log else ""}</text>')
    return "".join(drawn)


def marker(kind: str) -> Markup:
    """The mark of one kind of point, for the legend."""
    return Markup(
        f'<svg class="plot marker" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">'
        f'<g class="{kind}"><path d="M8 8{SHAPES[kind]}"/></g></svg>'
    )


def drawing(body: Sequence[str], title: str, height: float = HEIGHT) -> Markup:
    """The elements as one drawing, for a reader who sees and, by `title`, for one who does not. Nothing is escaped."""
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{title}">{"".join(body)}</svg>'
    )
