"""Planting a backdoor from end to end: poison, train, write, read back, measure. For red teams and tests.

What is measured is the net and the sets as they were read back from their files. Written whole or not at all.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from goodnet.about import data_info, environment, model_info
from goodnet.attack_record import AttackRecord, PoisonedFile, read_attack
from goodnet.attacks.planting import Planting, planting
from goodnet.attacks.taught import Lesson, taught
from goodnet.attacks.train import fresh
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.data.splits import split
from goodnet.errors import DataError, GoodnetError, ModelError, UsageError
from goodnet.measure import measure
from goodnet.models.arch import architecture, build
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.load import load_classifier
from goodnet.models.weights import write_tensors
from goodnet.outputs import check_file, check_folder, replacing
from goodnet.progress import Progress, silent
from goodnet.record import MethodInfo
from goodnet.strict_json import to_json

RECORD, NET = "attack.json", "net.safetensors"
_HELD_OUT = (0.5, 0.3, 0.2)  # fit and choose are trained on, judge is measured on
_FURTHER = {"mlp": {"hidden": [256]}}  # what an architecture does not know by itself
_POISONED = re.compile(r"poisoned-[a-z-]+\.npz")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What `planting` takes; see there."""

    name: str = "patch"
    target: int = 0
    share: float | None = None
    strength: float | None = None
    sources: tuple[int, ...] | None = None
    clean_label: bool | None = None

    def plan(self, shape: tuple[int, int, int], classes: int, seed: int) -> Planting:
        """The attack on images (C, H, W) of so many classes. Raises UsageError as `planting` does."""
        return planting(
            self.name,
            shape=shape,
            classes=classes,
            target=self.target,
            share=self.share,
            seed=seed,
            strength=self.strength,
            sources=self.sources,
            clean_label=self.clean_label,
        )

    def info(self, plan: Planting, seed: int) -> MethodInfo:
        """The settings as passed and, from the plan, as resolved."""
        default = asdict(type(self)())
        passed = {key: value for key, value in asdict(self).items() if key != "name" and value != default[key]}
        resolved = {
            "target": None if self.name == "all-to-all" else self.target,
            "share": plan.share,
            "sources": plan.sources,
            "clean_label": plan.clean_label,
            **plan.settings,
        }
        return MethodInfo(name=self.name, passed=_plain(passed), resolved=_plain(resolved), seed=seed)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the net is trained.

    Attributes:
        arch: one of our architectures.
        epochs, learning_rate, batch: see `attacks.train.train`.
        start: the net to start from, of that architecture; None for a fresh one.
    """

    arch: str
    epochs: int = 8
    learning_rate: float = 2e-3
    batch: int = 64
    start: Classifier | None = None


def attack(
    clean: Images,
    *,
    settings: Attack,
    training: Training,
    out: Path,
    test: Images | None = None,
    classes: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    command: Sequence[str] = (),
    progress: Progress = silent,
) -> AttackRecord:
    """Trains a net with a backdoor; leaves net, poisoned test sets and record in a folder.

    Args:
        clean: labelled images to train on; not changed.
        settings: the attack.
        training: the net.
        out: folder for `net.safetensors`, a `poisoned-TRIGGER.npz` for each trigger, and `attack.json`.
        test: labelled clean images to measure on; None splits a fifth off `clean`, by class.
        classes: number of classes; None for one more than the highest label of `clean`.
        overwrite: replace an earlier attack in the same folder.
        seed: of everything random.

    Raises:
        UsageError, DataError, ModelError: nothing has been written then.
    """
    started = time.perf_counter()
    check_folder(out, RECORD, overwrite=overwrite)
    classes = _classes(clean, classes)
    plan = settings.plan(clean.shape, classes, seed)
    names = {trigger.name: f"poisoned-{trigger.name}.npz" for trigger in plan.triggers}
    for name in (NET, *names.values()):
        if (out / name).exists():
            check_file(out / name, overwrite=overwrite, option="--out")
    fit, judge = (clean, test) if test is not None else _held_out(clean, seed)
    poisoned, sets = plan.train(fit), plan.test(judge)
    trained = _trained(plan, fit, poisoned, training, seed, progress)

    def record(net: Classifier, written: Mapping[str, Images], load: tuple[str, ...]) -> AttackRecord:
        measured = measure(net, judge, list(written.values()), progress=progress)
        hit = poisoned.trigger_present if plan.clean_label else poisoned.labels != poisoned.true_labels
        count = int(np.count_nonzero(np.asarray(hit)))
        return AttackRecord(
            attack=settings.info(plan, seed),
            targets=plan.targets,
            training=_training_info(training),
            n_clean=len(fit),
            n_poisoned=count,
            n_covers=0 if plan.clean_label else len(poisoned) - len(fit) - count,
            acc=measured.acc,
            poisoned=measured.poisoned,
            model=model_info(net),
            net_file=NET,
            poisoned_files=tuple(
                PoisonedFile(trigger=trigger, file=names[trigger], data=data_info(images))
                for trigger, images in written.items()
            ),
            load=load,
            data=data_info(clean),
            test=data_info(judge),
            test_given=test is not None,
            seconds=time.perf_counter() - started,
            environment=environment(net, command),
        )

    return _write(out, trained, {names[trigger]: (trigger, images) for trigger, images in sets.items()}, record)


def _classes(clean: Images, classes: int | None) -> int:
    if clean.labels is None or len(clean) == 0:
        raise DataError(f"{clean.name}: expected images with labels to train on, got none; poisoning needs the classes")
    return max(2, int(clean.labels.max()) + 1) if classes is None else classes


def _held_out(clean: Images, seed: int) -> tuple[Images, Images]:
    parts = split(clean, seed=seed, shares=_HELD_OUT)
    fit, judge = np.sort(np.concatenate([parts.fit, parts.choose])), parts.judge
    return clean.take(fit), replace(clean.take(judge), name=f"{clean.name}, held out")


def _trained(
    plan: Planting, clean: Images, poisoned: Images, training: Training, seed: int, progress: Progress
) -> Classifier:
    start = training.start
    if start is None:
        recipe = _recipe(training.arch, clean.shape, plan.classes)
        net = fresh(lambda: _built(recipe, clean), seed=seed)
    else:
        _check_start(start, training.arch, clean.shape, plan.classes)
        recipe, net = start.recipe, start.net
    lesson = Lesson(
        recipe=recipe,
        classes=plan.classes,
        epochs=training.epochs,
        lr=training.learning_rate,
        batch=training.batch,
        seed=seed,
        name=NET,
    )
    return taught(
        net,
        clean,
        poisoned,
        plan,
        lesson,
        progress=lambda done, total, loss: progress("training", done, total),
    )


def _recipe(arch: str, shape: tuple[int, int, int], classes: int) -> Recipe:
    channels, height, width = shape
    every = {"classes": classes, "channels": channels, "height": height, "width": width, **_FURTHER.get(arch, {})}
    known = architecture(arch).options
    return Recipe(arch=arch, options={name: value for name, value in every.items() if name in known})


def _built(recipe: Recipe, images: Images) -> nn.Module:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that get no pixel: the error below says it
            net = build(recipe)
            net.eval()(images.take(slice(0, 2)).tensor())
    except (ModelError, RuntimeError) as error:
        channels, height, width = images.shape
        raise UsageError(
            f"--arch: {recipe.arch} does not take images of {height}x{width} with {channels} channels; "
            "name another, or other images"
        ) from error
    return net.train()


def _check_start(start: Classifier, arch: str, shape: tuple[int, int, int], classes: int) -> None:
    plain = start.input.scale == 1 and not start.input.mean and not start.input.std and not start.refuses
    fits = (start.recipe.arch, start.input.shape, start.classes) == (arch, shape, classes)
    if not plain or not fits or "softmax" in start.recipe.options:
        raise UsageError(
            f"--model: expected a {arch} for these images and {classes} classes that takes 0..1, got "
            f"{start.recipe.arch}, {start.input.describe()}, {start.classes} classes; start from another, or from none"
        )


def _training_info(training: Training) -> dict[str, Any]:
    start = None if training.start is None else training.start.sha256
    return {**{name: getattr(training, name) for name in ("arch", "epochs", "learning_rate", "batch")}, "start": start}


def _write(out: Path, trained: Classifier, sets: Mapping[str, tuple[str, Images]], record: Any) -> AttackRecord:
    """Net, sets and record under temporary names; in place only once all of them are right, the record last."""
    missing = next((path for path in (out, *out.parents) if path.exists()), out) != out
    stale = _earlier(out) - set(sets)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            # left in the opposite order
            parts = {name: stack.enter_context(replacing(out / name)) for name in (RECORD, *sets, NET)}
            net, load = _net_in(parts[NET], trained)
            written = {trigger: _set_in(parts[name], name, images) for name, (trigger, images) in sets.items()}
            done: AttackRecord = record(net, written, load)
            parts[RECORD].write_text(to_json(done), encoding="utf-8")
    except BaseException:
        if missing and not any(out.iterdir()):
            out.rmdir()
        raise
    for name in stale:
        (out / name).unlink(missing_ok=True)
    return done


def _earlier(out: Path) -> set[str]:
    """Poisoned sets of an earlier attack in the same folder, by its own record."""
    try:
        files = {poisoned.file for poisoned in read_attack(out / RECORD).poisoned_files}
    except GoodnetError:
        return set()
    return {name for name in files if _POISONED.fullmatch(name)}


def _net_in(path: Path, trained: Classifier) -> tuple[Classifier, tuple[str, ...]]:
    """Saves the net; gives it as a stranger would load it, and the options for that."""
    write_tensors(trained.net.state_dict(), path)
    arch, shape = trained.recipe.arch, trained.input.shape
    options: tuple[str, ...] = ("--arch", arch)
    try:
        net = load_classifier(path, arch=arch, sandbox=False)
    except GoodnetError:
        net = None
    if net is None or net.input.shape != shape:
        options += ("--input-shape", ",".join(map(str, shape)))
        net = load_classifier(path, arch=arch, input_shape=shape, sandbox=False)
    net = replace(net, name=NET)
    probe = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.allclose(net.logits(probe), trained.logits(probe), rtol=1e-4, atol=1e-4)
    if not same or net.classes != trained.classes:
        raise ModelError(f"{NET}: read back, the net answers otherwise than the one that was trained; nothing is kept")
    return net, options


def _set_in(path: Path, name: str, images: Images) -> Images:
    """Saves a poisoned set; gives it as a command reads it."""
    columns: dict[str, Any] = {"data": images.pixels, "label": images.labels, "true_label": images.true_labels}
    with path.open("wb") as file:  # given a name, numpy would add its own ending
        np.savez_compressed(file, **{key: value for key, value in columns.items() if value is not None})
    back = replace(read_images(path), name=name)
    same = np.array_equal(back.pixels, images.pixels) and np.array_equal(back.labels, images.labels)  # type: ignore[arg-type]
    if not same or not np.array_equal(back.true_labels, images.true_labels):  # type: ignore[arg-type]
        raise DataError(f"{name}: read back, the set is another than the one that was made; nothing is kept")
    return back


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: tuples are lists."""
    return {key: _listed(value) for key, value in values.items()}


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return _plain(value)
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
