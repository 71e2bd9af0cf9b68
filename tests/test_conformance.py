"""One table that every method joins: nothing given is changed, nothing is left behind, the same seed gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from goodnet.detect.all_to_all import Away
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.guard import watch as watch_module
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.strip import Strip
from goodnet.guard.ted import Ted
from goodnet.guard.watch import Watch
from goodnet.models.classifier import Classifier
from goodnet.progress import Progress, silent
from goodnet.repair.anp import AdversarialPruning
from goodnet.repair.clp import ChannelLipschitz
from goodnet.repair.distilled import DistilledUnlearning
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.ft_sam import SharpnessAware
from goodnet.repair.gangsweep import Sweep
from goodnet.repair.i_bau import AdversarialUnlearning
from goodnet.repair.nad import AttentionDistillation
from goodnet.repair.nc_filter import Filter
from goodnet.repair.nc_prune import Pruning
from goodnet.repair.retrain import Retraining
from goodnet.repair.rnp import ReconstructivePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.staged import Staged
from goodnet.triggers.generator import GeneratorSchedule
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.margin import MarginSchedule
from goodnet.triggers.plain import PlainSchedule
from goodnet.triggers.strong import SquareSchedule, StrongSchedule
from goodnet.triggers.trigger import Trigger
from nets import small_cnn

Labelled = tuple[Tensor, Tensor]
Run = Callable[[Classifier, Labelled, Labelled, int, Progress], Any]


def neural_cleanse(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    found = NeuralCleanse(search=Schedule(steps=8, batch=4))(net, fit, rest, seed=seed, progress=progress)
    return found.labels, [found.triggers[row.label].mask for row in found.labels]


def neural_cleanse_in_two_passes(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    method = NeuralCleanse(
        search=Schedule(steps=6, batch=4), screen=Schedule(steps=3, batch=4), candidates=1, controls=8
    )
    found = method(net, fit, rest, seed=seed, progress=progress)
    return found.labels, [trigger.mask for trigger in found.triggers.values()]


def max_margin(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    found = MaxMargin(climb=MarginSchedule(steps=5))(net, fit, rest, seed=seed, progress=progress)
    return found.labels, found.forward_passes


def staged(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    masks = NeuralCleanse(
        search=Schedule(steps=6, batch=4), screen=Schedule(steps=3, batch=4), candidates=1, controls=8
    )
    plain = PlainSchedule(images=2, levels=2, rounds=1)
    margins, away = MaxMargin(climb=MarginSchedule(steps=5)), Away(search=Schedule(steps=6, batch=4))
    method = Staged(margins=margins, masks=masks, away=away, plain=plain, margin_candidates=2)
    found = method(net, fit, rest, seed=seed, progress=progress)
    return found.labels, [trigger.mask for trigger in found.triggers.values()]


def fine_pruning(**settings: Any) -> Run:
    def run(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
        found = FinePruning(**settings)(net, fit, rest, seed=seed, progress=progress)
        return found.epoch, found.curve, found.pruned, list(found.classifier.net.state_dict().values())

    return run


def on_clean_images(method: ChannelLipschitz | AdversarialPruning | ReconstructivePruning) -> Run:
    def run(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
        found = method(net, fit, rest, seed=seed, progress=progress)
        return found.curve, found.pruned, list(found.classifier.net.state_dict().values())

    return run


def a_trigger(net: Classifier) -> Trigger:
    mask = torch.zeros(1, *net.input.shape[1:])
    mask[:, :3, :3] = 1
    return Trigger(mask=mask, pattern=torch.ones(net.input.shape), target=1)


def unlearning(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    method = Unlearning(epochs=2, batch=8)
    found = method(net, fit, rest, triggers=[a_trigger(net)], seed=seed, progress=progress)
    return found.epoch, list(found.classifier.net.state_dict().values())


def unlearning_on_labels(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    method = Unlearning(epochs=2, batch=8, teach="labels")
    found = method(net, fit, rest, triggers=[a_trigger(net)], seed=seed, progress=progress)
    return found.epoch, list(found.classifier.net.state_dict().values())


def nc_filter(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    found = Filter()(net, fit, rest, triggers=[a_trigger(net)], seed=seed, progress=progress)
    assert found.classifier.refuses
    return found.classifier.recipe, list(found.classifier.net.state_dict().values())


def nc_prune(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    found = Pruning()(net, fit, rest, triggers=[a_trigger(net)], seed=seed, progress=progress)
    return found.curve, found.pruned, list(found.classifier.net.state_dict().values())


def sweep(teach: str) -> Run:
    def run(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
        method = Sweep(teach=teach, rounds=2, epochs=2, batch=8, schedule=GeneratorSchedule(turns=3, batch=4))
        found = method(net, fit, rest, targets=[1], seed=seed, progress=progress)
        assert found.classifier.refuses == (teach == "class-n")
        return found.epoch, list(found.classifier.net.state_dict().values())

    return run


def gangsweep(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    method = GangSweep(search=GeneratorSchedule(turns=6, batch=4))
    found = method(net, fit, rest, seed=seed, progress=progress)
    return found.labels, [found.triggers[row.label].mask for row in found.labels]


def gangsweep_in_two_passes(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    schedule = GeneratorSchedule(turns=4, batch=4)
    method = GangSweep(search=schedule, screen=schedule, candidates=1, controls=8)
    found = method(net, fit, rest, seed=seed, progress=progress)
    return found.labels, [trigger.mask for trigger in found.triggers.values()]


def retraining(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    method, trigger = Retraining(epochs=2, batch=8), a_trigger(net)
    poisoned = [trigger.apply(part[0]) for part in (fit, rest)]
    found = method(
        net, fit, rest, poisoned_fit=poisoned[:1], poisoned_choose=poisoned[1:], seed=seed, progress=progress
    )
    assert found.classifier.logits(rest[0]).shape == (len(rest[0]), net.classes + 1)
    return found.epoch, list(found.classifier.net.state_dict().values())


def disagreement(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    made = Disagreement(max_fpr=0.2)(net, small_cnn(net.input.shape, net.classes), rest[0])
    progress("guard", 1, 1)
    return made.recipe, made.logits(rest[0])


def strip(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    made = Strip(overlays=6, max_fpr=0.2)(net, small_cnn(net.input.shape, net.classes), fit[0], rest[0], seed=seed)
    progress("guard", 1, 1)
    return made.recipe, made.logits(rest[0])


def ted(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    known = fit[0], net.predict(fit[0])  # of random classes hardly any answer would be right
    made = Ted(max_fpr=0.2)(net, small_cnn(net.input.shape, net.classes), known, rest[0])
    progress("guard", 1, 1)
    return made.recipe, made.logits(rest[0])


def combined(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    search = StrongSchedule(starts=4, steps=3, batch=4)
    method = Combined(watch=Watch(search=search, further_search=search, further=1, stamped=40))
    watched = method.watch(net, fit, rest, labels=[1], further=[0], seed=seed, progress=progress).classifier
    made = method(net, small_cnn(net.input.shape, net.classes), watched, [rest[0]])
    return made.recipe, made.logits(rest[0])


def clean_only(method: Any) -> Run:
    def run(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
        found = method(net, fit, rest, seed=seed, progress=progress)
        return found.epoch, list(found.classifier.net.state_dict().values())

    return run


def watch(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    search = StrongSchedule(starts=4, steps=3, batch=4)
    method = Watch(search=search, further_search=search, further=1, stamped=40)
    found = method(net, fit, rest, labels=[1], further=[1, 0], surrogate_fit=rest[0][:4], seed=seed, progress=progress)
    assert found.classifier.refuses
    return found.classifier.recipe, list(found.classifier.net.state_dict().values())


def distilled(net: Classifier, fit: Labelled, rest: Labelled, seed: int, progress: Progress) -> Any:
    search = StrongSchedule(starts=4, steps=3, batch=4)
    method = DistilledUnlearning(
        search=search,
        squares=SquareSchedule(side=0.4, steps=3, batch=4),
        masks=1,
        mask_search=Schedule(steps=3),
        refresh=2,
        refresh_search=search,
        further_search=search,
        steps=4,
        settle=3,
        batch=4,
    )
    given = {"triggers": [a_trigger(net)], "labels": [1], "further": [1, 0], "surrogate_fit": rest[0][:4]}
    found = method(net, fit, rest, **given, seed=seed, progress=progress)
    return found.epoch, list(found.classifier.net.state_dict().values())


METHODS: dict[str, Run] = {
    "neural-cleanse": neural_cleanse,
    "neural-cleanse, two passes": neural_cleanse_in_two_passes,
    "max-margin": max_margin,
    "staged": staged,
    "fine-pruning": fine_pruning(epochs=2, learning_rate=1e-3, batch=8),
    "fine-pruning, two layers": fine_pruning(layers=("2", "0"), mode="prune"),
    "fine-pruning, tune only": fine_pruning(mode="tune", epochs=2, batch=8),
    "clp": on_clean_images(ChannelLipschitz(u=1.0)),
    "anp": on_clean_images(AdversarialPruning(iterations=5, batch=8, max_accuracy_drop=0.5)),
    "rnp": on_clean_images(ReconstructivePruning(unlearning_epochs=2, recovering_epochs=3, max_accuracy_drop=0.5)),
    "gangsweep, detection": gangsweep,
    "gangsweep, detection in two passes": gangsweep_in_two_passes,
    "gangsweep": sweep("class-n"),
    "gangsweep, on labels": sweep("labels"),
    "nc-filter": nc_filter,
    "nc-prune": nc_prune,
    "nc-unlearn": unlearning,
    "nc-unlearn, on labels": unlearning_on_labels,
    "retrain": retraining,
    "disagreement": disagreement,
    "strip": strip,
    "ted": ted,
    "combined": combined,
    "watch": watch,
    "ft-sam": clean_only(SharpnessAware(epochs=2, batch=8)),
    "i-bau": clean_only(AdversarialUnlearning(rounds=2, batch=8)),
    "nad": clean_only(AttentionDistillation(epochs=2, teacher_epochs=2, batch=8)),
    "unlearn": distilled,
}
SHORT = Schedule(steps=40, batch=8)
SHAPES = [((3, 12, 10), 11), ((1, 9, 14), 11), ((3, 10, 10), 2)]


@pytest.fixture(autouse=True)
def _short_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_STEPS", 20)


def data(net: Classifier) -> tuple[Labelled, Labelled]:
    x = torch.rand(40, *net.input.shape, generator=torch.Generator().manual_seed(3))
    y = torch.arange(40) % net.classes
    return (x[:24], y[:24]), (x[24:], y[24:])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return bool(a == b)


def state(net: Classifier) -> dict[str, Any]:
    modules = list(net.net.modules())
    return {
        "weights": [value.clone() for value in net.net.state_dict().values()],
        "grad": [parameter.grad is None and not parameter.requires_grad for parameter in net.net.parameters()],
        "train": [module.training for module in modules],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            for module in modules
        ],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_nothing_given_is_changed_and_the_seed_decides(name: str, shape: Any, classes: int) -> None:
    net = small_cnn(shape, classes)
    fit, rest = data(net)
    given = [value.clone() for value in (*fit, *rest)]
    before = state(net)
    calls: list[tuple[str, int, int]] = []
    first = METHODS[name](net, fit, rest, 4, lambda *call: calls.append(call))
    assert same(list(before.values()), list(state(net).values()))
    assert same(given, [*fit, *rest])
    assert same(first, METHODS[name](net, fit, rest, 4, silent))
    assert calls
    assert all(0 <= done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_behind_after_an_exception(name: str) -> None:
    net = small_cnn((3, 12, 10), 11)
    fit, rest = data(net)
    before = state(net)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        METHODS[name](net, fit, rest, 4, interrupt)
    assert same(list(before.values()), list(state(net).values()))


@pytest.mark.parametrize(
    "name",
    [
        "neural-cleanse",
        "neural-cleanse, two passes",
        "gangsweep, detection",
        "gangsweep, detection in two passes",
    ],
)
def test_another_seed_gives_another_result(name: str) -> None:
    net = small_cnn((3, 12, 10), 11)
    fit, rest = data(net)
    assert not same(METHODS[name](net, fit, rest, 4, silent)[1], METHODS[name](net, fit, rest, 5, silent)[1])


@pytest.mark.parametrize("shape", [(3, 12, 10), pytest.param((1, 9, 14), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "detector",
    [
        Staged(masks=NeuralCleanse(search=SHORT), away=Away(search=SHORT)),
        NeuralCleanse(search=SHORT),
        GangSweep(search=GeneratorSchedule(turns=12, batch=8)),
    ],
)
def test_clean_nets_are_not_flagged(detector: Staged | NeuralCleanse | GangSweep, shape: tuple[int, int, int]) -> None:
    """Random nets, in which every label is alike."""
    for seed in range(3):
        net = small_cnn(shape, 11)
        fit, rest = data(net)
        assert not [row.label for row in detector(net, fit, rest, seed=seed).labels if row.flagged]
