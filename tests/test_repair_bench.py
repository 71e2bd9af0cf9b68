"""The repair benchmark on a net of our own, and what its figures are measured on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_support import TARGET, block_images, block_net, save_net, triggered
from goodnet import csaw, guard_bench, repair_bench, repair_subjects
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import DataError, UsageError
from goodnet.guard_bench import run_guards
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier
from goodnet.repair.clp import ChannelLipschitz
from goodnet.repair_bench import HELD_OUT, run_repairs
from goodnet.repair_subjects import Subject
from goodnet.report.bench_table import bench_csv, bench_markdown
from goodnet.runners import SERIAL
from goodnet.strict_json import to_json
from goodnet.triggers.inversion import Schedule
from ray_support import differing
from runner_blocks import ByPost

DATA = Path(os.environ.get("GOODNET_DATA", Path(__file__).parents[2] / "shared" / "data"))


def images(count: int, seed: int) -> Images:
    pixels, labels = block_images(count, seed=seed)
    return Images(pixels=pixels, labels=labels, name=f"blocks {seed}")


def subject(folder: Path) -> Subject:
    """A net whose one lit pixel leads to a label, its trigger painted on the defender's own images."""
    net = load_classifier(save_net(folder / "bad.pt", block_net(TARGET)), arch="mlp")
    clean = images(120, 2)
    targets = np.full(120, TARGET)
    poisoned = Images(pixels=triggered(clean.pixels), labels=targets, true_labels=clean.labels, name="pixel")
    return Subject(
        name="ours",
        net=net,
        clean=clean,
        test=images(100, 5),
        poisoned={"pixel": poisoned},
        strangers=images(60, 7),
        painted_on_clean=["pixel"],
        ceiling=net,
        true_targets=(TARGET,),
    )


@pytest.mark.slow
def test_a_scan_a_repair_and_a_row_for_each_thing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(*_: object) -> Iterator[Subject]:
        yield subject(tmp_path)

    monkeypatch.setattr(repair_bench, "subjects", ours)
    said: list[str] = []
    record = run_repairs(tmp_path, tmp_path / "out", nets=["ours"], say=said.append)
    assert record.scans[0].flagged_labels == (TARGET,)
    ours_again = subject(tmp_path)
    assert [model.sha256 for model in record.models] == [ours_again.net.sha256]
    assert {data.sha256 for data in record.data} == {one.sha256() for one in ours_again.images}
    assert len(ours_again.images) == 4
    before, after, held_out, *alone = record.rows
    assert (before.method, before.asr and before.asr.value) == ("none", 1.0)
    assert after.method.startswith("auto: ")
    assert after.asr is not None
    assert after.asr.value < 0.1
    assert held_out.note == HELD_OUT
    assert held_out.asr is not None
    assert held_out.ra is not None
    assert held_out.ra.n == len(split(images(120, 2), seed=0).judge)
    assert all(row.method == "its repaired net alone" and row.detection is None for row in alone)
    assert "## ours" in bench_markdown(record)
    assert bench_csv(record).count("\n") == 1 + len(record.rows)
    again = run_repairs(tmp_path, tmp_path / "out", nets=["ours"], runner=ByPost())
    assert replace(again, seconds=record.seconds) == record  # from what is there, and by another runner
    assert not list((tmp_path / "out").glob(".running-*"))
    guards_of_it(tmp_path, monkeypatch)
    (tmp_path / "out" / "seed-0").rename(tmp_path / "out" / "seed-1")
    with pytest.raises(DataError, match="another seed"):
        run_repairs(tmp_path, tmp_path / "out", nets=["ours"], seeds=[1])


def guards_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard benchmark takes over what the repair benchmark has left; another runner measures the same."""

    def one(bad: Subject, good: Classifier, *_: object) -> Iterator[tuple[str, Classifier]]:
        yield "one", goodnet_from(bad.net, good)

    monkeypatch.setattr(guard_bench, "subjects", repair_bench.subjects)
    monkeypatch.setattr(guard_bench, "_guards", one)
    here, away = (run_guards(folder, folder / "out", nets=["ours"], runner=runner) for runner in (SERIAL, ByPost()))
    assert [(row.guard, row.trigger) for row in here.rows] == [("one", "pixel")]
    rows = tuple(replace(row, times=here.rows[0].times) for row in away.rows)
    assert replace(away, rows=rows, seconds=here.seconds) == here


@pytest.mark.slow
def test_the_benchmark_of_the_competition_is_the_same_by_another_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = subject(tmp_path)
    files = {file for sets in csaw.TRIGGERS.values() for file in sets.values()}
    poisoned = dict.fromkeys(files, one.poisoned["pixel"])
    faces = csaw.Faces(clean=one.clean, test=one.test, strangers=images(40, 9), poisoned=poisoned)
    monkeypatch.setattr(csaw.Faces, "read", staticmethod(lambda folder: faces))
    monkeypatch.setattr(csaw, "load_classifier", lambda path, arch: replace(one.net, name=path.name))
    short = NeuralCleanse(search=Schedule(steps=6, batch=4))
    given: dict[str, Any] = {"nets": ["multi", "clean"], "methods": [ChannelLipschitz()], "detector": short}
    said: list[str] = []
    here = csaw.run_csaw(tmp_path, tmp_path / "here", say=said.append, **given)
    assert [(row.net, row.method) for row in here.rows] == [
        (net, method) for net, count in (("multi", 3), ("clean", 1)) for method in ("none", "clp") for _ in range(count)
    ]
    assert [line.split(":")[0] for line in said] == ["multi", "multi, clp", "clean", "clean, clp"]
    away = csaw.run_csaw(tmp_path, tmp_path / "away", runner=ByPost(), **given)
    assert differing(json.loads(to_json(here)), json.loads(to_json(away))) == {"seconds"}


def test_faces_that_only_judged_are_found_under_their_paint(tmp_path: Path) -> None:
    one = subject(tmp_path)
    judge = split(one.clean, seed=3).judge
    found = repair_bench._only_judged(one.poisoned["pixel"], one.clean, 3)
    assert np.flatnonzero(found).tolist() == judge.tolist()


def test_no_person_is_in_both_halves() -> None:
    people = Images(pixels=np.zeros((30, 1, 4, 4), np.uint8), labels=np.arange(30) % 7, name="people")
    first, second = repair_subjects._halves(people)
    assert len(first) + len(second) == 30
    assert first.labels is second.labels is None
    assert first.groups is not None
    assert len(set(first.groups.tolist())) == 3
    assert len(second) == 30 - int(np.isin(np.arange(30) % 7, list(set(first.groups.tolist()))).sum())


def test_the_attackers_triggers_are_painted_as_published() -> None:
    x = torch.full((1, 3, 32, 32), 0.5)
    target, square = repair_subjects._painter(DATA, "gtsrb-badnets")
    assert target == 8
    assert (square(x)[0, :, 27:31, 27:31] == 1).all()
    assert int((square(x) != x).sum()) == 3 * 16
    target, grid = repair_subjects._painter(DATA, "cifar10-grid")
    assert target == 0
    assert int((grid(x) != x).sum()) == 27
    # counted from the bottom right corner: 255 0 255 / 0 255 0 / 255 0 0
    assert grid(x)[0, 0, 29:, 29:].flip(0, 1).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("gtsrb-badnets", "sunglasses"):
        with pytest.raises(UsageError, match="pass --data DIR"):
            run_repairs(tmp_path, tmp_path / "out", nets=[name])
