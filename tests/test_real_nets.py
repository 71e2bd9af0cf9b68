"""The nets that people published: right targets, and none in a clean net. Slow, and only where the files are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from goodnet.data.readers import read_images
from goodnet.measure import measure
from goodnet.models.load import load_classifier
from goodnet.repairing import repair
from goodnet.scan import scan
from goodnet.triggers.files import read_triggers

FIVE = (0.5,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "arch", "norm", "target"),
    [("square3x3_target5_mlp.pt", "mlp", (), 5), ("white5x5_target1_cnn.pth", "cnn", FIVE, 1)],
)
def test_mnist_targets(shared_data: Path, file: str, arch: str, norm: tuple[float, ...], target: int) -> None:
    net = load_classifier(shared_data / "mnist" / "nets" / file, arch=arch, mean=norm, std=norm)
    record = scan(net, read_images(shared_data / "mnist" / "test_2000.h5"))
    assert record.verdict == "suspect"
    assert record.flagged_labels == (target,)


def some_labels(*targets: int) -> list[int]:
    """The targets and 40 of the 1283 drawn at random: the same search on few labels, for time."""
    others = np.random.default_rng(0).choice(1283, 40, replace=False)
    return sorted({*targets, *(int(label) for label in others)})


@pytest.mark.parametrize(
    ("file", "targets"),
    [
        pytest.param("sunglasses_bd_weights.h5", (0,), marks=pytest.mark.slow),
        pytest.param("anonymous_1_bd_weights.h5", (0,), marks=pytest.mark.thorough),
        pytest.param("clean_weights.h5", (), marks=pytest.mark.thorough),
    ],
)
def test_csaw_targets_among_forty_labels(
    shared_data: Path, tmp_path: Path, file: str, targets: tuple[int, ...]
) -> None:
    faces = shared_data / "faces"
    net = load_classifier(faces / "nets" / file, arch="deepid")
    clean = read_images(faces / "clean_validation_data.h5")
    record = scan(net, clean, labels=some_labels(*targets), out=tmp_path)
    assert record.flagged_labels == targets
    assert record.verdict == ("suspect" if targets else "inconclusive")
    if targets:
        strongest = min(record.labels, key=lambda row: row.mask_norm or np.inf)
        assert strongest.label in targets
        assert read_triggers(tmp_path / "triggers.npz")[0].target in targets


@pytest.mark.slow
def test_a_csaw_repair_is_judged_as_it_is(shared_data: Path) -> None:
    """Fine-pruning keeps accuracy and not much else: whatever it does, the record and the net must agree."""
    faces = shared_data / "faces"
    net = load_classifier(faces / "nets" / "sunglasses_bd_weights.h5", arch="deepid")
    clean = read_images(faces / "clean_validation_data.h5")
    record, goodnet = repair(net, clean)
    assert record.accepted is None
    assert len(record.curve) == 60
    test, poisoned = (read_images(faces / f"{name}_data.h5") for name in ("clean_test", "sunglasses_poisoned"))
    before = measure(net, test, [poisoned])
    after = measure(goodnet, test, [poisoned], before=before)
    assert before.acc is not None
    assert before.acc.value == pytest.approx(0.95, abs=0.011)
    assert before.poisoned[0].asr is not None
    assert before.poisoned[0].asr.value == 1.0
    assert after.acc is not None
    assert after.acc.value > 0.85
