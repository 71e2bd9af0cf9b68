"""The repair benchmark on a net of our own, and what its figures are measured on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_support import TARGET, block_images, block_net, save_net, triggered
from goodnet import repair_bench, repair_subjects
from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.errors import DataError, UsageError
from goodnet.models.load import load_classifier
from goodnet.repair_bench import HELD_OUT, run_repairs
from goodnet.repair_subjects import Subject
from goodnet.report.bench_table import bench_csv, bench_markdown

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
    again = run_repairs(tmp_path, tmp_path / "out", nets=["ours"])
    assert [(row.method, row.asr, row.acc) for row in again.rows] == [(r.method, r.asr, r.acc) for r in record.rows]
    (tmp_path / "out" / "seed-0").rename(tmp_path / "out" / "seed-1")
    with pytest.raises(DataError, match="another seed"):
        run_repairs(tmp_path, tmp_path / "out", nets=["ours"], seeds=[1])


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
