"""`python -m bench scale`: scans of bigger nets, planned and measured: seconds, processor time and memory.

Each row is a process of its own, whose peak is then that of one scan, and which plans right before it scans, as
`goodnet scan` does. Rows are kept in the folder `goodnet-bench-scale` (or $GOODNET_BENCH_SCALE) with the nets; a run
that was interrupted goes on there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.common import shared_data
from bench.scale_nets import KINDS, TARGET, clean_images, trained, widened
from goodnet.data.readers import read_images
from goodnet.memory import peak
from goodnet.planning import Plan, plan
from goodnet.scan import USED, scan
from goodnet.staged import Staged
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.plain import PlainSchedule

FULL = Staged()
SHORT = replace(
    FULL,
    margins=replace(FULL.margins, climb=replace(FULL.margins.climb, steps=20)),
    masks=replace(FULL.masks, search=Schedule(steps=40, batch=8)),
    away=replace(FULL.away, starts=1, search=Schedule(steps=40, batch=8)),
    restarts=1,
)
# No verdict can be made of it: it is for what a scan costs.
COST = replace(
    FULL,
    margins=replace(FULL.margins, climb=replace(FULL.margins.climb, steps=2)),
    masks=replace(FULL.masks, screen=Schedule(steps=2, batch=4), search=Schedule(steps=8, batch=16),
                  candidates=2, controls=8),
    away=replace(FULL.away, starts=1, search=Schedule(steps=8, batch=16)),
    plain=PlainSchedule(images=1, shapes=((0.2, 0.6),), levels=2, starts=1, rounds=4),
    margin_candidates=2,
    stamp_candidates=2,
    restarts=0,
)  # fmt: skip
BIGGER = ("ResNet-18 32", "ResNet-18 64", "PreActResNet-18 32", "WideResNet-28-4 32", "VGG-16 32", "ViT 32")
METHODS = {"default": FULL, "short": SHORT, "cost": COST}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A scan to measure: of which net with how many labels, how thoroughly, on how many images, in how many threads."""

    net: str
    labels: int
    method: str = "cost"
    images: int = 100
    threads: int = 1
    fitted: bool = False

    @property
    def key(self) -> str:
        return f"{self.net}, {self.labels} labels, {self.method}, {self.threads} threads"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a setting: seconds by the clock and of the processor, from the plan on; bytes."""

    setting: Setting
    parameters: int
    precision: str
    block: int
    images_per_second: float
    planned_seconds: float
    seconds: float
    planned_core_seconds: float
    core_seconds: float
    planned_memory: int
    memory: int
    again: int
    verdict: str


SETTINGS = (
    Setting(net="DeepID 32", labels=10, fitted=True),
    Setting(net="DeepID 32", labels=10, threads=2, fitted=True),
    Setting(net="small VGG 32", labels=43, fitted=True),
    Setting(net="ResNet-18 64", labels=10, fitted=True),
    Setting(net="ResNet-18 32", labels=10, method="default", images=300),
    Setting(net="ResNet-18 32", labels=10, method="short", images=300),
    Setting(net="ResNet-18 64", labels=43, method="short", images=300),
    Setting(net="VGG-16 32", labels=10, method="short", images=300),
    Setting(net="ResNet-18 224", labels=10, method="short", images=80),
    Setting(net="ResNet-18 64", labels=200, threads=2),
    *(
        Setting(net=net, labels=labels)
        for net in BIGGER
        for labels in (10, 43, 200, 1000)
        if (net, labels) != ("ResNet-18 64", 10)
    ),
)


def main() -> None:
    folder, data = Path(os.environ.get("GOODNET_BENCH_SCALE", "goodnet-bench-scale")), shared_data()
    (folder / "nets").mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    done = {row.setting.key: row for row in read_rows(rows)}
    for setting in SETTINGS:
        if setting.key in done:
            continue
        weights, good = trained(setting.net, folder / "nets", data)
        clean = clean_images(setting.net, folder / "nets", data)
        print(good, flush=True)
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=_child, args=(setting, weights, clean, rows))
        child.start()
        child.join()
        if child.exitcode:
            print(f"{setting.key}: ended with {child.exitcode}", file=sys.stderr, flush=True)
    print("\n".join([*table(read_rows(rows)), "", *told(read_rows(rows))]), flush=True)


def read_rows(path: Path) -> list[Measured]:
    """In the order of SETTINGS; of a setting measured twice, the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    raw = [json.loads(line) for line in lines]
    found = {row.setting.key: row for row in (Measured(**{**one, "setting": Setting(**one["setting"])}) for one in raw)}
    return [found[setting.key] for setting in SETTINGS if setting.key in found]


def _child(setting: Setting, weights: Path, clean: Path, rows: Path) -> None:
    torch.set_num_threads(setting.threads)
    row = measure(setting, weights, clean)
    with rows.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    print(f"{setting.key}: {row.seconds:.0f} s, {row.memory >> 20} MiB, {row.verdict}", flush=True)


def measure(setting: Setting, weights: Path, clean: Path) -> Measured:
    """Plans and scans in this process, whose peak it reads."""
    net = widened(setting.net, weights, setting.labels)
    images = read_images(clean)
    assert images.labels is not None
    images = images.take(images.labels < setting.labels)
    images = images.take(np.linspace(0, len(images) - 1, min(setting.images, len(images))).astype(np.int64))
    method = METHODS[setting.method]
    plans: list[Plan] = []
    began: list[float] = []

    def before() -> None:
        some = images.take(slice(0, 128)).tensor()
        plans.append(plan(method, net, images=some, clean=min(len(images), USED)))
        began.extend([time.perf_counter(), time.process_time()])

    record = scan(net, images, method=method, check_input=setting.method != "cost", before=before)
    seconds, core = time.perf_counter() - began[0], time.process_time() - began[1]
    planned, most = plans[0], peak()
    again = sum(1 for row in record.labels if row.restart_margins)
    expected = planned.suspect_seconds if again else planned.seconds
    assert planned.block is not None
    assert planned.memory is not None
    flagged = ", ".join(map(str, record.flagged_labels))
    return Measured(
        setting=setting,
        parameters=sum(p.numel() for p in net.net.parameters()),
        precision=planned.precision,
        block=planned.block,
        images_per_second=planned.images_per_second,
        planned_seconds=expected,
        seconds=seconds,
        planned_core_seconds=planned.core_seconds * expected / planned.seconds,
        core_seconds=core,
        planned_memory=planned.memory,
        memory=most,
        again=again,
        verdict="-" if setting.method == "cost" else f"{record.verdict}{f' ({flagged})' if flagged else ''}",
    )


def table(rows: Iterable[Measured]) -> list[str]:
    """Markdown; * for the settings that the memory model was fitted on."""
    lines = [
        "| net, side | labels | search | threads | parameters | block | images/s | seconds: planned, measured | "
        "of a core: planned, measured | peak MiB: planned, measured | verdict |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        s = row.setting
        lines.append(
            f"| {s.net}{' *' if s.fitted else ''} | {s.labels:,} | {s.method} | {s.threads} | "
            f"{row.parameters / 1e6:.1f} M | {row.block} | {row.images_per_second:,.0f} | "
            f"{row.planned_seconds:.1f}, {row.seconds:.1f} ({_off(row.planned_seconds, row.seconds)}) | "
            f"{row.planned_core_seconds:.1f}, {row.core_seconds:.1f} "
            f"({_off(row.planned_core_seconds, row.core_seconds)}) | "
            f"{row.planned_memory / 2**20:,.0f}, {row.memory / 2**20:,.0f} ({_off(row.planned_memory, row.memory)}) | "
            f"{row.verdict} |"
        )
    return lines


def told(rows: Iterable[Measured]) -> list[str]:
    """How many of the settings that nothing was fitted on are within a quarter."""
    others = [row for row in rows if not row.setting.fitted]
    kinds = {
        "seconds": [(row.planned_seconds, row.seconds) for row in others],
        "seconds of a core": [(row.planned_core_seconds, row.core_seconds) for row in others],
        "memory": [(row.planned_memory, row.memory) for row in others],
    }
    lines = [f"{len(others)} settings that nothing was fitted on; planned within 25 % of measured:"]
    for name, pairs in kinds.items():
        near = sum(abs(planned / measured - 1) <= 0.25 for planned, measured in pairs)
        lines.append(f"{name}: {near} of {len(pairs)}")
    planted = [row for row in rows if KINDS[row.setting.net].planted and row.setting.method != "cost"]
    lines += [f"{row.setting.key}: planted target {TARGET}, {row.verdict}" for row in planted]
    return lines


def _off(planned: float, measured: float) -> str:
    return f"{100 * (planned / measured - 1):+.0f} %"
