"""Memory of a scan: sizes in words, blocks that fit under a bound, and a plan that counts blocks and bytes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cli_support import Shell, fill
from goodnet import memory, sizing
from goodnet.detect.all_to_all import Away
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.memory import in_bytes, in_words, trim
from goodnet.models.classifier import Classifier
from goodnet.planning import Clock, Speed, plan
from goodnet.scan import scan
from goodnet.sizing import LEAST, Bounded, bounded, size
from goodnet.staged import Staged
from goodnet.triggers.blocks import footprint
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.margin import MarginSchedule
from nets import classifier_of, clean_images, net_with

MIB = 1 << 20
QUICK = Staged(masks=NeuralCleanse(search=Schedule(steps=20, batch=16)))
# Peaks do not hang on how long a stage goes on.
SHORT = replace(
    QUICK,
    masks=NeuralCleanse(search=Schedule(steps=3, batch=16)),
    margins=MaxMargin(climb=MarginSchedule(steps=3)),
    away=Away(starts=1, search=Schedule(steps=3, batch=16)),
    restarts=1,
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wide(side: int = 48) -> Classifier:
    """A net whose first layers give 64 times as many numbers as a pixel has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 6))  # fmt: skip
    return classifier_of(net, (3, side, side), 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 << 30), ("800MB", 800_000_000), ("1.5 GiB", 3 << 29), ("2gib", 2 << 30), ("1048576B", MIB),
     ("1TB", 10**12), ("0.5GB", 500_000_000), (MIB, MIB), (1 << 50, 1 << 50)],
)  # fmt: skip
def test_sizes(text: str | int, expected: int) -> None:
    assert in_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2", "GiB", "-2GiB", "2 G", "2XiB", "1e3MB", "2GiB2", "nanGiB", "1KB", "2000TiB", "٢GiB", 0, True, -1]
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(UsageError, match="2GiB or 800MB"):
        in_bytes(text)


def test_sizes_in_words() -> None:
    assert (in_words(640 * MIB), in_words(2.5 * 2**30)) == ("640 MiB", "2.5 GiB")


def test_the_peak_is_that_of_this_process() -> None:
    """Not of the one that began it, as rusage has it on Linux."""
    hog = torch.ones(300 * MIB // 4)
    code = "from goodnet.memory import peak, resident; print(peak(), resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    peak, resident = map(int, done.stdout.split())
    assert 0 < resident < peak + MIB  # the two are read one after the other, and the kernel counts pages in batches
    assert peak < 200 * MIB < hog.numel() * 4 < memory.resident()


def test_what_an_image_takes_grows_with_its_area() -> None:
    small, large = footprint(wide(24)), footprint(wide(48))
    assert large.searched == pytest.approx(4 * small.searched, rel=0.02)
    assert large.judged == 4 * small.judged
    assert large.thread == small.thread == 64 * 64 * 9 * 4
    # the outputs of two convolutions, each kept once at least, in float32
    assert large.searched > 2 * 64 * 48 * 48 * 4


def test_counting_keeps_nothing() -> None:
    net = wide()
    footprint(net)
    before = memory.resident()
    for _ in range(8):  # of 10 MiB each
        footprint(net)
    assert memory.resident() - before < 20 * MIB


def test_blocks_then_threads_are_given_up() -> None:
    net, images = wide(), torch.rand(60, 3, 48, 48)
    with threads(2):
        trim()  # as a scan with a bound does: other tests have left much that lies free
        now = sizing.held(net)
        most = size(QUICK, net, net, 60, 6, now=now)
        assert (most.threads, most.lowered) == (2, False)
        assert most.block > LEAST
        found = []
        for bound in range(most.memory, now, -2 * MIB):
            try:
                one = size(QUICK, net, net, 60, 6, now=now, memory=bound)
            except UsageError:
                break
            assert one.memory <= bound
            found.append((one.threads, one.block))
        assert found == sorted(found, reverse=True)  # all threads first, in ever smaller blocks
        assert {(2, most.block), (2, LEAST), (1, LEAST)} <= set(found)
        # nothing is lowered where there is room, and malloc is left as it is
        assert bounded(QUICK, net, images, 6, clean=60) == Bounded(method=QUICK, threads=2)
        assert bounded(QUICK, net, images, 6, clean=60, memory=1 << 40) == Bounded(method=QUICK, threads=2)
        # before blocks are lowered, malloc is told to give back
        tight = bounded(QUICK, net, images, 6, clean=60, memory=most.memory + 8 * MIB)
        assert tight == Bounded(method=QUICK, threads=2, gives_back=True)
        with pytest.raises(UsageError, match=r"expected at least [\d.]+ [MG]iB for blocks of 4 images in one thread"):
            bounded(QUICK, net, images, 6, clean=60, memory=now // 2)


def test_without_a_bound_free_memory_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = wide(), torch.rand(60, 3, 48, 48)
    monkeypatch.setattr(sizing, "free_memory", lambda: None)
    assert bounded(QUICK, net, images, 6, clean=60).method == QUICK
    monkeypatch.setattr(sizing, "free_memory", lambda: 10 * MIB)
    found = bounded(QUICK, net, images, 6, clean=60)  # too little for any block: the least, and no error
    method = found.method
    assert not found.gives_back
    assert isinstance(method, Staged)
    assert method.masks.block == method.margins.block == LEAST


def test_the_record_says_which_block_was_found() -> None:
    net = net_with(6, {2: (1, 6)})
    images = clean_images(net)
    quick = replace(QUICK, away=SHORT.away)
    free = scan(net, images, method=quick)
    roomy = scan(net, images, method=quick, memory="1TB")
    assert free.method.resolved["masks"]["block"] is None
    assert replace(roomy, seconds=0.0) == replace(free, seconds=0.0)
    tight = scan(net, images, method=replace(quick, masks=replace(quick.masks, block=4)))
    assert tight.flagged_labels == free.flagged_labels  # in parts of a label's batch, but the same labels
    with pytest.raises(UsageError, match="expected at least"):
        scan(net, images, method=quick, memory="2MiB")
    with pytest.raises(UsageError, match="got 'much'"):
        scan(net, images, method=quick, memory="much")


@pytest.mark.parametrize(("labels", "block", "cores"), [(10, 64, 2), (43, 32, 2), (7, 16, 3), (200, 32, 4)])
def test_the_clock_counts_blocks(labels: int, block: int, cores: int) -> None:
    """Against threads that take block after block from a queue."""
    method = NeuralCleanse(search=Schedule(steps=5, batch=16), screen=Schedule(steps=3, batch=4), candidates=16,
                           controls=64)  # fmt: skip
    step = Speed(seconds=0.01, core_seconds=0.008, images_per_second=200)
    shown = Speed(seconds=0.001, core_seconds=0.001, images_per_second=1000)
    clock = Clock(method=method, step=step, shown=shown, clean=50, block=block, threads=cores, labels=labels)
    expected = core = 0.0
    for stage in method.plan(labels):
        steps, batch = (3, 4) if stage.stage == "first pass" else (5, 16)
        slots = max(1, block // batch)
        queue = [steps * slots * batch] * math.ceil(stage.labels / slots)
        core += 0.008 * sum(queue)
        busy = [0.0] * cores
        for images in queue:
            first = busy.index(min(busy))
            busy[first] += 0.01 * images
        expected += max(busy)
        if stage.stage == "search":
            expected += 0.001 * 50 * math.ceil(stage.labels / cores)
            core += 0.001 * 50 * stage.labels
    stages = method.plan(labels)
    assert clock.seconds(stages, 0) == pytest.approx(expected)
    assert clock.seconds(stages, 0, cores=True) == pytest.approx(core)


def test_a_plan_knows_memory_and_what_standing_out_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a speed of its own: two measured ones differ by what else runs on the machine."""
    always = Speed(seconds=0.1, core_seconds=0.1, images_per_second=10.0)
    monkeypatch.setattr("goodnet.planning._speed", lambda *_: always)
    net = wide(24)
    planned = plan(QUICK, net, clean=60)
    assert planned.seconds < planned.suspect_seconds < planned.at_most_seconds
    assert planned.memory is not None
    assert planned.memory > memory.resident() / 2
    assert plan(QUICK, net, range(5), clean=60).at_most_seconds < planned.at_most_seconds


def test_the_command(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz")
    found = shell(*command, "--plan", "--json", "--memory", "64GiB").json
    assert found["memory"] > 50 * MIB
    assert (found["block"], found["threads"]) == (256, torch.get_num_threads())
    text = shell(*command, "--plan").out.splitlines()
    assert "iB of memory, blocks of 256 images in " in text[-1]
    assert "if a label stands out and is searched again, at most" in text[-2]
    small = shell(*command, "--memory", "20MiB")
    assert (small.code, small.out) == (3, "")
    assert "--memory: expected at least" in small.err
    assert "already" in small.err


_BOUNDED = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from test_sizing import SHORT, wide
from goodnet.data.images import Images
from goodnet.memory import peak
from goodnet.scan import scan
import numpy as np
torch.set_num_threads(1)
pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 96, 96), np.uint8)
images = Images(pixels=pixels, labels=np.arange(40) % 6)
record = scan(wide(96), images, method=SHORT, check_input=False, memory={memory!r})
print(json.dumps([peak(), record.method.resolved["masks"]["block"]]))
"""


@pytest.mark.slow(last=True)  # two scans in processes of their own
def test_a_scan_stays_under_its_bound() -> None:
    """Where nothing is bounded malloc keeps so much that the least of all blocks would not do."""
    found = {}
    for bound in ("4GiB", "420MiB"):
        code = _BOUNDED.format(tests=str(Path(__file__).parent), memory=bound)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        found[bound] = json.loads(done.stdout)
    peak, block = found["420MiB"]
    assert found["4GiB"][1] is None
    assert block is not None
    assert peak <= 420 * MIB < found["4GiB"][0]
