"""What a detector hands back: the same for every method, so that a scan reads them alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from goodnet.record import Decision, LabelResult
from goodnet.triggers.trigger import Trigger


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """What a detector found: one row a label, the triggers of the labels that were searched whole."""

    labels: tuple[LabelResult, ...]
    triggers: Mapping[int, Trigger]
    decision: Decision
    forward_passes: int
