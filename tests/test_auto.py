"""`--method auto`: which repair it picks, and what it says of the others."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from goodnet import repairing
from goodnet.auto import CANDIDATES, Candidate, auto
from goodnet.data.images import Images
from goodnet.errors import ModelError, UsageError
from goodnet.export import save_goodnet
from goodnet.found import Found
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.watch import Watch
from goodnet.judging import Limits
from goodnet.keeping import Output
from goodnet.models import arch
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.goodnet import SecondOpinion
from goodnet.models.goodnet_file import load_goodnet
from goodnet.record import RepairRecord, read_record
from goodnet.repair.distilled import DistilledUnlearning
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.strong import StrongSchedule
from nets import SHAPE, classifier_of, pictures, planted

SEARCH = StrongSchedule(starts=10, steps=40, batch=8)
WATCH = Watch(search=SEARCH, further=0, altered=1000)
UNLEARN = DistilledUnlearning(
    search=SEARCH,
    masks=1,
    mask_search=Schedule(steps=30),
    refresh=50,
    refresh_search=StrongSchedule(starts=3, steps=20, batch=8),
    steps=150,
    settle=75,
)
NOTHING = Candidate(
    name="nothing",
    method=FinePruning(mode="tune", epochs=1, learning_rate=1e-9),
    guard=Disagreement(max_fpr=0.01),
)
GOOD = Candidate(name="unlearn, watch", method=UNLEARN, guard=WATCH)
LATER = Candidate(name="later", method=Unlearning(epochs=2))


def given() -> tuple[Classifier, Images, Found]:
    net, trigger, _ = planted()
    x, y = pictures(200, seed=2)
    found = Found(triggers=(trigger,), median_norm=20.0, schedule=Schedule(steps=60, batch=16))
    return net, Images(pixels=x.numpy(), labels=y.numpy(), name="clean"), found


def test_the_first_that_keeps_all_limits_is_taken_and_the_others_are_named() -> None:
    net, images, found = given()
    said: list[str] = []
    record, goodnet = auto(net, images, found=found, candidates=(NOTHING, GOOD, LATER), say=said.append)
    assert record.accepted
    assert [(row.name, row.accepted) for row in record.tried] == [("nothing", False), ("unlearn, watch", True)]
    assert record.reasons[0] == "unlearn, watch is the first that keeps all limits (nothing did not)"
    assert (record.method.name, record.guard and record.guard.name) == ("unlearn", "watch")
    assert isinstance(goodnet.net, SecondOpinion)
    assert [text.split(",")[0] for text in said] == ["nothing: not accepted", "unlearn"]
    _, trigger, test = planted()
    assert (goodnet.predict(trigger.apply(test)) == 3).double().mean() < 0.02
    worst = max(figures.asr.value for figures in record.after.poisoned if figures.asr is not None)
    assert record.tried[1].asr is not None
    assert record.tried[1].asr.value == worst


def test_none_is_accepted_and_nothing_is_written(tmp_path: Path) -> None:
    net, images, found = given()
    output = Output(goodnet=tmp_path / "good.safetensors", folder=tmp_path / "out")
    record, _ = auto(net, images, found=found, candidates=(NOTHING, LATER), limits=Limits(max_asr=0.0), output=output)
    assert record.accepted is False
    assert record.reasons[0].startswith("none keeps all limits; ")
    assert not (tmp_path / "good.safetensors").exists()
    read = read_record(tmp_path / "out" / "repair.json")
    assert isinstance(read, RepairRecord)
    assert [row.name for row in read.tried] == ["nothing", "later"]


def test_no_candidate_is_begun_for_which_no_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, found = given()
    ticks = itertools.count(step=50.0)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    candidates = (NOTHING, LATER, GOOD)
    record, _ = auto(net, images, found=found, candidates=candidates, time_limit=60, limits=Limits(max_asr=0.0))
    assert [row.accepted for row in record.tried] == [False, None, None]
    assert record.tried[1].reasons == ("not tried: no time was left",)


def test_what_the_net_has_no_place_for_is_passed_over() -> None:
    """A net that ends in no linear layer cannot be watched."""

    class Last(nn.Module):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * 1.0

    net, images, found = given()
    odd = classifier_of(Last(net.net), SHAPE, 4)
    watched = Candidate(name="watch", method=WATCH)
    record, _ = auto(odd, images, found=found, candidates=(watched, NOTHING))
    assert record.tried[0].accepted is None
    assert "last layer is linear" in record.tried[0].reasons[0]
    assert record.method.name == "fine-pruning"
    with pytest.raises(ModelError, match="last layer is linear"):
        auto(odd, images, found=found, candidates=(watched,))


@pytest.mark.slow
def test_the_next_guard_takes_the_net_that_the_method_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, found = given()
    calls = []
    made = DistilledUnlearning.__call__

    def counted(self: DistilledUnlearning, *args: object, **more: object) -> object:
        calls.append(self)
        return made(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(DistilledUnlearning, "__call__", counted)
    short = replace(UNLEARN, steps=20, refresh=10, settle=10)
    first = Candidate(name="first", method=short, guard=WATCH)
    second = Candidate(name="second", method=short, guard=Disagreement(max_fpr=0.01))
    monkeypatch.setattr(repairing, "judge_repair", lambda *_: (False, ("never",)))
    record, _ = auto(net, images, found=found, candidates=(first, second))
    alone, _ = auto(net, images, found=found, candidates=(second,))
    assert len(calls) == 2
    assert [row.name for row in record.tried] == ["first", "second"]
    assert record.tried[1].asr == alone.tried[0].asr
    assert record.tried[1].acc == alone.tried[0].acc


def test_it_needs_a_label_to_repair() -> None:
    net, images, _ = given()
    with pytest.raises(UsageError, match="expected labels to repair"):
        auto(net, images, found=Found())


def test_the_defaults_begin_with_what_kept_most() -> None:
    assert [candidate.name for candidate in CANDIDATES][:3] == ["unlearn, watch", "unlearn, disagreement", "watch"]
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


def test_saved_and_read_again(tmp_path: Path) -> None:
    recipe = Recipe(arch="mlp", options={"classes": 4, "hidden": [32], "channels": 1, "height": 8, "width": 8})
    spec = planted()[0].input
    net = Classifier(net=arch.build(recipe), input=spec, classes=4, recipe=recipe)
    x, _ = pictures(100, seed=2)
    images = Images(pixels=x.numpy(), labels=net.predict(x).numpy(), name="clean")
    found = Found(labels=(1,), median_norm=20.0, schedule=Schedule(steps=10, batch=8))
    quick = DistilledUnlearning(
        search=StrongSchedule(starts=2, steps=3, batch=4),
        masks=1,
        mask_search=Schedule(steps=3),
        refresh=2,
        refresh_search=StrongSchedule(starts=1, steps=2, batch=4),
        steps=3,
        learning_rate=1e-9,
    )
    candidate = Candidate(name="quick", method=quick, guard=WATCH)
    output = Output(goodnet=tmp_path / "good.safetensors", keep_rejected=True)
    record, goodnet = auto(net, images, found=found, candidates=(candidate,), output=output)
    loaded = load_goodnet(tmp_path / "good.safetensors")
    assert record.goodnet_file == str(tmp_path / "good.safetensors")
    assert torch.equal(loaded.logits(x), goodnet.logits(x))
    assert save_goodnet(loaded, tmp_path / "again.safetensors")
