"""How each set of images was answered, before and after: right, the attacker's target, another class, or class N.

Made of the shares that a record holds. ASR leaves out images of the target's own class, RA and detection do not, so
counts are what add up: answers that are the target and right are counted as right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from goodnet.record import Measured, Poisoned, Share
from goodnet.report import figures
from goodnet.report.compare import Net, set_titles

KINDS = ("right", "target", "other", "refused")
_WIDE, _HIGH, _GAP = 400, 18, 2


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One net's answers to one set, as counts of `n`.

    `right` is null where no true labels are known: `other` are then all that are neither target nor refused. `target`
    is null for clean images, `refused` for a net without a class N.
    """

    net: str
    n: int
    right: int | None
    target: int | None
    other: int
    refused: int | None

    @property
    def bar(self) -> Markup:
        """The counts as one bar; for the eye alone, the figures stand beside it."""
        start, drawn = 0.0, []
        for kind in KINDS:
            count = getattr(self, kind)
            width = _WIDE * (count or 0) / self.n
            if width:
                inner = max(1.0, width - _GAP)
                drawn.append(f'<rect class="{kind}" x="{start:.2f}" y="0" width="{inner:.2f}" height="{_HIGH}"/>')
            start += width
        return Markup(
            f'<svg class="answers" viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio="none" aria-hidden="true">'
            f"{''.join(drawn)}</svg>"
        )


@dataclass(frozen=True, kw_only=True)
class AnsweredSet:
    """The answers to one set of images by each net that the record has measured on it."""

    title: str
    nets: tuple[Answers, ...]


def answered(nets: Sequence[Net]) -> tuple[AnsweredSet, ...]:
    """Clean images first, then the poisoned sets; without those nets of which too little is known."""
    clean = [_clean(net.column, net.measured) for net in nets]
    sets = [AnsweredSet(title="Clean images", nets=tuple(filter(None, clean)))]
    for key, title in set_titles(nets).items():
        found = [_poisoned(net.column, net.sets[key]) for net in nets if key in net.sets]
        sets.append(AnsweredSet(title=title, nets=tuple(filter(None, found))))
    return tuple(one for one in sets if one.nets)


def _clean(net: str, measured: Measured) -> Answers | None:
    known = measured.acc or measured.fpr
    if known is None:
        return None
    return _checked(
        net, known.n, right=_count(measured.acc, known.n), target=None, refused=_count(measured.fpr, known.n)
    )


def _poisoned(net: str, one: Poisoned) -> Answers | None:
    known = one.ra or one.detection or one.asr
    if known is None:
        return None
    target = 0 if one.asr is None else _count(one.asr, one.asr.n)
    return _checked(net, known.n, right=_count(one.ra, known.n), target=target, refused=_count(one.detection, known.n))


def _count(share: Share | None, n: int) -> int | None:
    """How many of n; -1, which nothing can be made of, for a share that is no share of n."""
    if share is None:
        return None
    if not figures.exists(share.value) or not 0 <= share.value <= 1 or share.n != n:
        return -1
    return round(share.value * n)


def _checked(net: str, n: int, *, right: int | None, target: int | None, refused: int | None) -> Answers | None:
    """The counts, where they are counts of n images; a record from outside may hold any numbers."""
    counts = [count for count in (right, target, refused) if count is not None]
    other = n - sum(counts)
    if n < 1 or other < 0 or any(count < 0 for count in counts):
        return None
    return Answers(net=net, n=n, right=right, target=target, other=other, refused=refused)
