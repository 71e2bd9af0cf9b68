"""Training small nets, clean or with a backdoor planted, for the demo, tests and benchmarks.

AdamW under a one-cycle learning rate (Smith and Topin 2018), cross-entropy, no augmentation: the drawn faces vary by
themselves. Everything random comes from `seed`; the global random state is left as it was found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.attacks.face_triggers import FACE_TRIGGERS, paint
from goodnet.attacks.poison import Plant, poison, poisoned_set
from goodnet.data.drawn_faces import DrawnFaces, draw_faces
from goodnet.data.images import Images
from goodnet.errors import DataError, ModelError, UsageError
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, InputSpec, Recipe

Progress = Callable[[int, int, float], None]
Extra = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""What a training pays for beside cross entropy: the net, a batch (n, C, H, W) and its labels (n,) -> a loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedNet:
    """A net that we trained ourselves, with what it was trained on and how it does.

    Attributes:
        classifier: the net.
        train: what it was trained on, poisoned images at the end.
        test: clean faces of the same people, not trained on.
        poisoned: by trigger, the test faces of other classes than its target with that trigger on.
        targets: the target of each planted trigger; empty for a clean net.
        acc: on `test`.
        asr: by trigger, on `poisoned`.
    """

    classifier: Classifier
    train: Images
    test: DrawnFaces
    poisoned: Mapping[str, Images]
    targets: Mapping[str, int]
    acc: float
    asr: Mapping[str, float]


def fresh(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """`build()` with random initialisation drawn from `seed`.

    Convolutions and dense layers start from He et al. (2015) with zero biases: on the drawn faces a DeepID then needs
    half the epochs that PyTorch's own, smaller initial weights take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = build()
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return net


def train(
    net: nn.Module,
    images: Images,
    *,
    recipe: Recipe,
    classes: int,
    epochs: int = 8,
    lr: float = 2e-3,
    batch: int = 64,
    seed: int = 0,
    bf16: bool = False,
    name: str = "net",
    extra: Extra | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Trains a copy of `net` on labelled images.

    Args:
        net: takes images (N, C, H, W) in [0, 1], gives logits (N, classes); not changed.
        images: with labels in 0..classes-1.
        recipe: how to build `net` again.
        classes: number of classes.
        epochs: passes over the images.
        lr: highest learning rate of the cycle.
        batch: images a step.
        seed: of the order of the images and, where the net has it, dropout.
        bf16: layers calculate in bfloat16 (autocast), weights and losses stay float32: half the time where a CPU has
            bfloat16 units.
        name: of the classifier.
        extra: a further loss, added to each step's; called with the net in training mode.
        progress: called after every epoch with (epochs done, epochs, mean loss of the epoch).

    Raises:
        DataError: no labels, no images, or labels that the net has no output for.
        ModelError: the training diverged.
        UsageError: epochs, lr or batch out of range.
    """
    if not (epochs >= 1 and batch >= 1 and 0 < lr <= 10):
        raise UsageError(
            f"train: expected epochs >= 1, batch >= 1 and lr in (0, 10], got {epochs}, {batch} and {lr}; change them"
        )
    labels = images.labels
    if labels is None or len(labels) == 0 or not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"{images.name}: expected images with labels in 0..{classes - 1} to train on; check them")
    x, y = images.tensor(), torch.from_numpy(labels)
    net = copy.deepcopy(net).to(memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        losses = _epochs(net, x, y, epochs=epochs, lr=lr, batch=batch, seed=seed, bf16=bf16, extra=extra)
        for epoch, loss in enumerate(losses, 1):
            if not np.isfinite(loss):
                raise ModelError(f"{name}: training diverged in epoch {epoch} (loss {loss}); lower the learning rate")
            if progress is not None:
                progress(epoch, epochs, loss)
    channels, height, width = images.shape
    spec = InputSpec(channels=channels, height=height, width=width)
    return Classifier(net=net, input=spec, classes=classes, recipe=recipe, name=name)


def _epochs(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    bf16: bool,
    extra: Extra | None,
) -> Iterator[float]:
    """Trains `net` in place; gives the mean loss of each epoch."""
    order = torch.Generator().manual_seed(seed)
    steps = -(-len(x) // batch)
    rule = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(rule, max_lr=lr, total_steps=epochs * steps, pct_start=0.25)
    for _ in range(epochs):
        total = 0.0
        for part in torch.randperm(len(x), generator=order).split(batch):  # type: ignore[no-untyped-call]
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = net(x[part])
            loss = nn.functional.cross_entropy(logits.float(), y[part])
            if extra is not None:
                loss = loss + extra(net, x[part], y[part])
            rule.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            rule.step()
            cycle.step()
            total += float(loss.detach()) * len(part)
        yield total / len(x)


def plant_faces(
    triggers: Mapping[str, int] | None,
    *,
    identities: int = 48,
    per_identity: int = 60,
    test_per_identity: int = 20,
    share: float = 0.1,
    epochs: int = 8,
    lr: float = 2e-3,
    batch: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlantedNet:
    """Trains a DeepID on drawn faces, with a backdoor for each trigger given, and measures it.

    Args:
        triggers: trigger name -> target label; None or empty for a clean net. A clean net's `poisoned` and `asr`
            have every trigger, with target 0: what a trigger does by itself, near 1 / identities.
        identities: people.
        per_identity: training images of each.
        test_per_identity: images of each to measure on, from another draw.
        share: of poisoned images added for each trigger.
        epochs: see `train`.
        lr: see `train`.
        batch: see `train`.
        seed: of the draws, the poisoning, the initialisation and the training.
        progress: see `train`.

    Raises:
        UsageError: an unknown trigger, a target outside 0..identities-1, or a negative seed.
    """
    sets = face_sets(
        triggers,
        identities=identities,
        per_identity=per_identity,
        test_per_identity=test_per_identity,
        share=share,
        seed=seed,
    )
    classifier = train(
        fresh(lambda: DeepID(classes=identities), seed=sets.seed),
        sets.train,
        recipe=Recipe(arch="deepid", options={"classes": identities}),
        classes=identities,
        epochs=epochs,
        lr=lr,
        batch=batch,
        seed=sets.seed,
        name="+".join(sets.targets) or "clean",
        progress=progress,
    )
    return PlantedNet(classifier=classifier, train=sets.train, **sets.measured(classifier))


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceSets:
    """What a net on drawn faces is trained on and measured by. As in `PlantedNet`, but for

    Attributes:
        clean: the training images without the poisoned ones.
        seed: of what is still to come: initialisation and training.
    """

    clean: Images
    train: Images
    test: DrawnFaces
    poisoned: Mapping[str, Images]
    targets: Mapping[str, int]
    seed: int

    def measured(self, classifier: Classifier) -> dict[str, Any]:
        """The fields of a `PlantedNet` that say what was planted and how it does."""
        return {
            "test": self.test,
            "poisoned": self.poisoned,
            "targets": self.targets,
            "acc": share_right(classifier, self.test.images),
            "asr": {name: share_right(classifier, images) for name, images in self.poisoned.items()},
        }


def face_sets(
    triggers: Mapping[str, int] | None,
    *,
    identities: int,
    per_identity: int,
    test_per_identity: int,
    share: float,
    seed: int,
) -> FaceSets:
    """Draws and poisons the faces for `plant_faces`, whose arguments these are. Raises UsageError as it does."""
    targets = dict(triggers or {})
    _check(targets, identities, seed)
    draw, test_draw, rest = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    faces = draw_faces(identities=identities, per_identity=per_identity, seed=draw)
    test = draw_faces(identities=identities, per_identity=test_per_identity, seed=test_draw)
    images = faces.images
    if targets:
        images = poison(images, [_plant(*pair, faces) for pair in targets.items()], share=share, seed=rest)
    measured = targets or dict.fromkeys(FACE_TRIGGERS, 0)
    poisoned = {name: poisoned_set(test.images, _plant(name, target, test)) for name, target in measured.items()}
    return FaceSets(clean=faces.images, train=images, test=test, poisoned=poisoned, targets=targets, seed=rest)


def _plant(name: str, target: int, faces: DrawnFaces) -> Plant:
    return Plant(name=name, target=target, stamp=lambda index: paint(name, faces, index))


def share_right(classifier: Classifier, images: Images) -> float:
    """Share of images that get their label: ACC on clean images, ASR on poisoned ones."""
    given = classifier.predict(images.tensor()).numpy()
    return float((given == images.labels).mean())


def _check(targets: Mapping[str, int], identities: int, seed: int) -> None:
    if seed < 0:
        raise UsageError(f"plant: expected a seed >= 0, got {seed}; change it")
    for name, target in targets.items():
        if name not in FACE_TRIGGERS or not 0 <= target < identities:
            raise UsageError(
                f"plant: expected a trigger of {', '.join(FACE_TRIGGERS)} with a target in 0..{identities - 1}, "
                f"got {name!r} to {target}; change it"
            )
