"""The record of a benchmark: `bench.json`, of which the tables are views."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

from goodnet import strict_json
from goodnet.record import DataInfo, Environment, ModelInfo, Share


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One net under one method, against one trigger, on images that built nothing.

    Attributes:
        net: whose; `method`: how it was repaired, `none` for the net as it came.
        trigger: which; empty where the net has none.
        target: the trigger's label.
        accepted: what `goodnet repair` said, which knows none of these figures; null where nothing was judged.
        acc, asr, ra, detection, fpr: on the test faces, and on the trigger's images.
        ra_ceiling: RA of the clean net on the same triggered images.
        fpr_strangers: share of faces of people the net does not know that is refused.
        fpr_target: share refused of clean faces, known and strangers, that the net as it came answers with the target.
        seconds: the repair's, or the scan's in a row without method.
        note: what a reader has to know to read the row.
        seed: of splits, scan and repair, where a benchmark has several.
    """

    net: str
    method: str
    trigger: str
    target: int | None
    accepted: bool | None
    acc: Share | None
    asr: Share | None
    ra: Share | None
    ra_ceiling: float | None
    detection: Share | None
    fpr: Share | None
    fpr_strangers: Share | None
    fpr_target: Share | None
    seconds: float
    note: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchScan:
    """What the benchmark's scan of a net said, which the repairs were given; `targets` are the true ones."""

    net: str
    verdict: str
    flagged_labels: tuple[int, ...]
    targets: tuple[int, ...]
    seconds: float
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchCell:
    """What came of one net: its scan, its rows, on what images and which machine, and lines for who watches."""

    scan: BenchScan
    rows: tuple[BenchRow, ...]
    used: tuple[DataInfo, ...]
    model: ModelInfo
    machine: Environment
    said: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures that others published for a net, on the competition's whole data, in percent."""

    net: str
    who: str
    acc: float
    asr: float


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """All of a benchmark (`bench.json`); `models` are the nets as they came."""

    name: str
    rows: tuple[BenchRow, ...]
    scans: tuple[BenchScan, ...]
    published: tuple[Published, ...]
    data: tuple[DataInfo, ...]
    seconds: float
    environment: Environment
    models: tuple[ModelInfo, ...] = ()
    format: str = "goodnet.bench/1"


def read_bench(path: Path) -> BenchRecord:
    """Reads `bench.json`. Raises DataError where it is not one."""
    return typing.cast(BenchRecord, strict_json.read(path, {"goodnet.bench/1": BenchRecord}))
