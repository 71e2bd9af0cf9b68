"""Every label's p-value against what chance alone gives: the k-th most unlikely of a clean net's labels is near k.

A p-value times the number of labels is how many labels of a clean net show as much by chance. What stands far above
the line of the null is what a scan flags.
"""

from __future__ import annotations

from markupsafe import Markup

from goodnet.record import LabelResult, ScanRecord
from goodnet.report import figures
from goodnet.report.plot import BOTTOM, HEIGHT, LEFT, MAX_NAMED, RIGHT, SHAPES, TOP, WIDTH, Axis, drawing
from goodnet.verdicts import chances

_LEAST = 1e-10  # further out a tail says no more than that it is far; the name beside the mark has the figure
_ORDER = ("skipped", "screened", "failed", "searched")


def null_plot(record: ScanRecord) -> Markup | None:
    """The drawing; null where no label has a p-value."""
    ranked = chances(record)
    if not ranked:
        return None
    decision = record.decision
    limits = {"flag": decision.false_alarm_rate, "doubt": decision.doubt_rate}
    limits = {name: value for name, value in limits.items() if figures.exists(value) and _LEAST < value < 1}
    smallest = min([ranked[0][1] / 3, *(value / 5 for value in limits.values())])
    y = Axis(low=max(_LEAST, smallest), high=max(1.5, ranked[-1][1]), start=TOP, end=HEIGHT - BOTTOM, log=True)
    x = Axis(low=0.8, high=max(2.0, len(ranked) * 1.05), start=LEFT, end=WIDTH - RIGHT, log=True)
    flagged = set(record.flagged_labels)
    body = [_axes(x, y), _null(x, y, len(ranked)), *_limits(limits, y)]
    ranks = list(enumerate(ranked, start=1))
    for kind in _ORDER:
        some = [(rank, chance) for rank, (row, chance) in ranks if row.status == kind and row.label not in flagged]
        # one path of all: a mark each would be a thousand elements more, and the table below has every label's figure
        if some:
            marks = "".join(f"M{x(rank)} {y(chance)}{SHAPES.get(kind, SHAPES['failed'])}" for rank, chance in some)
            body.append(f'<g class="{kind}"><path d="{marks}"/></g>')
    named = [(rank, row, chance) for rank, (row, chance) in ranks if row.label in flagged]
    body.append(_flagged(named, x, y))
    most = ranked[0]
    title = (
        f"p-value times labels of {len(ranked):,} labels by rank; the most unlikely is label {most[0].label} "
        f"with {figures.typeset(figures.chance(most[1]))}"
    )
    return drawing(body, title)


def _axes(x: Axis, y: Axis) -> str:
    drawn = []
    for tick in y.ticks():
        text = f"{tick:,g}" if tick > 1e-4 else figures.typeset(f"{tick:.0e}")
        drawn.append(
            f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>'
            f'<text text-anchor="end" x="{LEFT - 8}" y="{y(tick) + 4}">{text}</text>'
        )
    for tick in x.ticks():
        drawn.append(f'<text text-anchor="middle" x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}">{tick:,g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    drawn.append(
        f'<text class="title" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">rank, the most unlikely label first, '
        f'log scale</text><text class="title" x="4" y="12">p × labels, log scale: unlikely by chance at the top</text>'
    )
    return "".join(drawn)


def _null(x: Axis, y: Axis, count: int) -> str:
    """The line on which a clean net's labels lie: one label is expected where p times labels is 1, and so on."""
    end = min(float(count), y.high)
    return (
        f'<path class="line" d="M{x(1)} {y(1)}L{x(end)} {y(end)}"/>'
        f'<text class="name" x="{x(end) + 6:.1f}" y="{y(end) + 4}">chance</text>'
    )


def _limits(limits: dict[str, float], y: Axis) -> list[str]:
    """Where a label is flagged, and where it is too unlikely to call the net clean; named at the right edge."""
    drawn, used = [], -100.0
    for name, value in sorted(limits.items(), key=lambda pair: pair[1]):
        height = y(value)
        text = max(height + 4, used + 15)
        used = text
        kind = " threshold" if name == "flag" else ""
        drawn.append(
            f'<path class="line{kind}" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>'
            f'<text class="name{kind}" x="{WIDTH - RIGHT + 6}" y="{text:.1f}">{name}: {100 * value:.3g} %</text>'
        )
    return drawn


def _flagged(points: list[tuple[int, LabelResult, float]], x: Axis, y: Axis) -> str:
    marks, names, lowest = [], [], -100.0
    for turn, (rank, row, chance) in enumerate(points):
        text = figures.typeset(figures.chance(chance))
        left, height = x(rank), y(max(chance, y.low))
        marks.append(f'<path d="M{left} {height}{SHAPES["flagged"]}"><title>label {row.label}, {text}</title></path>')
        if turn < MAX_NAMED:  # ranks grow, so names go down the page and only need to keep off the one before
            lowest = max(height + 4, lowest + 15)
            anchor, shift = (' text-anchor="end"', -12) if left > WIDTH - RIGHT - 180 else ("", 12)
            words = f"label {row.label}: {text}"
            names.append(f'<text class="flag"{anchor} x="{left + shift:.1f}" y="{lowest:.1f}">{words}</text>')
    return f'<g class="flagged">{"".join(marks)}</g>{"".join(names)}'
