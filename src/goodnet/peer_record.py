"""The record of `goodnet bench peers`: what each program said of each net, and what its repair is worth."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

from goodnet import strict_json
from goodnet.record import DataInfo, Environment, ModelInfo, Share

AS_RELEASED, PATCHED = "as released", "after a small repair"
ANSWERED, FAILED, OUT_OF_TIME = "answered", "failed", "out of time"


@dataclass(frozen=True, kw_only=True)
class PeerFigures:
    """One repaired or guarded net against one trigger, by its answers to images that it was not fitted on.

    Attributes:
        name: which repair or guard; `none` for the net as it came.
        trigger: which; empty where the net has none.
        acc, asr, ra: as everywhere.
        detection, fpr: shares of triggered and of clean test images that are refused; None where nothing is refused.
    """

    name: str
    trigger: str
    acc: Share | None
    asr: Share | None
    ra: Share | None
    detection: Share | None
    fpr: Share | None


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """One program on one net.

    Attributes:
        net, peer: which.
        version: of its package; empty where it could not be asked.
        state: `as released`, or `after a small repair` of the program itself.
        outcome: `answered`, `failed` or `out of time`.
        reason: why it failed, in its own words.
        note: what a reader has to know.
        verdict: `suspect`, `clean` or `inconclusive`; None of a program that gives none, or had not come to one.
        flagged: labels that it flags; None of a program that flags none by design.
        done, total: labels that it was done with, where it said so.
        seconds: of processor time of its process, from start to end.
        whole_seconds: out of time: what all labels would take at the rate of those that were done; None if none was.
        peak_mib: most memory that its process held; None where the system does not tell.
        figures: of each net that it left.
        found, falsely: of a filter of training data: shares of the poisoned and of the clean images that it points at.
    """

    net: str
    peer: str
    version: str
    state: str
    outcome: str
    reason: str = ""
    note: str = ""
    verdict: str | None = None
    flagged: tuple[int, ...] | None = None
    done: int | None = None
    total: int | None = None
    seconds: float = 0.0
    whole_seconds: float | None = None
    peak_mib: float | None = None
    figures: tuple[PeerFigures, ...] = ()
    found: Share | None = None
    falsely: Share | None = None


@dataclass(frozen=True, kw_only=True)
class PeerNet:
    """A net that all programs were given.

    Attributes:
        targets: the true ones; empty for a clean net.
        clean: the defender's images; `test`: clean images to measure on.
        before: the net as it came.
        note: what a reader has to know.
    """

    name: str
    targets: tuple[int, ...]
    model: ModelInfo
    clean: DataInfo
    test: DataInfo
    before: tuple[PeerFigures, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PeerWords:
    """What a program is, what it sees that goodnet does not, and what was repaired of it; empty where nothing."""

    name: str
    what: str
    sees: str
    patch: str


@dataclass(frozen=True, kw_only=True)
class PeerRecord:
    """All of the benchmark (`peers.json`). `limit`: seconds of processor time for one program on one net."""

    nets: tuple[PeerNet, ...]
    peers: tuple[PeerWords, ...]
    rows: tuple[PeerRow, ...]
    limit: float
    seed: int
    seconds: float
    environment: Environment
    format: str = "goodnet.bench-peers/1"


@dataclass(frozen=True, kw_only=True)
class PeerCell:
    """One row on disk, with all that it depends on, so that an interrupted run goes on."""

    key: str
    row: PeerRow
    format: str = "goodnet.bench-peers-row/1"


def read_cell(path: Path) -> PeerCell:
    """Raises DataError where `path` is not one."""
    return typing.cast(PeerCell, strict_json.read(path, {"goodnet.bench-peers-row/1": PeerCell}))
