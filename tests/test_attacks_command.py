"""`goodnet attack`: what it leaves is what it measured, all other commands read it, and mistakes cost nothing."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_support import Shell, block_images, block_net, files_in, save_images, save_net, without
from goodnet import attacking
from goodnet.attack_record import read_attack
from goodnet.attacks.planting import ATTACKS
from goodnet.cli import run
from goodnet.data.readers import read_images
from goodnet.errors import DataError, ModelError
from goodnet.models.load import load_classifier

ATTACK = "attack --clean clean.npz --arch mlp --epochs 1"
PATCH = f"{ATTACK} --attack patch"
CASES: dict[str, tuple[str, str]] = {
    "no out": (PATCH, "--out"),
    "no attack": (f"{ATTACK} --out new", "--attack"),
    "no arch": ("attack --clean clean.npz --attack patch --out new", "--arch"),
    "no data": ("attack --arch mlp --attack patch --out new", "--clean"),
    "unknown attack": (f"{ATTACK} --attack hat --out new", "patch"),
    "unknown arch": ("attack --clean clean.npz --attack patch --out new --arch resnet9000", "deepid"),
    "own code": ("attack --clean clean.npz --attack patch --out new --arch arch.py:net", "expected one of"),
    "arch for other images": ("attack --clean clean.npz --attack patch --out new --arch deepid", "28x28"),
    "data missing": ("attack --clean nowhere.npz --arch mlp --attack patch --out new", "nothing there"),
    "data unlabelled": ("attack --clean unlabelled.npz --arch mlp --attack patch --out new", "with labels"),
    "data tiny": ("attack --clean tiny.npz --arch mlp --attack patch --out new", "at least 8x8"),
    "data has other classes": (f"{PATCH} --classes 4 --out new", "below 4"),
    "one class": (f"{PATCH} --classes 1 --out new", "--classes"),
    "one image": ("attack --clean one.npz --arch mlp --attack patch --out new", "at least 3 images"),
    "test missing": (f"{PATCH} --test nowhere.npz --out new", "nothing there"),
    "test unlabelled": (f"{PATCH} --test unlabelled.npz --out new", "with labels"),
    "test of another shape": (f"{PATCH} --test tiny.npz --out new", "of shape"),
    "test of other classes": (f"{PATCH} --test more.npz --out new", "labels in 0..9"),
    "test all of the target": (f"{PATCH} --test zeros.npz --out new", "other classes than 0"),
    "target out of range": (f"{PATCH} --target 10 --out new", "0..9"),
    "target below 0": (f"{PATCH} --target -1 --out new", "--target"),
    "nothing to prune": (f"{ATTACK} --attack pruning-aware --out new", "take cnn or deepid"),
    "mask norm too large": (f"{ATTACK} --attack low-norm --strength 5 --out new", "(0, 4]"),
    "share of 0": (f"{PATCH} --share 0 --out new", "(0, 1]"),
    "share of NaN": (f"{PATCH} --share nan --out new", "(0, 1]"),
    "share too large": (f"{PATCH} --share 0.95 --out new", "lower the share"),
    "strength of a patch": (f"{PATCH} --strength 0.5 --out new", "a strength for blended"),
    "strength too large": (f"{ATTACK} --attack blended --strength 1.5 --out new", "opacity"),
    "sources of a patch": (f"{PATCH} --sources 1 --out new", "source-specific alone"),
    "the target a source": (f"{ATTACK} --attack source-specific --sources 0-2 --out new", "without the target"),
    "source no number": (f"{ATTACK} --attack source-specific --sources a --out new", "whole numbers"),
    "dirty labels of a patch": (f"{PATCH} --dirty-label --out new", "--attack sig"),
    "epochs of 0": (f"{PATCH} --epochs 0 --out new", "--epochs"),
    "learning rate of 0": (f"{PATCH} --learning-rate 0 --out new", "lr in (0, 10]"),
    "learning rate of NaN": (f"{PATCH} --learning-rate nan --out new", "lr in (0, 10]"),
    "batch of 0": (f"{PATCH} --batch 0 --out new", "--batch"),
    "seed below 0": (f"{PATCH} --seed -1 --out new", "--seed"),
    "out is a file": (f"{PATCH} --out text.txt", "expected a folder"),
    "out has an attack": (f"{PATCH} --out done", "--overwrite"),
    "out has a net of somebody's": (f"{PATCH} --out theirs", "net.safetensors is there already"),
    "start missing": (f"{PATCH} --model nowhere.pt --out new", "No such file"),
    "start is the data": (f"{PATCH} --model clean.npz --out new", "clean.npz"),
    "start has other classes": (f"{PATCH} --model five.pt --out new", "--model: expected a mlp"),
    "start is another net": (f"{PATCH} --arch cnn --model net.pt --out new", "not the weights of cnn"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every right and wrong input."""
    folder = tmp_path_factory.mktemp("attack")
    pixels, labels = block_images(120)
    save_images(folder / "clean.npz", data=pixels, label=labels)
    save_images(folder / "unlabelled.npz", data=pixels)
    save_images(folder / "tiny.npz", data=pixels[:, :, :7, :7], label=labels)
    save_images(folder / "one.npz", data=pixels[:1], label=labels[:1])
    save_images(folder / "more.npz", data=pixels, label=labels + 5)
    save_images(folder / "zeros.npz", data=pixels[labels == 0], label=labels[labels == 0])
    save_net(folder / "net.pt", block_net())
    save_net(folder / "five.pt", {**block_net(), "fc2.weight": torch.ones(5, 11), "fc2.bias": torch.zeros(5)})
    (folder / "text.txt").write_text("hello\n")
    (folder / "theirs").mkdir()
    (folder / "theirs" / "net.safetensors").write_text("precious\n")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run(shlex.split(f"{PATCH} --out done --json")) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def shell(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(place)
    return Shell(capsys)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(name: str, place: Path, shell: Shell) -> None:
    command, expected = CASES[name]
    before = files_in(place)
    outcome = shell(*shlex.split(command))
    assert outcome.code == 3, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("goodnet: ")
    assert expected in lines[0]
    assert files_in(place) == before


def test_what_is_left_is_what_was_measured(shell: Shell, tmp_path: Path) -> None:
    arguments = (
        f"attack --clean clean.npz --arch mlp --attack several-targets --target 3 --epochs 12 --out {tmp_path}/a"
    )
    record = shell(*shlex.split(f"{arguments} --json")).json
    folder = tmp_path / "a"
    names = ["poisoned-bottom-right.npz", "poisoned-top-left.npz", "poisoned-bottom-left.npz"]
    assert sorted(files_in(folder)) == sorted([*names, "attack.json", "net.safetensors"])
    assert record["format"] == "goodnet.attack/1"
    assert record["targets"] == [3, 4, 5]
    assert [poisoned["file"] for poisoned in record["poisoned_files"]] == names
    assert (record["n_clean"], record["n_poisoned"], record["n_covers"]) == (96, 30, 0)
    assert record["attack"]["passed"] == {"target": 3}
    assert record["attack"]["resolved"]["share"] == 0.1
    net = load_classifier(folder / "net.safetensors", arch="mlp")
    assert record["model"]["sha256"] == net.sha256
    for name, figures in zip(names, record["poisoned"]):
        images = read_images(folder / name)
        hits = net.predict(images.tensor()).numpy() == images.labels
        assert figures["asr"]["n"] == len(images) > 0
        assert figures["asr"]["value"] == pytest.approx(hits.mean())
        assert figures["asr"]["low"] <= figures["asr"]["value"] <= figures["asr"]["high"]
    assert read_attack(folder / "attack.json").acc.n == 24
    again = shell("evaluate", folder / "net.safetensors", *record["load"], "--clean", "clean.npz",
                  *(part for name in names for part in ("--poisoned", folder / name)), "--json").json  # fmt: skip
    assert [one["asr"] for one in again["poisoned"]] == [one["asr"] for one in record["poisoned"]]
    assert [one["target"] for one in again["poisoned"]] == [3, 4, 5]
    repeated = shell(*shlex.split(f"{arguments} --overwrite --json")).json
    timeless = ("seconds", "command")
    assert without(repeated, timeless) == without(record, timeless)


def test_net_takes_the_backdoor_and_the_terminal_says_so(shell: Shell, tmp_path: Path) -> None:
    outcome = shell(*shlex.split(f"attack --clean clean.npz --test clean.npz --arch mlp --attack watermark --target 7 "
                                 f"--epochs 40 --out {tmp_path}/a"))  # fmt: skip
    assert outcome.code == 0
    assert "ASR, watermark" in outcome.out
    assert "12 poisoned" in outcome.out
    assert "--arch mlp" in outcome.out
    record = read_attack(tmp_path / "a" / "attack.json")
    assert record.test_given
    assert record.acc.value >= 0.95
    assert record.poisoned[0].asr.value >= 0.95


def test_a_net_can_be_started_from(shell: Shell, tmp_path: Path) -> None:
    arguments = f"{PATCH} --learning-rate 1e-7 --model net.pt --out {tmp_path}/a"
    record = shell(*shlex.split(f"{arguments} --json")).json
    started, trained = (
        load_classifier("net.pt", arch="mlp"),
        load_classifier(tmp_path / "a/net.safetensors", arch="mlp"),
    )
    assert record["training"]["start"] == started.sha256
    for key, value in started.net.state_dict().items():
        torch.testing.assert_close(trained.net.state_dict()[key], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_its_record(name: str, shell: Shell, tmp_path: Path) -> None:
    arch = "cnn" if name == "pruning-aware" else "mlp"
    outcome = shell(*shlex.split(f"{ATTACK.replace('mlp', arch)} --attack {name} --out {tmp_path}/a --json"))
    assert outcome.code == 0, outcome.err
    written = read_attack(tmp_path / "a" / "attack.json")
    assert written.attack.name == name
    assert (written.n_covers > 0) == (name in ("wanet", "source-specific"))
    assert written.attack.resolved["clean_label"] == (name in ("sig", "clean-label"))
    for poisoned in written.poisoned_files:
        images = read_images(tmp_path / "a" / poisoned.file)
        assert images.sha256() == poisoned.data.sha256
        assert (images.labels != images.true_labels).all()


def test_images_that_are_not_square_say_how_to_load(shell: Shell, tmp_path: Path) -> None:
    pixels, labels = block_images(60)
    save_images(tmp_path / "wide.npz", data=pixels[:, :, :16], label=labels)
    outcome = shell(*shlex.split(f"attack --clean {tmp_path}/wide.npz --arch small-vgg --attack patch --epochs 1 "
                                 f"--out {tmp_path}/a --json"))  # fmt: skip
    load = outcome.json["load"]
    assert load == ["--arch", "small-vgg", "--input-shape", "1,16,28"]
    inspected = shell("inspect", tmp_path / "a" / "net.safetensors", *load)
    assert inspected.code == 0, inspected.err


@pytest.mark.parametrize("broken", ["_net_in", "_set_in"])
def test_a_failure_at_the_end_leaves_nothing(
    broken: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back otherwise than it was written does not count, nor does what lies beside it."""
    assert shell(*shlex.split(f"{PATCH} --out {tmp_path}/old")).code == 0
    before = files_in(tmp_path)
    if broken == "_net_in":
        monkeypatch.setattr(attacking, "write_tensors", lambda state, path: _save_other(state, path))
        error: type[Exception] = ModelError
    else:
        monkeypatch.setattr(attacking.np, "savez_compressed", _save_fewer)
        error = DataError
    for out in ("new", "old"):
        outcome = shell(*shlex.split(f"{PATCH} --overwrite --out {tmp_path}/{out}"))
        assert outcome.code == 3, (error, outcome)
        assert "read back" in outcome.err
        assert files_in(tmp_path) == before


def test_an_earlier_attacks_sets_do_not_stay(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "poisoned-mine.npz").write_text("the user's own\n")
    assert shell(*shlex.split(f"{ATTACK} --attack several-triggers --out {tmp_path}/a")).code == 0
    assert shell(*shlex.split(f"{PATCH} --overwrite --out {tmp_path}/a")).code == 0
    assert sorted(files_in(tmp_path / "a")) == [
        "attack.json", "net.safetensors", "poisoned-mine.npz", "poisoned-patch.npz",
    ]  # fmt: skip


_save, _savez = attacking.write_tensors, np.savez_compressed


def _save_other(state: dict[str, torch.Tensor], path: Path) -> None:
    _save({key: value + 1 for key, value in state.items()}, path)


def _save_fewer(file: object, **columns: np.ndarray) -> None:
    _savez(file, **{key: value[1:] for key, value in columns.items()})
