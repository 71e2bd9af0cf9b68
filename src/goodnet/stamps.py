"""Plain stamps as plain data: what a scan's record holds of `goodnet.triggers.plain`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

SPOT = 0.023
"""Share of the image that every trigger is given for free when margins a pixel are compared."""
_ASR = 0.9


@dataclass(frozen=True, kw_only=True)
class PlainStamp:
    """A rectangle of one colour, and what it does.

    Attributes:
        label: where it leads.
        top, left, bottom, right: it covers rows top..bottom-1 and columns left..right-1.
        colour: (C,) in [0, 1].
        lead: by how much the label leads on stamped images of other classes, on average, in heights: how far the net's
            answer to a clean image stands over its average logit.
        asr: share of stamped images of other classes that get the label.
        share: of the image that it covers.
    """

    label: int
    top: int
    left: int
    bottom: int
    right: int
    colour: tuple[float, ...]
    lead: float
    asr: float
    share: float

    @property
    def worth(self) -> float:
        """The lead over the share of the image that is covered: what refining makes larger."""
        return self.lead / (self.share + SPOT)

    def leads(self, least: float) -> bool:
        """Whether it leads by at least so much, and nine in ten images of other classes to its label."""
        return self.lead >= least and self.asr >= _ASR
