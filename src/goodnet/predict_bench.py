"""How much longer a GoodNet takes to answer than the net it was made of: kind by kind, in one run.

A forward pass takes as long whatever the weights are, so a net with random weights does. Turns of the net and of each
GoodNet follow one another, and the fastest turn of each counts: what else the machine does meanwhile hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from goodnet.about import environment
from goodnet.errors import UsageError
from goodnet.models import arch, surgery
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.goodnet_make import filtered_from, goodnet_from, grown_from, seconded_from, watched_from
from goodnet.progress import Progress, silent
from goodnet.speed_record import PredictRecord, PredictRow

SHAPE, CLASSES = (3, 55, 47), 1283


def run_predict(
    *,
    batches: Sequence[int] = (1, 256),
    turns: int = 30,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> PredictRecord:
    """Times a DeepID of 1283 classes and a GoodNet of each kind.

    Args:
        batches: images at a time.
        turns: of each; the fastest counts.

    Raises:
        UsageError: no batch, or less than one image or turn.
    """
    if not batches or min(batches) < 1 or turns < 1:
        raise UsageError(f"bench predict: expected batches and turns of at least 1, got {tuple(batches)} and {turns}")
    started = time.perf_counter()
    net = _net()
    nets = {"the net itself": net, **_goodnets(net)}
    rows = []
    for done, batch in enumerate(batches, start=1):
        x = torch.from_numpy(np.random.default_rng(0).random((batch, *SHAPE), np.float32))
        seconds = fastest({name: _pass(one, x) for name, one in nets.items()}, turns, max(1, 64 // batch))
        own = seconds["the net itself"]
        rows += [
            PredictRow(kind=name, batch=batch, milliseconds=1000 * value / batch, ratio=value / own)
            for name, value in seconds.items()
        ]
        progress("predicting", done, len(batches))
    return PredictRecord(
        rows=tuple(rows), turns=turns, seconds=time.perf_counter() - started, environment=environment(net, command)
    )


def _net() -> Classifier:
    recipe = Recipe(arch="deepid", options={"classes": CLASSES})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = arch.build(recipe)
    channels, height, width = SHAPE
    spec = InputSpec(channels=channels, height=height, width=width)
    return Classifier(net=net, input=spec, classes=CLASSES, recipe=recipe, name="DeepID")


def _goodnets(net: Classifier) -> Mapping[str, Classifier]:
    twin = surgery.clone(net)
    features = surgery.features(net, surgery.output_layer(net), torch.zeros(1, *SHAPE)).shape[1]
    directions, offsets = torch.ones(3, features), torch.zeros(3)
    groups = torch.full((CLASSES,), -1, dtype=torch.int64)
    groups[:21] = 2
    groups[:2] = torch.tensor([0, 1])
    watched = watched_from(net, directions, offsets, groups)
    return {
        "grown (retrain, gangsweep)": grown_from(net),
        "filter (nc-filter)": filtered_from(net, directions, offsets),
        "watch": watched,
        "disagreement": goodnet_from(net, twin),
        "watch, second opinion (auto)": seconded_from(watched, twin),
    }


def _pass(net: Classifier, x: torch.Tensor) -> Callable[[], object]:
    return lambda: net.predict(x)


def fastest(work: Mapping[str, Callable[[], object]], turns: int, times: int) -> dict[str, float]:
    """Seconds that each takes, of the fastest turn; a turn is so many times in a row."""
    best = dict.fromkeys(work, float("inf"))
    for turn in range(turns + 1):
        for name, run in work.items():
            begun = time.perf_counter()
            for _ in range(times):
                run()
            if turn:  # the first warms up
                best[name] = min(best[name], (time.perf_counter() - begun) / times)
    return best
