"""The record of the adaptive benchmark: `adaptive.json`, of which its tables are views; and of each of its rows."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodnet import strict_json
from goodnet.record import DataInfo, Environment, MethodInfo, Share

FORMAT = "goodnet.bench-adaptive/1"
ROW_FORMAT = "goodnet.adaptive-row/1"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a net does on test images; ASR and what follows are null for a net without a backdoor."""

    acc: Share | None
    asr: Share | None = None
    ra: Share | None = None
    detection: Share | None = None
    fpr: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Again:
    """A re-attack: ASR before the first step and after each; the first step of 50 %, null where it took more."""

    curve: tuple[float, ...]
    steps_to_half: int | None


@dataclass(frozen=True, kw_only=True)
class AdaptiveRow:
    """One net under one method.

    Attributes:
        net, kind: whose row it is; images and architecture in words.
        attack: empty for a clean net.
        trigger_norm: L1 of the trigger's mask, where the attacker searched for the lowest.
        target: the true one; null for a clean net.
        planted: ASR reaches what counts as a backdoor; true for a clean net. Other nets say nothing of a defence.
        before: the net as it came.
        verdict, flagged_labels: the scan's, with its defaults.
        target_flagged: null for a clean net.
        target_ratio: mask norm of the true target over the median; null where unknown.
        method: of the repair.
        repaired: false where the method had nothing to go by; `after` is then the net as it came.
        accepted: by the repair's own limits; null where it could not judge itself, or did nothing.
        after: the GoodNet.
        again: of the GoodNet; null where nothing was repaired.
        again_clean: the same re-attack on a clean net of the same task; null for a clean net's own row.
        train, clean: what the net was trained on before poison, and what the defender had.
        scan_seconds, repair_seconds: of each.
        note: why nothing was repaired; empty otherwise.
        model_sha256: of the net's file.
    """

    net: str
    kind: str
    attack: str
    trigger_norm: float | None
    target: int | None
    planted: bool
    before: Figures
    verdict: str
    flagged_labels: tuple[int, ...]
    target_flagged: bool | None
    target_ratio: float | None
    method: str
    repaired: bool
    accepted: bool | None
    after: Figures
    again: Again | None
    again_clean: Again | None
    train: DataInfo
    clean: DataInfo
    scan_seconds: float
    repair_seconds: float
    note: str
    model_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class KeptRow:
    """A row that is done; `sha256` is of all that it hangs on, so that another run knows whether it may take it."""

    sha256: str
    row: AdaptiveRow
    format: str = ROW_FORMAT


@dataclass(frozen=True, kw_only=True)
class AdaptiveRecord:
    """All of the adaptive benchmark (`adaptive.json`).

    Attributes:
        rows: a net under a method each, in the order of the benchmark.
        left_out: nets that could not be made, and why.
        scan, methods: the detector and the repairs, with their settings.
        reattack: settings of the re-attack.
        survives_over: a backdoor whose ASR is over this after the repair is said to survive.
    """

    rows: tuple[AdaptiveRow, ...]
    left_out: tuple[str, ...]
    scan: MethodInfo
    methods: tuple[MethodInfo, ...]
    reattack: dict[str, Any]
    survives_over: float
    seconds: float
    environment: Environment
    format: str = FORMAT


def read_row(path: Path) -> KeptRow:
    """Reads a row. Raises DataError where it is not one."""
    return typing.cast(KeptRow, strict_json.read(path, {ROW_FORMAT: KeptRow}))


def read_adaptive(path: Path) -> AdaptiveRecord:
    """Reads `adaptive.json`. Raises DataError where it is not one."""
    return typing.cast(AdaptiveRecord, strict_json.read(path, {FORMAT: AdaptiveRecord}))
