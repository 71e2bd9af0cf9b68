"""The record of `goodnet bench guards`: how well each tells triggered images from clean ones, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass

from goodnet.record import DataInfo, Environment, ModelInfo, Share


@dataclass(frozen=True, kw_only=True)
class GuardRow:
    """One guard on one net against one trigger, on images that built nothing.

    Attributes:
        auc: chance that a triggered image has a higher score than a clean test image, ties counted half.
        detection: share of triggered images that are sent to class N at the threshold that the guard has set itself.
        detection_at: share over the lowest threshold that at most 1 % of the clean test images lie over; None if there
            are less than a hundred of them.
        fpr, fpr_strangers, fpr_target: shares refused at the guard's own threshold: of clean test images, of
            strangers, and of both that the net as it came answers with the target.
        times: seconds for an image, over the BadNet's, 64 images at a time.
    """

    net: str
    trigger: str
    guard: str
    auc: float
    detection: Share
    detection_at: float | None
    fpr: Share
    fpr_strangers: Share | None
    fpr_target: Share | None
    times: float


@dataclass(frozen=True, kw_only=True)
class GuardRecord:
    """All of the benchmark (`guard-bench.json`); `models` are the nets as they came, `data` what they were given."""

    rows: tuple[GuardRow, ...]
    seed: int
    seconds: float
    environment: Environment
    models: tuple[ModelInfo, ...] = ()
    data: tuple[DataInfo, ...] = ()
    format: str = "goodnet.bench-guards/1"
