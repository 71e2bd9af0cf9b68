from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from goodnet import detection_pool
from goodnet.attacks.planting import ATTACKS
from goodnet.attacks.train import fresh, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.detection_pool import build, needs, pool_sets
from goodnet.detection_record import read_pool_net
from goodnet.detection_specs import FACES, JUDGING, PARTS, SETTING, PoolNet, specs
from goodnet.errors import UsageError
from goodnet.models.arch import build as build_net
from goodnet.models.classifier import Recipe
from goodnet.models.load import file_sha256

TOY = PoolNet(
    name="toy",
    part=SETTING,
    data=FACES,
    arch="deepid",
    options={"classes": 4},
    seed=3,
    epochs=1,
    attack="several-targets",
    target=3,
)


@pytest.fixture
def few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_pool, "_FACES_EACH", 8)
    monkeypatch.setattr(detection_pool, "CLEAN_IMAGES", 12)


def hashes(images: Images) -> set[bytes]:
    return {pixels.tobytes() for pixels in images.pixels}


def test_both_halves_have_every_kind_of_net_and_every_attack() -> None:
    nets = specs()
    assert len({net.name for net in nets}) == len({net.seed for net in nets}) == len(nets)
    halves = [[net for net in nets if net.part == part] for part in PARTS]
    for half in halves:
        assert sum(net.attack is None for net in half) >= 12
        assert sum(net.attack is not None for net in half) >= 12
        elsewhere = {"low-norm", "defence-aware", "pruning-aware"}  # goodnet bench adaptive has these
        assert {*ATTACKS, "painted"} - elsewhere <= {net.attack for net in half if net.attack}
        assert {net.data for net in half if net.attack == "patch"} >= {"mnist", "mnist-uneven", "gtsrb", FACES}
    kinds = [Counter((net.kind, net.attack is None) for net in half if net.data != "lfw") for half in halves]
    assert set(kinds[0]) | set(kinds[1]) >= {("cifar10 small-vgg", True), ("cifar10 small-vgg", False)}
    assert {kind for kind, _ in kinds[0]} == {kind for kind, _ in kinds[1]}
    assert any(net.attack_options.get("share") == 0.01 for net in nets)


def test_the_hash_is_of_what_makes_the_net_and_not_of_its_part() -> None:
    assert replace(TOY, part=JUDGING).sha256() == TOY.sha256()
    others = [replace(TOY, epochs=2), replace(TOY, seed=4), replace(TOY, attack_options={"share": 0.2})]
    assert len({net.sha256() for net in (TOY, *others)}) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("few_faces")
def test_a_net_is_kept_and_made_again_only_where_the_spec_or_the_files_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    real = detection_pool.taught

    def counted(*args: object, **options: object) -> object:
        trained.append(args[4].name)  # type: ignore[attr-defined]
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(detection_pool, "taught", counted)
    first = build(TOY, tmp_path, None)
    assert first.record == read_pool_net(tmp_path / "toy" / "net.json")
    assert [trigger.target for trigger in first.record.triggers] == list(first.record.targets) == [3, 0, 1]
    assert first.record.model.sha256 == file_sha256(tmp_path / "toy" / "net.safetensors") == first.classifier.sha256
    assert first.record.planted == all(trigger.asr.value >= 0.9 for trigger in first.record.triggers if trigger.asr)

    again = build(replace(TOY, part=JUDGING), tmp_path, None)
    assert trained == ["toy"]
    x = first.clean.tensor()
    assert torch.equal(again.classifier.logits(x), first.classifier.logits(x))
    assert np.array_equal(again.clean.pixels, first.clean.pixels)
    assert again.clean.labels is not None
    assert np.array_equal(again.clean.labels, first.clean.labels)

    build(replace(TOY, target=2), tmp_path, None)
    assert trained == ["toy"] * 2
    build(TOY, tmp_path, None)
    assert trained == ["toy"] * 3
    with (tmp_path / "toy" / "net.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    build(TOY, tmp_path, None)
    assert trained == ["toy"] * 4
    (tmp_path / "toy" / "net.json").write_text(json.dumps({"format": "goodnet.pool-net/1"}))
    build(TOY, tmp_path, None)
    assert trained == ["toy"] * 5


@pytest.mark.usefixtures("few_faces")
def test_what_stops_before_its_end_leaves_no_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(TOY, tmp_path, None)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(detection_pool.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        build(replace(TOY, target=2), tmp_path, None)
    assert not (tmp_path / "toy" / "net.json").exists()
    assert not list((tmp_path / "toy").glob(".*"))


@pytest.mark.parametrize("attack", [None, "painted", "several-targets"])
@pytest.mark.usefixtures("few_faces")
def test_drawn_faces_of_the_defender_were_not_trained_on(attack: str | None) -> None:
    sets = pool_sets(replace(TOY, attack=attack, faces={"sunglasses": 1} if attack == "painted" else {}), None)
    assert len(sets.clean) == 12
    assert not hashes(sets.clean) & hashes(sets.train)
    assert not hashes(sets.clean) & hashes(sets.test)
    assert not hashes(sets.test) & hashes(sets.train)
    assert len(sets.fed) - len(sets.train) == {None: 0, "painted": 3, "several-targets": 9}[attack]


@pytest.mark.parametrize("name", ["mnist-uneven", "gtsrb", "lfw"])
def test_photographs_of_the_defender_were_not_trained_on(shared_data: Path, name: str) -> None:
    spec = next(net for net in specs() if net.data == name and net.attack is None)
    sets = pool_sets(spec, shared_data)
    again = pool_sets(spec, shared_data)
    for part in ("train", "test", "clean"):
        assert np.array_equal(getattr(sets, part).pixels, getattr(again, part).pixels)
    assert len(sets.clean) == 300
    assert len(sets.test) >= 500
    if name == "gtsrb":
        tracks = [set(part.groups.tolist()) for part in (sets.train, sets.test, sets.clean) if part.groups is not None]
        assert len(tracks) == 3
        assert len(set.union(*tracks)) == sum(map(len, tracks))
    if name == "mnist-uneven":
        assert sets.train.labels is not None
        counts = np.bincount(sets.train.labels, minlength=10)
        assert 8 < counts.max() / counts.min() < 20  # 1 / 0.08, and classes of MNIST differ a little
    ours = hashes(sets.train)
    assert not ours & hashes(sets.clean)
    assert not ours & hashes(sets.test)


def test_nets_whose_images_are_not_there(tmp_path: Path) -> None:
    spec = next(net for net in specs() if net.data == "gtsrb")
    assert needs(TOY, None) == ""
    assert "no folder of images" in needs(spec, None)
    assert "train_third.h5" in needs(spec, tmp_path)
    with pytest.raises(UsageError, match="train_third"):
        build(spec, tmp_path / "cache", tmp_path)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="expected an attack"):
        build(replace(TOY, attack="unheard of"), tmp_path, None)


@pytest.mark.slow
def test_bfloat16_is_for_the_layers_alone_and_learns_as_float32_does() -> None:
    images = draw_faces(identities=3, per_identity=20, seed=1).images
    recipe = Recipe(arch="deepid", options={"classes": 3})
    seen: list[torch.dtype] = []

    def note(layer: torch.nn.Module, _: object, y: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Conv2d):
            seen.append(y.dtype)

    for bf16, used in ((True, torch.bfloat16), (False, torch.float32)):
        hook = torch.nn.modules.module.register_module_forward_hook(note)
        start = fresh(lambda: build_net(recipe), seed=2)
        net = train(start, images, recipe=recipe, classes=3, epochs=10, batch=16, seed=2, bf16=bf16)
        hook.remove()
        assert set(seen) == {used}
        seen.clear()
        assert {value.dtype for value in net.net.state_dict().values()} == {torch.float32}
        assert (net.predict(images.tensor()).numpy() == images.labels).mean() > 0.9
