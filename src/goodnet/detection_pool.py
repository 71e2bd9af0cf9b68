"""Nets of the detection benchmark, made from their specs and kept in a cache.

A net's folder there has its weights (`net.safetensors`, which `goodnet scan` takes too), the defender's clean images
(`clean.npz`) and its record (`net.json`, written last: a folder without it holds nothing). Faces are drawn; MNIST,
GTSRB, CIFAR-10 and LFW are read where the user has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from goodnet.about import data_info, model_info
from goodnet.attacks.face_triggers import FACE_TRIGGERS
from goodnet.attacks.planting import ATTACKS, Planting, planting
from goodnet.attacks.taught import Lesson, taught
from goodnet.attacks.train import face_sets, fresh
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.detection_record import PoolNetRecord, PoolTrigger, read_pool_net
from goodnet.detection_specs import FACES, FILES, PARTS, PoolNet
from goodnet.errors import DataError, ModelError, UsageError
from goodnet.measure import answer, share
from goodnet.models.arch import build as build_net
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.load import file_sha256, load_classifier
from goodnet.models.weights import write_tensors
from goodnet.outputs import claimed, replacing
from goodnet.progress import Progress, silent
from goodnet.strict_json import write_record

MIN_ASR = 0.9
CLEAN_IMAGES, TEST_IMAGES = 300, 1000
_RAREST = 0.08  # of mnist-uneven's classes, as a share of the most frequent one
_FACES_EACH = 60
_PATIENCE = 6 * 3600.0  # seconds that another may take to train a net


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """A net of the pool, made. `clean` is what a defender is given."""

    spec: PoolNet
    classifier: Classifier
    clean: Images
    record: PoolNetRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolSets:
    """Images of a net: no image is in two of `train`, `test` and `clean`.

    Attributes:
        train: to train on, before poison.
        fed: what is trained on: `train`, with poison for a backdoored net.
        test: clean images for ACC; `poisoned`, by trigger, for ASR, are made of these.
        clean: the defender's.
        targets: of each trigger; None where it has one an image.
        plan: the attack; None for a clean net and for painted faces.
    """

    train: Images
    fed: Images
    test: Images
    poisoned: Mapping[str, Images]
    clean: Images
    targets: tuple[int, ...]
    by_trigger: Mapping[str, int | None]
    plan: Planting | None = None


def build(spec: PoolNet, cache: Path, data: Path | None, *, progress: Progress = silent) -> Pooled:
    """The net from the cache or, where that has none of this spec, trained and put there.

    Args:
        cache: folder that holds a folder for each net.
        data: folder with FILES; None if there is none: then only nets on drawn faces can be made.
        progress: told after every epoch.

    Raises:
        UsageError: an unknown attack or part, or images that are not there.
        DataError, ModelError: what the cache or `data` holds is damaged, or the training diverged.
    """
    _check(spec)
    folder = cache / spec.name
    kept = _kept(spec, folder)
    if kept is not None:
        return kept
    with claimed(folder, option="--cache", patience=_PATIENCE):  # another machine may be at the same net
        return _kept(spec, folder) or _trained(spec, folder, data, progress)


def _trained(spec: PoolNet, folder: Path, data: Path | None, progress: Progress) -> Pooled:
    started = time.perf_counter()
    sets = pool_sets(spec, data)
    recipe = Recipe(arch=spec.arch, options=dict(spec.options))
    net = taught(
        fresh(lambda: build_net(recipe), seed=spec.seed),
        sets.train,
        sets.fed,
        sets.plan,
        Lesson(recipe=recipe, classes=spec.classes, epochs=spec.epochs, seed=spec.seed, bf16=spec.bf16, name=spec.name),
        progress=lambda epoch, epochs, loss: progress(f"training {spec.name}", epoch, epochs),
    )
    return _keep(spec, folder, net, sets, started)


def needs(spec: PoolNet, data: Path | None) -> str:
    """What is missing to make the net, in words; empty if nothing is."""
    if spec.data == FACES:
        return ""
    if data is None:
        return f"needs {FILES[spec.data]}, and no folder of images was given"
    return "" if (data / FILES[spec.data]).is_file() else f"needs {data / FILES[spec.data]}, which is not there"


def pool_sets(spec: PoolNet, data: Path | None) -> PoolSets:
    """The net's images, the same at each call. Raises UsageError where they are not there."""
    missing = needs(spec, data)
    if missing:
        raise UsageError(f"{spec.name}: {missing}; pass the folder that holds it")
    if spec.data == FACES:
        return _face_sets(spec)
    assert data is not None
    images = _read(data / FILES[spec.data])
    random = np.random.default_rng([spec.seed, 0])
    if spec.data == "mnist-uneven":
        images = images.take(_uneven(images, random))
    tested, defended, trained = _parts(images, random)
    return _poisoned(spec, images.take(trained[: spec.most]), images.take(tested), images.take(defended))


def _face_sets(spec: PoolNet) -> PoolSets:
    draws = [int(value) for value in np.random.SeedSequence([spec.seed, 1]).generate_state(3)]
    people = spec.classes
    chosen = draw_faces(identities=people, per_identity=-(-CLEAN_IMAGES // people), seed=draws[0]).images
    clean = chosen.take(np.sort(np.random.default_rng([spec.seed, 2]).permutation(len(chosen))[:CLEAN_IMAGES]))
    if spec.attack != "painted":
        train_faces = draw_faces(identities=people, per_identity=_FACES_EACH, seed=draws[1]).images
        test = draw_faces(identities=people, per_identity=20, seed=draws[2]).images
        return _poisoned(spec, train_faces, test, clean)
    sets = face_sets(
        spec.faces, identities=people, per_identity=_FACES_EACH, test_per_identity=20, share=0.1, seed=spec.seed
    )
    return PoolSets(
        train=sets.clean,
        fed=sets.train,
        test=sets.test.images,
        poisoned=sets.poisoned,
        clean=clean,
        targets=tuple(spec.faces.values()),
        by_trigger=dict(spec.faces),
    )


def _poisoned(spec: PoolNet, images: Images, test: Images, clean: Images) -> PoolSets:
    none = PoolSets(train=images, fed=images, test=test, poisoned={}, clean=clean, targets=(), by_trigger={})
    if spec.attack is None:
        return none
    plant = planting(
        spec.attack,
        shape=images.shape,
        classes=spec.classes,
        target=spec.target,
        seed=spec.seed,
        **spec.attack_options,
    )
    single = spec.attack != "all-to-all"
    return replace(
        none,
        plan=plant,
        fed=plant.train(images),
        poisoned=plant.test(test),
        targets=plant.targets,
        by_trigger={trigger.name: trigger.target if single else None for trigger in plant.triggers},
    )


def _parts(images: Images, random: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Positions to test on, for the defender, and to train on. Frames of one track are all in one of them.

    Of tracks, which show the same sign again and again, each of the first two gets a tenth.
    """
    if images.groups is None:
        order = random.permutation(len(images))
        few = min(len(images) // 8, TEST_IMAGES)
        return [order[:few], order[few : few + CLEAN_IMAGES], order[few + CLEAN_IMAGES :]]
    tracks = random.permutation(np.unique(images.groups))
    tenth = len(tracks) // 10
    parts = [tracks[:tenth], tracks[tenth : 2 * tenth], tracks[2 * tenth :]]
    tested, defended, trained = (random.permutation(np.flatnonzero(np.isin(images.groups, part))) for part in parts)
    return [tested[:TEST_IMAGES], defended[:CLEAN_IMAGES], trained]


def _uneven(images: Images, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of images such that the most frequent class has 1 / _RAREST times as many as the rarest."""
    assert images.labels is not None
    classes = int(images.labels.max()) + 1
    kept = random.permutation(np.geomspace(1, _RAREST, classes))
    return np.flatnonzero(random.random(len(images)) < kept[images.labels])


@lru_cache(maxsize=1)
def _read(path: Path) -> Images:
    return read_images(path)


def _kept(spec: PoolNet, folder: Path) -> Pooled | None:
    """What the cache has, or None where it was made from another spec or not to its end."""
    if not (folder / "net.json").is_file():
        return None
    try:
        record = read_pool_net(folder / "net.json")
        if record.spec_sha256 != spec.sha256() or record.model.sha256 != file_sha256(folder / "net.safetensors"):
            return None
        clean = read_images(folder / "clean.npz")
        if clean.sha256() != record.clean.sha256:
            return None
        return Pooled(spec=spec, classifier=_load(spec, folder), clean=clean, record=record)
    except (DataError, ModelError):  # of an older format, or cut short: made anew
        return None


def _keep(spec: PoolNet, folder: Path, net: Classifier, sets: PoolSets, started: float) -> Pooled:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.json").unlink(missing_ok=True)
    with replacing(folder / "net.safetensors") as part:
        write_tensors(net.net.state_dict(), part)
    with replacing(folder / "clean.npz") as part, part.open("wb") as file:
        columns: dict[str, Any] = {"data": sets.clean.pixels, "label": sets.clean.labels, "track": sets.clean.groups}
        np.savez(file, **{name: column for name, column in columns.items() if column is not None})
        file.flush()
        os.fsync(file.fileno())
    clean = read_images(folder / "clean.npz")
    loaded = _load(spec, folder)
    triggers = tuple(
        PoolTrigger(name=name, target=sets.by_trigger[name], asr=share(answer(loaded, images) == images.labels))
        for name, images in sets.poisoned.items()
    )
    record = PoolNetRecord(
        name=spec.name,
        spec_sha256=spec.sha256(),
        acc=share(answer(loaded, sets.test) == sets.test.labels),
        triggers=triggers,
        targets=sets.targets,
        planted=all(trigger.asr is not None and trigger.asr.value >= MIN_ASR for trigger in triggers),
        model=model_info(loaded),
        clean=data_info(clean),
        train=data_info(sets.train),
        seconds=time.perf_counter() - started,
    )
    write_record(record, folder / "net.json")
    return Pooled(spec=spec, classifier=loaded, clean=clean, record=record)


def _load(spec: PoolNet, folder: Path) -> Classifier:
    net = load_classifier(folder / "net.safetensors", arch=spec.arch, classes=spec.classes, sandbox=False)
    return replace(net, name=spec.name)


def _check(spec: PoolNet) -> None:
    attacks = (None, "painted", *ATTACKS)
    if spec.attack not in attacks or spec.part not in PARTS or not set(spec.faces) <= set(FACE_TRIGGERS):
        raise UsageError(
            f"{spec.name}: expected an attack and a part that there is, got {spec.attack!r} and {spec.part!r}"
        )
    if spec.data != FACES and spec.data not in FILES:
        raise UsageError(f"{spec.name}: expected images out of {FACES}, {', '.join(FILES)}; got {spec.data!r}")
