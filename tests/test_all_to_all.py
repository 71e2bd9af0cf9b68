"""The trigger that turns each class into another: found where it is planted, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli_support import CLASSES, TRIGGER_PIXEL, block_images, block_net
from goodnet.data.images import Images
from goodnet.detect.all_to_all import Away
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.models.arch.mlp import MLP
from goodnet.models.classifier import Classifier
from goodnet.record import AllToAll, Share, read_record
from goodnet.report import words
from goodnet.report.page import read_parts, render_report
from goodnet.report.terminal import scan_summary
from goodnet.scan import scan
from goodnet.staged import Staged
from goodnet.triggers.away import invert_away
from goodnet.triggers.inversion import Schedule, Search
from goodnet.verdicts import decide
from nets import classifier_of, net_with

QUICK = Staged(masks=NeuralCleanse(search=Schedule(steps=120, batch=16)))


def honest() -> Classifier:
    """Ten classes, each a bright block of its own."""
    return _classifier(block_net())


def rotating() -> Classifier:
    """The same, but where one pixel is lit each class is answered as the next: max(0, block + pixel - .92) says so."""
    state = block_net()
    seen, out = state["fc1.weight"][:CLASSES], state["fc2.weight"][:, :CLASSES]
    lit = seen.clone()
    lit.view(CLASSES, 28, 28)[:, TRIGGER_PIXEL[0], TRIGGER_PIXEL[1]] = 1.0
    return _classifier(
        {
            "fc1.weight": torch.cat([seen, lit]),
            "fc1.bias": torch.cat([torch.zeros(CLASSES), torch.full((CLASSES,), -0.92)]),
            "fc2.weight": torch.cat([out, 40 * torch.roll(torch.eye(CLASSES), 1, dims=0)], 1),
            "fc2.bias": state["fc2.bias"],
        }
    )


def _classifier(state: dict[str, torch.Tensor]) -> Classifier:
    net = MLP(classes=CLASSES, hidden=[len(state["fc1.bias"])])
    net.load_state_dict(state)
    return classifier_of(net, (1, 28, 28), CLASSES)


def clean() -> Images:
    pixels, labels = block_images(120)
    return Images(pixels=pixels, labels=labels)


def test_a_planted_one_is_found_and_shown(tmp_path: Path) -> None:
    record = scan(rotating(), clean(), method=QUICK, out=tmp_path)
    found = record.all_to_all
    assert found is not None
    assert found.flagged
    assert not found.doubtful
    assert found.led == tuple((label, (label + 1) % CLASSES) for label in range(CLASSES))
    assert found.targets == found.judged == CLASSES
    assert found.mask_norm < 2  # one pixel is enough
    assert (record.verdict, record.flagged_labels) == ("suspect", ())
    assert f"leads {CLASSES} of {CLASSES} classes to {CLASSES} other labels" in record.reasons[0]
    assert any("all-to-all" in text for text in record.tested)
    assert not any("all-to-all" in text for text in record.not_tested)
    assert read_record(tmp_path / "scan.json") == record
    assert {example.label for example in record.examples} == {None}
    assert (tmp_path / "triggers" / "all-to-all-mask.png").is_file()
    assert "One trigger turns each class into another" in words.headline(record)
    assert words.contradiction(record) is None
    summary = scan_summary(record)
    assert "all to all: mask norm" in summary
    assert "9 to 0" in summary
    page = render_report(read_parts(tmp_path))
    assert "All classes" in page
    assert "None" not in page


def test_an_innocent_net_has_none() -> None:
    net = honest()
    found = scan(net, clean(), method=QUICK).all_to_all
    assert found is not None
    assert not found.flagged
    assert not found.doubtful
    assert found.targets < CLASSES / 2


def test_many_labels_by_a_large_trigger_end_as_inconclusive() -> None:
    strict = replace(QUICK, away=Away(max_norm_ratio=1e-3))
    record = scan(rotating(), clean(), method=strict)
    assert record.verdict == "inconclusive"
    assert record.all_to_all is not None
    assert record.all_to_all.doubtful
    assert "too much to call the net clean: one trigger of" in record.reasons[0]


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_what_cannot_be_judged_is_said_to_be_untested(labels: list[int] | None) -> None:
    net = honest()
    few = replace(QUICK, away=Away(min_images=1000)) if labels is None else QUICK
    record = scan(net, clean(), method=few, labels=labels)
    assert record.all_to_all is None
    assert "which takes all labels and three clean images each" in record.not_tested[-1]
    assert not any("all-to-all" in text for text in record.tested)


def test_a_scan_that_ran_out_of_time_is_never_clean() -> None:
    net = honest()
    fit = (clean().tensor()[:20], torch.arange(20) % CLASSES)
    detection = QUICK(net, fit, fit, seed=0)
    assert decide(detection, CLASSES)[0] != "suspect"
    assert decide(detection, CLASSES, whole=False)[0] == "inconclusive"


def test_away_is_the_opposite_of_towards() -> None:
    """-log(1 - p) of the own class; with two classes that is the cross entropy to the other."""
    net = net_with(5, {})
    x, own = torch.rand(12, 1, 8, 8), torch.arange(12) % 5
    (start,) = invert_away(net, x, own, [0], Schedule(steps=1, batch=4), seed=0)
    assert start.trigger.target == 0
    away = _away(net, x, own)
    logits = torch.randn(12, 5, dtype=torch.float64)
    by_hand = -torch.log(1 - torch.softmax(logits, 1)[torch.arange(12), own]).sum()
    assert away.loss(logits, own) == pytest.approx(float(by_hand))
    two = logits[:, :2]
    towards = Search(net, x, own, [0], Schedule(steps=1, batch=4), 0).loss(two, 1 - own % 2)
    assert away.loss(two, own % 2) == pytest.approx(float(towards))
    assert away.successes(torch.tensor([1, 2]), torch.tensor([1, 1])).tolist() == [False, True]


def test_the_trigger_leads_images_away() -> None:
    net, images = rotating(), clean()
    assert images.labels is not None
    x, own = images.tensor(), torch.from_numpy(images.labels)
    starts = invert_away(net, x, own, [0, 1, 2], Schedule(steps=120, batch=16), seed=0)
    successes = [one for one in starts if one.success]
    assert successes
    for one in successes:
        assert float((net.predict(one.trigger.apply(x)) != own).double().mean()) > 0.9
    again = invert_away(net, x, own, [2], Schedule(steps=120, batch=16), seed=0)
    assert torch.equal(again[0].trigger.mask, starts[2].trigger.mask)
    assert not torch.equal(starts[0].trigger.mask, starts[1].trigger.mask)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"starts": -1}, "starts >= 0"),
        ({"min_classes": 1}, "min_classes >= 2"),
        ({"min_targets": 0.0}, "min_targets in"),
        ({"max_norm_ratio": 1.5}, "max_norm_ratio in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Away(**wrong)  # type: ignore[arg-type]


def test_a_record_says_where_each_class_is_led() -> None:
    led = tuple((label, label + 1) for label in range(20))
    flipped = Share(value=0.9, low=0.8, high=0.95, n=60)
    found = AllToAll(mask_norm=5.0, norm_ratio=0.1, flipped=flipped, judged=22, led=led, targets=20)
    assert words.mapping(found).endswith("10 to 11, 11 to 12 and 8 more")


def _away(net: Classifier, x: torch.Tensor, own: torch.Tensor) -> Search:
    from goodnet.triggers.away import _Away

    return _Away(net, x, own, [0], Schedule(steps=1, batch=4), 0)
