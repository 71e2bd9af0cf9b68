"""The record of the detection benchmark: `detection.json`, of which its tables are views; and of each net in its pool.

The nets of the part `setting` are for choosing what a scan decides by, those of `judging` for saying how well it does.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

from goodnet import strict_json
from goodnet.record import DataInfo, Environment, MethodInfo, ModelInfo, Share

FORMAT = "goodnet.bench-detection/1"
NET_FORMAT = "goodnet.pool-net/1"


@dataclass(frozen=True, kw_only=True)
class PoolTrigger:
    """One trigger of a net; `target` is null for all-to-all. ASR on images that were not trained on."""

    name: str
    target: int | None
    asr: Share | None


@dataclass(frozen=True, kw_only=True)
class PoolNetRecord:
    """A net of the pool, as it was trained (`net.json`).

    Attributes:
        name: of the net.
        spec_sha256: of all that it is made from but its images.
        acc: on clean images that neither the training nor the defender has.
        triggers: none for a clean net.
        targets: the labels that the triggers lead to.
        planted: every trigger reaches the ASR that counts as a backdoor; true for a clean net.
        model, clean: the net's file and the defender's images, as they lie beside the record.
        train: what it was trained on, clean images alone.
        seconds: of training.
    """

    name: str
    spec_sha256: str
    acc: Share | None
    triggers: tuple[PoolTrigger, ...]
    targets: tuple[int, ...]
    planted: bool
    model: ModelInfo
    clean: DataInfo
    train: DataInfo
    seconds: float
    format: str = NET_FORMAT


@dataclass(frozen=True, kw_only=True)
class DetectionRow:
    """What the scan of one net said, beside the truth, which the scan was not told.

    Attributes:
        net, part: whose, and what it is for.
        kind: images and architecture in words.
        attack: empty for a clean net.
        targets: the true ones.
        planted: see `PoolNetRecord`; a net that is not planted counts in no rate.
        acc, asr: of the net; `asr` is its weakest trigger's, null for a clean net.
        verdict, flagged_labels: the scan's; of a net that it called all-to-all, the labels that classes are led to.
        score: smallest p-value of a label times the number of classes, 0 for a net called all-to-all; null where no
            label has one.
        best_label: the label of that p-value.
        target_ratio: the smallest mask norm of a true target, over the median; null where none was found.
        seconds, forward_passes: of the scan.
        model_sha256, data_sha256: of the net's file and of the clean images that the scan was given.
    """

    net: str
    part: str
    kind: str
    attack: str
    targets: tuple[int, ...]
    planted: bool
    acc: Share | None
    asr: float | None
    verdict: str
    flagged_labels: tuple[int, ...]
    score: float | None
    best_label: int | None
    target_ratio: float | None
    seconds: float
    forward_passes: int
    model_sha256: str = ""
    data_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """Rates over some nets. A rate without nets is null.

    Attributes:
        part, group: which nets; the group is `all`, a kind, an attack, or attacks together.
        clean, backdoored: how many of each; `not_planted` further ones that count nowhere.
        tpr: of backdoored nets, those called suspect with at least one true target flagged.
        suspect: of backdoored nets, those called suspect, whatever was flagged.
        fpr: of clean nets, those called suspect.
        inconclusive: of all.
        missed: of backdoored nets, those called clean.
        precision: of the labels flagged in backdoored nets, those that are true targets.
        recall: of the true targets of backdoored nets, those flagged.
        auc: of the score, backdoored against clean nets, with a bootstrap 95 % interval; `n` is the number of nets.
        seconds: median of a scan.
    """

    part: str
    group: str
    clean: int
    backdoored: int
    not_planted: int
    tpr: Share | None
    suspect: Share | None
    fpr: Share | None
    inconclusive: Share | None
    missed: Share | None
    precision: Share | None
    recall: Share | None
    auc: Share | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class DetectionRecord:
    """All of the detection benchmark (`detection.json`); `left_out`: nets that could not be made, and why."""

    rows: tuple[DetectionRow, ...]
    summaries: tuple[DetectionSummary, ...]
    left_out: tuple[str, ...]
    method: MethodInfo
    seconds: float
    environment: Environment
    format: str = FORMAT


def read_pool_net(path: Path) -> PoolNetRecord:
    """Reads `net.json`. Raises DataError where it is not one."""
    return typing.cast(PoolNetRecord, strict_json.read(path, {NET_FORMAT: PoolNetRecord}))


def read_detection(path: Path) -> DetectionRecord:
    """Reads `detection.json`. Raises DataError where it is not one."""
    return typing.cast(DetectionRecord, strict_json.read(path, {FORMAT: DetectionRecord}))
