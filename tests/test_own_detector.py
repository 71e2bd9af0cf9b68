"""A detector that is not goodnet's: the example finds a backdoor through `scan`, and faulty ones are told so."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cli_support import CLASSES, TARGET, TRIGGER_PIXEL, block_images, block_net, save_net
from goodnet.data.images import Images
from goodnet.detection import Detection
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.record import read_record
from goodnet.report.page import write_report
from goodnet.scan import scan

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_detector" / "pixels.py"


@pytest.fixture(scope="module")
def pixels() -> ModuleType:
    """The example, imported as a module of its own."""
    spec = importlib.util.spec_from_file_location("own_pixels", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_pixels"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def net(folder: Path, target: int | None) -> Classifier:
    return load_classifier(save_net(folder / "net.pt", block_net(target)), arch="mlp")


def images() -> Images:
    shown, labels = block_images(120)
    return Images(pixels=shown, labels=labels)


def test_the_example_finds_the_pixel(pixels: ModuleType, tmp_path: Path) -> None:
    record = scan(net(tmp_path, TARGET), images(), method=pixels.FewPixels(), out=tmp_path / "out")
    assert (record.verdict, record.flagged_labels) == ("suspect", (TARGET,))
    row = record.labels[TARGET]
    assert (row.mask_norm, row.held_out_asr) == (1.0, 1.0)
    assert row.norm_ratio is not None
    assert row.norm_ratio < 0.2
    assert record.method.name == "few-pixels"
    assert record.method.resolved == {"asr": 0.95, "images": 64, "false_alarm_rate": 0.01}
    assert (record.tested, record.not_tested) == (pixels.FewPixels.tested, pixels.FewPixels.not_tested)
    assert read_record(tmp_path / "out" / "scan.json") == record
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "few-pixels" in page
    assert pixels.FewPixels.tested[0] in page


def test_its_trigger_is_that_pixel(pixels: ModuleType, tmp_path: Path) -> None:
    shown = torch.from_numpy(images().pixels).float() / 255
    others = shown[torch.arange(120) % CLASSES != TARGET]
    trigger, _ = pixels.FewPixels().search(net(tmp_path, TARGET), others, TARGET, seed=0)
    assert trigger.mask.nonzero().tolist() == [[0, *TRIGGER_PIXEL]]
    assert trigger.pattern[0, TRIGGER_PIXEL[0], TRIGGER_PIXEL[1]] == 1


def test_the_example_calls_a_clean_net_clean(pixels: ModuleType, tmp_path: Path) -> None:
    record = scan(net(tmp_path, None), images(), method=pixels.FewPixels())
    assert (record.verdict, record.flagged_labels) == ("clean", ())


def test_some_labels_alone_and_too_little_time_never_end_in_clean(pixels: ModuleType, tmp_path: Path) -> None:
    clean = net(tmp_path, None)
    assert scan(clean, images(), method=pixels.FewPixels(), labels=[1, 2, 3, 4, 5]).verdict == "inconclusive"
    cut = scan(clean, images(), method=pixels.FewPixels(), time_limit=1e-9)
    assert cut.verdict == "inconclusive"
    assert {row.status for row in cut.labels} == {"skipped"}


def changed(how: Callable[[Detection], Detection]) -> Any:
    """A detector that gives the example's result, changed."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Changed(sys.modules["own_pixels"].FewPixels):  # type: ignore[misc, name-defined]
        def __call__(self, *args: Any, **named: Any) -> Detection:
            return how(super().__call__(*args, **named))

    return Changed()


def without_row(found: Detection) -> Detection:
    return dataclasses.replace(found, labels=found.labels[1:])


def without_triggers(found: Detection) -> Detection:
    return dataclasses.replace(found, triggers={})


def with_status(status: str) -> Callable[[Detection], Detection]:
    def change(found: Detection) -> Detection:
        return dataclasses.replace(
            found, labels=tuple(dataclasses.replace(row, status=status, mask_norm=None) for row in found.labels)
        )

    return change


def with_numpy(found: Detection) -> Detection:
    row = dataclasses.replace(found.labels[0], flagged=np.True_)
    return dataclasses.replace(found, labels=(row, *found.labels[1:]))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (with_numpy, r"^few-pixels: label 0: expected Python's own numbers, got others in flagged"),
        (without_row, r"^few-pixels: expected one row for each of 10 labels, got 9"),
        (without_triggers, r"^few-pixels: label 0: expected a mask norm and a trigger"),
        (with_status("done"), r"^few-pixels: label 0: expected status searched, .*got 'done'"),
        (with_status("screened"), r"^few-pixels: expected a label that was searched whole"),
    ],
)
def test_a_result_that_no_verdict_can_be_made_from_is_refused(
    pixels: ModuleType, tmp_path: Path, how: Callable[[Detection], Detection], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        scan(net(tmp_path, TARGET), images(), method=changed(how), out=tmp_path / "out")
    assert not (tmp_path / "out" / "scan.json").exists()


def test_what_is_no_detector_is_refused(pixels: ModuleType, tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bare:
        needed: int

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Namesake(pixels.FewPixels):  # type: ignore[misc, name-defined]
        name = "staged"

    clean = net(tmp_path, None)
    for method, said in (
        (pixels.FewPixels, "expected a detector .*got <class"),
        ("staged", "expected a detector .*got 'staged'"),
        (Bare(needed=1), "got Bare without name, tested, not_tested, __call__, a default of needed"),
        (Namesake(), "expected a name of its own, got 'staged'"),
    ):
        with pytest.raises(UsageError, match=said):
            scan(clean, images(), method=method)  # type: ignore[arg-type]
