"""The staged scan: planted labels flagged and no others, whatever it is stopped by it ends the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goodnet.detect.all_to_all import Away
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detect.preference import preferences
from goodnet.errors import UsageError
from goodnet.planning import plan
from goodnet.record import LabelResult
from goodnet.scan import scan
from goodnet.staged import Staged, _median_row, _with_margins, frequency, joined
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.margin import MarginSchedule
from goodnet.triggers.plain import PlainSchedule
from nets import clean_images, net_with

QUICK = Staged(masks=NeuralCleanse(search=Schedule(steps=120, batch=16)))
TWO_PASSES = Staged(
    margins=MaxMargin(climb=MarginSchedule(steps=10)),
    masks=NeuralCleanse(
        search=Schedule(steps=30, batch=8), screen=Schedule(steps=16, batch=4), candidates=6, controls=16
    ),
    away=Away(search=Schedule(steps=16, batch=8)),
    plain=PlainSchedule(images=2, levels=2, rounds=2),
)


@pytest.mark.parametrize("targets", [{}, {2: (1, 6)}, {2: (1, 6), 9: (5, 0)}])
def test_planted_labels_are_flagged_and_no_others(targets: dict[int, tuple[int, int]]) -> None:
    net = net_with(24, targets)
    record = scan(net, clean_images(net), method=QUICK)
    assert record.flagged_labels == tuple(sorted(targets))
    assert (record.verdict == "suspect") == bool(targets)
    assert all(row.margin is not None and row.preference is not None for row in record.labels)
    for label in targets:
        assert len(record.labels[label].restart_norms) == len(record.labels[label].restart_margins) == QUICK.restarts


def test_every_label_keeps_a_score_in_two_passes() -> None:
    net = net_with(60, {7: (1, 6)})
    record = scan(net, clean_images(net), method=TWO_PASSES)
    assert len(record.labels) == 60
    assert {row.status for row in record.labels} == {"searched", "screened"}
    assert all(row.p_value is not None and row.margin is not None for row in record.labels)
    strongest = sorted(record.labels, key=lambda row: -(row.margin or 0))[: TWO_PASSES.margin_candidates]
    assert all(row.status == "searched" for row in strongest)
    assert record.labels[7].flagged


def test_the_plan_is_at_least_what_is_done() -> None:
    net = net_with(60, {})
    planned = plan(TWO_PASSES, net)
    record = scan(net, clean_images(net), method=TWO_PASSES)
    judged = 2 * 120 * sum(row.status == "searched" for row in record.labels)
    assert record.forward_passes - judged <= sum(stage.passes for stage in planned.stages)
    assert planned.seconds > 0
    assert [stage.stage for stage in planned.stages] == [
        "margins",
        "plain stamps",
        "first pass",
        "search",
        "all-to-all",
        "search again",
    ]
    assert [stage.stage for stage in plan(NeuralCleanse(), net, range(5)).stages] == ["search"]


def test_evidence_counts_together() -> None:
    """Deviations too small to be seen one by one add up; a label that has only one of them is not seen."""
    random_ = np.random.default_rng(0)
    rows = [
        LabelResult(
            label=i,
            status="searched",
            mask_norm=float(np.exp(random_.normal(4, 0.3))),
            margin=float(random_.normal(30, 3)),
            preference=float(random_.normal(0, 1)),
        )
        for i in range(100)
    ]
    mask, margin = float(np.exp(4 - 2.6 * 0.3)), 38.5
    rows[5] = replace(rows[5], mask_norm=mask, margin=margin, preference=2.8)
    rows[6] = replace(rows[6], mask_norm=mask, margin=30.0, preference=0.0)
    done = joined(rows, np.ones(100, dtype=bool), np.zeros(100), two_passes=False)
    assert (done[5].mask_p_value or 1) * 100 > 0.1
    assert (done[5].p_value or 1) * 100 < 0.02
    assert (done[6].p_value or 1) * 100 > 0.5
    assert all((row.p_value or 1) * 100 > 0.02 for row in done if row.label != 5)


def test_a_label_trained_on_often_is_not_held_against_the_net() -> None:
    """Deviations that follow how often labels are seen: the most frequent one is no outlier once that is known."""
    random_ = np.random.default_rng(1)
    counts = np.r_[random_.integers(1, 12, size=99), 400]
    often = frequency(range(100), torch.from_numpy(np.repeat(np.arange(100), counts)))
    rows = [
        LabelResult(label=i, status="searched", mask_norm=float(np.exp(random_.normal(4 - 0.3 * often[i], 0.2))),
                    margin=float(random_.normal(30 + 4 * often[i], 2)), preference=float(random_.normal(0, 1)))
        for i in range(100)
    ]  # fmt: skip
    every = np.ones(100, dtype=bool)
    blind = joined(rows, every, np.zeros(100), two_passes=False)[99].joint_p_value
    aware = joined(rows, every, often, two_passes=False)[99].joint_p_value
    assert blind is not None
    assert aware is not None
    assert blind * 100 < 0.05 < aware * 100


def test_the_median_of_all_starts_counts() -> None:
    row = LabelResult(label=1, status="searched", mask_norm=4.0, mask_share=0.04, norm_ratio=0.2, held_out_asr=0.9)
    lucky = _median_row(row, [replace(row, mask_norm=20.0), replace(row, mask_norm=30.0)])
    assert lucky.mask_norm == 20.0
    assert lucky.norm_ratio == pytest.approx(1.0)
    assert lucky.mask_share == pytest.approx(0.2)
    lost = _median_row(row, [replace(row, mask_norm=None, status="failed")] * 2)
    assert lost.status == "failed"
    assert lost.mask_norm is None
    assert _median_row(replace(row, mask_norm=0.0), [row, row]).norm_ratio == 0.2


def test_a_search_that_got_stuck_does_not_hide_a_label() -> None:
    rows = [
        LabelResult(label=i, status="searched", mask_norm=9.0, margin=10.0 + i % 3, preference=0.0) for i in range(30)
    ]
    starts = [replace(rows[4], margin=margin, screen_norm=screen) for margin, screen in ((31.0, 4.0), (30.0, None))]
    rows[4] = _median_row(replace(rows[4], margin=12.0, screen_norm=7.0), starts)
    again = _with_margins(rows, {4})
    assert (again[4].margin, again[4].screen_norm) == (30.0, 7.0)
    assert again[4].restart_margins == (31.0, 30.0)
    assert again[4].margin_ratio == pytest.approx(30 / 11)
    assert (again[4].margin_p_value or 1) < 1e-6
    assert again[5] is rows[5]


def test_a_preferred_label_is_seen_without_images() -> None:
    net = net_with(12, {})
    with torch.no_grad():
        net.net.bias[4] += 3.0
    found = preferences(net, seed=0)
    assert int(found.argmax()) == 4
    assert np.array_equal(found, preferences(net, seed=0))


def comparable(folder: Path) -> tuple[dict[str, Any], bytes]:
    record = json.loads((folder / "scan.json").read_text())
    for key in ("seconds", "environment"):
        del record[key]
    return record, (folder / "triggers.npz").read_bytes()


def test_a_scan_that_was_stopped_ends_with_the_same_record(tmp_path: Path) -> None:
    net = net_with(60, {7: (1, 6)})
    images = clean_images(net)
    calls = 0

    def count(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1

    scan(net, images, method=TWO_PASSES, out=tmp_path / "whole", progress=count)
    said: list[str] = []
    for stop in random.Random(0).sample(range(5, calls // 2), 4):
        left = stop

        def interrupt(stage: str, done: int, total: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scan(net, images, method=TWO_PASSES, out=tmp_path / "stopped", progress=interrupt, say=said.append)
        assert not (tmp_path / "stopped" / "scan.json").exists()
    scan(net, images, method=TWO_PASSES, out=tmp_path / "stopped", say=said.append)
    assert "going on where" in said[-1]
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")
    assert not list((tmp_path / "stopped").glob(".checkpoint*"))


def test_other_settings_start_anew(tmp_path: Path) -> None:
    net = net_with(60, {})

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "first pass" and done > 100:
            raise KeyboardInterrupt

    for seed in (0, 1):
        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            scan(net, clean_images(net), method=TWO_PASSES, out=tmp_path, seed=seed, progress=interrupt,
                 say=said.append)  # fmt: skip
        assert not said
    assert len(list(tmp_path.glob(".checkpoint*"))) == 2


@pytest.mark.parametrize("limit", [1e-6, 0.2])
def test_out_of_time_is_inconclusive_and_goes_on_later(tmp_path: Path, limit: float) -> None:
    net = net_with(60, {})
    images = clean_images(net)
    slow = replace(TWO_PASSES, masks=replace(TWO_PASSES.masks, search=Schedule(steps=400, batch=32)))
    record = scan(net, images, method=slow, out=tmp_path, time_limit=limit)
    assert record.verdict == "inconclusive"
    assert "time limit" in record.reasons[-1]
    assert any(row.status == "skipped" for row in record.labels) or limit > 0.1
    assert list(tmp_path.glob(".checkpoint*")) or limit < 0.1
    with pytest.raises(UsageError, match="time limit"):
        scan(net, images, time_limit=0.0)


# One child a scan, for what is imported takes longer: a folder comes in, its process and how that ended go out.
SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from goodnet import work
work._FLUSH_EVERY = 0.05
from goodnet.scan import scan
from nets import clean_images, net_with
from test_staged import TWO_PASSES
net = net_with(60, {{7: (1, 6)}})
images = clean_images(net)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            scan(net, images, method=TWO_PASSES, out=Path(line.rstrip()))
            os._exit(0)
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_at_twenty_random_points_the_record_is_the_same(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes, text=True, bufsize=1) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        given, answers = driver.stdin, driver.stdout

        def run(name: str, seconds: float | None = None) -> int:
            print(tmp_path / name, file=given, flush=True)
            child = int(answers.readline())
            if seconds is not None:
                time.sleep(seconds)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return int(answers.readline())

        assert run("first") == 0
        started = time.monotonic()
        assert run("whole") == 0
        takes = time.monotonic() - started
        draws = random.Random(0)
        kills = 0
        while kills < 20:
            code = run("killed", draws.uniform(0.05, 1.0) * takes)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            if (tmp_path / "killed" / "scan.json").exists():
                assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
                shutil.rmtree(tmp_path / "killed")
        assert run("killed") == 0
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
