"""What a scan would decide at other false-alarm rates: the verdict made again from its record, step by step.

Like a ROC curve's axis, from "hardly a clean net is called suspect" on the left to "every other one" on the right; each
label is a bar from the rate on at which it would be flagged. `goodnet.verdicts` decides, as it did for the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from goodnet.record import ScanRecord
from goodnet.report import figures
from goodnet.report.plot import LEFT, RIGHT, WIDTH, Axis, drawing
from goodnet.verdicts import Decided, decided_over, is_repeatable

LOWEST, HIGHEST = 1e-6, 0.5
MAX_STEPS, MAX_LANES = 60, 12
_LANE, _BAR, _TOP = 26, 8, 46
_WORD = 84  # a verdict's word fits into a band of this width


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the table: what is decided at the rates of `span`; `used` where the scan's own rate is one."""

    span: str
    verdict: str
    flagged: str
    used: bool


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The view; `steady` says over which rates the verdict stays what it is."""

    steps: tuple[Step, ...]
    plot: Markup
    steady: str
    left_out: int


def rates(record: ScanRecord) -> Rates | str:
    """The view, or in words why there is none."""
    used = record.decision.false_alarm_rate
    if not (figures.exists(used) and 0 < used <= 1) or not is_repeatable(record):
        return (
            "What this record holds does not give its verdict again, so other rates are not shown: the detector flags "
            "by a rule of its own, or the record was edited."
        )
    low, high = min(LOWEST, used), max(HIGHEST, used)
    found = decided_over(record, low, high, most=MAX_STEPS)
    if not found:
        return f"More than {MAX_STEPS} labels would be flagged at one rate or another: too many to show."
    own = max(at for at, step in enumerate(found) if step.rate <= used)
    steps = tuple(
        Step(
            span=_span(found, at),
            verdict=step.verdict,
            flagged=figures.enumeration([str(label) for label in step.flagged]),
            used=at == own,
        )
        for at, step in enumerate(found)
    )
    lanes = _lanes(found)
    axis = Axis(low=low, high=high, start=LEFT + 40, end=WIDTH - RIGHT + 40, log=True)
    return Rates(
        steps=steps,
        plot=_plot(found, lanes, axis, used),
        steady=_steady(found, own, high),
        left_out=max(0, len(lanes) - MAX_LANES),
    )


def _span(steps: tuple[Decided, ...], at: int) -> str:
    here, then = figures.one_in(steps[at].rate), figures.one_in(steps[at + 1].rate) if at + 1 < len(steps) else ""
    if at == 0:
        return f"lower than {then}" if then else "every rate"
    return f"{here} up to {then}" if then else f"{here} and higher"


def _lanes(steps: tuple[Decided, ...]) -> dict[int, float]:
    """Labels by the rate from which they are flagged; what is flagged at a rate is flagged at all higher ones."""
    lanes: dict[int, float] = {}
    for step in steps:
        for label in step.flagged:
            lanes.setdefault(label, step.rate)
    return lanes


def _steady(steps: tuple[Decided, ...], own: int, high: float) -> str:
    verdict = steps[own].verdict
    first = own
    while first > 0 and steps[first - 1].verdict == verdict:
        first -= 1
    after = next((step for step in steps[own:] if step.verdict != verdict), None)
    if first == 0 and after is None:
        return f"The verdict is {verdict} at every rate shown."
    end = f"up to {figures.one_in(after.rate)}" if after else f"up to {figures.one_in(high)}, the highest shown"
    start = "any lower rate" if first == 0 else figures.one_in(steps[first].rate)
    return f"The verdict is {verdict} from {start} {end}."


def _plot(steps: tuple[Decided, ...], lanes: dict[int, float], x: Axis, used: float) -> Markup:
    shown = list(lanes.items())[:MAX_LANES]
    bottom = _TOP + _LANE * (1 + max(1, len(shown))) + 4
    body = [*_grid(x, bottom), _name("verdict", 0), *_bands(steps, x)]
    for turn, (label, rate) in enumerate(shown, start=1):
        top = _TOP + _LANE * turn
        body.append(_name(f"label {label}", turn, kind="flag"))
        body.append(f'<rect class="lane" x="{x(rate)}" y="{top + 3}" width="{x.end - x(rate):.1f}" height="{_BAR}"/>')
    if not shown:
        body.append(_name("no label", 1))
    at = x(used)
    body.append(
        f'<path class="line used" d="M{at} {_TOP - 12}V{bottom}"/>'
        f'<text class="used" text-anchor="middle" x="{at}" y="{_TOP - 18}">used: {figures.one_in(used)}</text>'
    )
    return drawing(body, "Verdict and flagged labels by false-alarm rate; the table below says the same", bottom + 50)


def _name(text: str, turn: int, kind: str = "name") -> str:
    return f'<text class="{kind}" text-anchor="end" x="{LEFT + 30}" y="{_TOP + _LANE * turn + 12}">{text}</text>'


def _bands(steps: tuple[Decided, ...], x: Axis) -> list[str]:
    """The verdict as bands, neighbours of one verdict joined."""
    starts = [step for turn, step in enumerate(steps) if turn == 0 or steps[turn - 1].verdict != step.verdict]
    ends = [*(x(step.rate) for step in starts[1:]), x.end]
    drawn = []
    for step, end in zip(starts, ends):
        start = x(step.rate)
        drawn.append(
            f'<g data-tone="{step.verdict}"><rect class="band" x="{start}" y="{_TOP - 2}" width="{end - start:.1f}" '
            f'height="18"><title>{step.verdict}</title></rect>'
        )
        if end - start >= _WORD:
            drawn.append(f'<text class="word-in" x="{start + 8:.1f}" y="{_TOP + 11.5}">{step.verdict}</text>')
        drawn.append("</g>")
    return drawn


def _grid(x: Axis, bottom: float) -> list[str]:
    drawn = []
    for tick in x.ticks():
        drawn.append(
            f'<path class="grid" d="M{x(tick)} {_TOP - 8}V{bottom}"/>'
            f'<text text-anchor="middle" x="{x(tick)}" y="{bottom + 18}">{figures.one_in(tick)}</text>'
        )
    middle = (x.start + x.end) / 2
    drawn.append(f'<path class="axis" d="M{x.start:.1f} {bottom}H{x.end:.1f}"/>')
    drawn.append(
        f'<text class="title" text-anchor="middle" x="{middle:.1f}" y="{bottom + 40}">false-alarm rate: clean nets '
        "that chance alone would have called suspect, log scale</text>"
    )
    return drawn
