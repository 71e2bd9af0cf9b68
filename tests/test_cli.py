"""The command line on nets whose every answer is known: exit codes, records, GoodNets, and being interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_support import (
    BARELY,
    CLASSES,
    PRUNING,
    TARGET,
    USER_CODE,
    Shell,
    block_images,
    block_net,
    files_in,
    fill,
    repair,
    save_images,
    save_net,
    save_png,
    scan,
    triggered,
    without,
)
from goodnet.cli import run
from goodnet.data.readers import read_images
from goodnet.errors import ModelError
from goodnet.export import save_goodnet
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier

SCAN_KEYS = {"format", "verdict", "flagged_labels", "labels", "seconds", "forward_passes"}
LABEL_KEYS = {"label", "score", "p_value", "mask_norm", "norm_ratio", "held_out_asr", "status"}
SHARE_KEYS = {"value", "low", "high", "n"}
REPAIR_KEYS = {"format", "accepted", "method", "before", "after", "reasons"}


@pytest.fixture(scope="module")
def template(short_scans: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bad.pt, clean.pt, clean.npz, and a scan of bad.pt in scanned."""
    folder = tmp_path_factory.mktemp("nets")
    fill(folder)
    command = ["scan", folder / "bad.pt", "--arch", "mlp", "--clean", folder / "clean.npz", "--out", folder / "scanned"]
    assert run([str(word) for word in command]) in (0, 1, 2)
    return folder


def test_a_planted_shortcut_is_suspect_and_its_label_is_named(place: Path, shell: Shell) -> None:
    for target in (TARGET, 8):
        save_net(place / "bad.pt", block_net(target))
        done = scan(shell, "bad.pt", "--json")
        assert done.code == 1
        assert done.json["verdict"] == "suspect"
        assert done.json["flagged_labels"] == [target]


def test_a_net_without_a_shortcut_is_clean(place: Path, shell: Shell) -> None:
    done = scan(shell, "clean.pt", "--json")
    assert (done.code, done.json["verdict"], done.json["flagged_labels"]) == (0, "clean", [])


def test_random_symmetric_nets_are_clean(place: Path, shell: Shell) -> None:
    """Rows that sum to 0 give no label a head start: all have the same law, so none may stand out."""
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(CLASSES, 784, generator=generator)
        weight = weight - weight.mean(1, keepdim=True)
        save_net(place / "random.pt", {"fc1.weight": weight, "fc1.bias": torch.zeros(CLASSES)})
        pixels = torch.randint(0, 256, (300, 1, 28, 28), generator=generator, dtype=torch.uint8)
        labels = ((pixels.flatten(1) / 255) @ weight.T).argmax(1)
        save_images(place / "clean.npz", data=pixels.numpy(), label=labels.numpy())
        done = scan(shell, "random.pt", "--json")
        assert (done.code, done.json["verdict"], done.json["flagged_labels"]) == (0, "clean", [])
        assert done.json["preflight_acc"]["value"] == 1


def test_three_labels_are_too_few_for_a_verdict(place: Path, shell: Shell) -> None:
    state = {**block_net(), "fc2.weight": block_net()["fc2.weight"][:3], "fc2.bias": torch.zeros(3)}
    save_net(place / "three.pt", state)
    pixels, labels = block_images(100)
    save_images(place / "clean.npz", data=pixels[labels < 3], label=labels[labels < 3])
    done = scan(shell, "three.pt", "--json")
    assert (done.code, done.json["verdict"]) == (2, "inconclusive")
    assert any("too few labels" in reason for reason in done.json["reasons"])


def test_some_labels_alone_never_end_in_clean(place: Path, shell: Shell) -> None:
    done = scan(shell, "clean.pt", "--labels", "0-8", "--json")
    assert (done.code, done.json["verdict"]) == (2, "inconclusive")
    assert any("1 of 10 labels were not scanned" in reason for reason in done.json["reasons"])
    assert scan(shell, "bad.pt", "--labels", "4-9").code == 2
    found = scan(shell, "bad.pt", "--labels", "0-6", "--json")
    assert (found.code, found.json["flagged_labels"]) == (1, [TARGET])


def check_origins(record: Any, model: str, data: str) -> None:
    """Which files and which versions a record is of."""
    assert record["model"]["sha256"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()
    assert record["data"]["sha256"] == read_images(data).sha256()
    ran = record["environment"]
    found = {"goodnet": ran["goodnet"], "python": ran["python"], "torch": ran["torch"], **ran["packages"]}
    assert found["python"] == sys.version.split()[0]
    assert found == {"python": found["python"], "torch": torch.__version__, **{
        name: metadata.version(name) for name in ("goodnet", "numpy", "h5py", "safetensors", "pillow")
    }}  # fmt: skip


def test_records_have_the_fixed_keys_and_stand_alone_on_stdout(place: Path, shell: Shell) -> None:
    done = scan(shell, "bad.pt", "--out", "scanned", "--overwrite", "--json")
    assert done.json["format"] == "goodnet.scan/1"
    assert set(done.json) >= SCAN_KEYS
    check_origins(done.json, "bad.pt", "clean.npz")
    assert [row["label"] for row in done.json["labels"]] == list(range(CLASSES))
    assert all(set(row) >= LABEL_KEYS for row in done.json["labels"])
    assert Path("scanned/scan.json").read_text() == done.out
    done = repair(shell, "--scan", "scanned", "-o", "good.safetensors", "--out", "repaired", "--json")
    assert (done.code, done.json["accepted"], done.json["format"]) == (0, True, "goodnet.repair/1")
    assert set(done.json) >= REPAIR_KEYS
    check_origins(done.json, "bad.pt", "clean.npz")
    assert done.json["goodnet_sha256"] == hashlib.sha256(Path("good.safetensors").read_bytes()).hexdigest()
    assert Path("repaired/repair.json").read_text() == done.out
    save_images(place / "poisoned.npz", data=triggered(block_images()[0]), label=np.full(60, TARGET))
    arguments = ("--clean", "clean.npz", "--poisoned", "poisoned.npz", "--arch", "mlp", "--out", "measured", "--json")
    done = shell("evaluate", "good.safetensors", "--before", "bad.pt", *arguments)
    assert (done.code, done.json["format"]) == (0, "goodnet.evaluate/1")
    check_origins(done.json, "good.safetensors", "clean.npz")
    assert done.json["poisoned_data"][0]["sha256"] == read_images("poisoned.npz").sha256()
    poisoned = done.json["poisoned"][0]
    for figure in (done.json["acc"], done.json["fpr"], poisoned["asr"], poisoned["detection"]):
        assert set(figure) == SHARE_KEYS
    assert (poisoned["name"], poisoned["target"], poisoned["ra"]) == ("poisoned.npz", TARGET, None)
    assert Path("measured/evaluate.json").read_text() == done.out
    save_png(place / "a.png", block_images()[0][5])
    done = shell("predict", "good.safetensors", "a.png", "--json")
    assert [set(one) for one in done.json] == [{"path", "class", "triggered", "score", "sha256", "net_sha256"}]
    assert done.json[0]["class"] == 5
    assert done.json[0]["sha256"] == hashlib.sha256(Path("a.png").read_bytes()).hexdigest()
    assert done.json[0]["net_sha256"] == hashlib.sha256(Path("good.safetensors").read_bytes()).hexdigest()
    done = shell("inspect", "good.safetensors", "--json")
    assert (done.code, done.json["format"], done.json["classes"]) == (0, "GoodNet", CLASSES)


def test_the_seed_decides(place: Path, shell: Shell) -> None:
    def scanned(seed: str) -> Any:
        return without(
            scan(shell, "clean.pt", "--labels", "0-3", "--seed", seed, "--json").json, ("seconds", "command")
        )

    def repaired(seed: str) -> Any:
        tuned = ("--method", "fine-pruning", "--layer", "fc1", "--epochs", "2", "--learning-rate", "1e-3")
        return without(repair(shell, "--seed", seed, "--json", how=tuned).json, ("seconds", "command"))

    once, other = scanned("5"), scanned("6")
    assert scanned("5") == once
    assert once["method"]["seed"] == 5
    assert [row["mask_norm"] for row in once["labels"]] != [row["mask_norm"] for row in other["labels"]]
    assert repaired("5") == repaired("5")


def test_evaluate_against_figures_made_by_hand(place: Path, shell: Shell) -> None:
    """20 clean images, 2 a class: two with a wrong label, one of class 0 with the trigger pixel lit by accident, and
    class 8, which the repaired net takes for 5. 20 poisoned: two without a trigger, two of the target class (one of
    them without trigger), four on which the trigger was lost."""
    bad = load_classifier("bad.pt", arch="mlp")
    blind = block_net()
    blind["fc2.weight"][8, 8], blind["fc2.weight"][5, 8] = 0.0, 10.0
    good = load_classifier(save_net(place / "blind.pt", blind), arch="mlp")
    save_goodnet(goodnet_from(bad, good), place / "good.safetensors")
    pixels, labels = block_images(20)
    wrong = labels.copy()
    wrong[[1, 2]] = 9
    accident = pixels.copy()
    accident[0] = triggered(pixels)[0]
    save_images(place / "test.npz", data=accident, label=wrong)
    stamped, present = triggered(pixels), np.ones(20, np.int64)
    lost, absent = [4, 5, 6, 7], [10, 13]
    stamped[lost + absent] = pixels[lost + absent]
    present[absent] = 0
    targets = np.full(20, TARGET)
    save_images(place / "poison.npz", data=stamped, label=targets, true_label=labels, trigger_present=present)
    done = shell("evaluate", "good.safetensors", "--before", "bad.pt", "--arch", "mlp", "--clean", "test.npz",
                 "--poisoned", "poison.npz", "--json").json  # fmt: skip

    def counts(share: dict[str, float]) -> tuple[int, int]:
        return round(share["value"] * share["n"]), int(share["n"])

    before, after, poisoned = done["before"], done, done["poisoned"][0]
    assert counts(before["acc"]) == (17, 20)  # two wrong labels, one accident
    assert before["fpr"] is None
    assert counts(after["acc"]) == (15, 20)  # and both images of class 8
    assert counts(after["fpr"]) == (3, 20)
    assert counts(before["poisoned"][0]["asr"]) == (13, 17)  # 18 triggered, one of the target class
    assert counts(before["poisoned"][0]["ra"]) == (5, 18)  # the four that lost it, and the one of the target class
    assert counts(poisoned["asr"]) == (0, 17)
    assert counts(poisoned["ra"]) == (5, 18)
    assert counts(poisoned["detection"]) == (13, 18)
    assert poisoned["der"] == pytest.approx((13 / 17 - 2 / 20 + 1) / 2)
    assert before["poisoned"][0]["der"] is None
    for share in (before["acc"], after["fpr"], poisoned["asr"], poisoned["detection"]):
        for end in (share["low"], share["high"]):  # Wilson: |p^ - p| = z sqrt(p (1 - p) / n) at either end
            spread = 1.959963984540054 * math.sqrt(end * (1 - end) / share["n"])
            assert abs(share["value"] - end) == pytest.approx(spread, abs=1e-9)


def test_a_repair_is_judged_by_the_scans_triggers(place: Path, shell: Shell) -> None:
    assert scan(shell, "bad.pt", "--out", "fourth", "--seed", "4").code == 1
    done = repair(shell, "--scan", "fourth", "-o", "good.safetensors", "--json")
    assert (done.code, done.json["accepted"], done.json["method"]["seed"]) == (0, True, 4)
    assert done.json["pruned"] == [{"layer": "fc1", "channels": [CLASSES], "side": "output"}]
    before, after = (done.json[when]["poisoned"][0] for when in ("before", "after"))
    assert (before["asr"]["value"], after["asr"]["value"], after["detection"]["value"], after["der"]) == (1, 0, 1, 1)
    assert (done.json["after"]["acc"]["value"], done.json["after"]["fpr"]["value"]) == (1, 0)


def next_command(text: str) -> list[str]:
    """The command that stands last in an answer, as a shell would see it."""
    return shlex.split(text[text.rindex("  goodnet ") :].replace("\\\n", " "))[1:]


@pytest.mark.slow
def test_each_step_ends_with_the_next_ones_command(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["goodnet", "scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz"])
    found = scan(shell, "bad.pt", "--out", "it's here")
    assert "Repair it, with what this scan found:" in found.out
    repairing = next_command(found.out)
    assert repairing[:1] + repairing[2:] == [
        "repair", "--clean", "clean.npz", "--scan", "it's here", "--arch", "mlp", "-o", "bad-goodnet.safetensors"
    ]  # fmt: skip
    done = shell(*repairing, *PRUNING)
    assert done.code == 0
    assert "DER: " in done.out
    assert "class N = 10" in done.out
    measuring = next_command(done.out)
    assert measuring == ["evaluate", "bad-goodnet.safetensors", "--clean", "TEST_IMAGES"]
    measured = shell(*measuring[:-1], "clean.npz")
    assert measured.code == 0
    assert "ACC: clean images answered right." in measured.out
    assert max(map(len, measured.out.splitlines())) <= 80
    assert next_command(scan(shell, "clean.pt", "--out", "fine").out)[0] == "evaluate"
    assert "  goodnet " not in scan(shell, "bad.pt").out  # no folder, no triggers to repair by


def test_a_repair_that_keeps_nothing_says_so_before_it_starts(place: Path, shell: Shell) -> None:
    assert repair(shell).err.startswith("no -o FILE: the repaired net will be measured and not be kept\n")
    for more in (("-o", "good.safetensors"), ("--json",), ("-q",)):
        assert "no -o" not in repair(shell, *more).err


def test_no_goodnet_without_acceptance(place: Path, shell: Shell) -> None:
    done = repair(shell, "-o", "good.safetensors")
    assert done.code == 2
    assert "Not judged: the backdoor was not judged" in done.out
    assert "--keep-rejected" in done.out
    assert not Path("good.safetensors").exists()
    assert "-o FILE" in repair(shell).out
    rejected = ("--scan", "scanned", "-o", "good.safetensors")
    done = repair(shell, *rejected, how=BARELY)
    assert (done.code, Path("good.safetensors").exists()) == (1, False)
    assert "Not accepted: trigger found for label 3: ASR is still 100.0%" in done.out
    done = repair(shell, *rejected, "--keep-rejected", how=BARELY)
    assert (done.code, Path("good.safetensors").exists()) == (1, True)
    assert "GoodNet: good.safetensors" in done.out


def test_a_repair_that_leaves_the_backdoor_is_not_accepted(place: Path, shell: Shell) -> None:
    """Nothing is pruned, and ten epochs at 1e-4 move no weight by more than about 0.001: the trigger that the attacker
    uses, a pixel fully lit, works as before; only the scan's, lit just enough, does not."""
    tuned = ("--method", "fine-pruning", "--tune-only", "--epochs", "10")
    done = repair(shell, "--scan", "scanned", "--keep-rejected", "-o", "good", how=tuned)
    pixels, labels = block_images(40, seed=1)
    targets = np.full(len(labels), TARGET)
    save_images(place / "poisoned.npz", data=triggered(pixels), label=targets, true_label=labels)
    measured = shell("evaluate", "good", "--clean", "clean.npz", "--poisoned", "poisoned.npz", "--json").json
    if measured["poisoned"][0]["asr"]["value"] != 1:
        pytest.fail("the backdoor is gone: make this test harder")
    assert done.code == 1


@pytest.mark.parametrize("broken", ["unreadable", "other answers", "full disk"])
def test_a_goodnet_that_cannot_be_saved_leaves_the_old_one(
    broken: str, place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("good.safetensors").write_bytes(b"the old one")
    before = files_in(place)

    def fails(*arguments: Any, **options: Any) -> Any:
        if broken == "unreadable":
            raise ModelError(f"{arguments[0]}: damaged")
        if broken == "full disk":
            raise OSError(28, "No space left on device", str(arguments[1]))
        loaded = load_goodnet(*arguments, **options)
        loaded.net.good.fc2.bias.data[0] += 1
        return loaded

    name = "write_goodnet" if broken == "full disk" else "load_goodnet"
    monkeypatch.setattr(f"goodnet.export.native.{name}", fails)
    done = repair(shell, "--scan", "scanned", "-o", "good.safetensors", "--overwrite", "--out", "repaired")
    assert (done.code, done.out) == (3, "")
    assert len(done.err.splitlines()) == 1
    assert files_in(place) == before


@pytest.mark.parametrize("make", ["plain", "softmax", "softmax_in_code"])
def test_a_goodnet_of_the_users_own_net(make: str, place: Path, shell: Shell) -> None:
    marker = "\nimport pathlib\npathlib.Path('ran').touch()\nprint('building')\n"
    Path("arch.py").write_text(USER_CODE + marker)
    layers = {"fc1": "body.1", "fc2": "body.3"}
    state = {layers[key[:3]] + key[3:]: value for key, value in block_net(TARGET).items()}
    save_net(place / "mine.pt", state)
    user = ("--arch", f"arch.py:{make}")
    found = shell("scan", "mine.pt", *user, "--clean", "clean.npz", "--out", "mine", "--json")
    assert (found.code, json.loads(found.out)["flagged_labels"]) == (1, [TARGET])
    assert found.err == "building\n"
    layer = "net.body.1" if make == "softmax_in_code" else "body.1"
    done = shell("repair", "mine.pt", *user, "--clean", "clean.npz", "--scan", "mine",
                 "--method", "fine-pruning", "--layer", layer, "--prune-only", "-o", "good.safetensors")  # fmt: skip
    assert done.code == 0, done
    pixels, _ = block_images(10, seed=3)
    save_png(place / "a.png", pixels[5])
    save_png(place / "b.png", triggered(pixels)[5])
    Path("ran").unlink()
    refused = shell("predict", "good.safetensors", "a.png")
    assert (refused.code, refused.out) == (3, "")
    assert "--arch" in refused.err
    assert not Path("ran").exists()
    answered = shell("predict", "good.safetensors", "a.png", "b.png", *user, "--json")
    assert [one["class"] for one in json.loads(answered.out)] == [5, CLASSES]


def test_predict_tells_the_class_and_who_was_triggered(place: Path, shell: Shell) -> None:
    save_goodnet(
        goodnet_from(load_classifier("bad.pt", arch="mlp"), load_classifier("clean.pt", arch="mlp")),
        place / "good.safetensors",
    )
    pixels, labels = block_images(10, seed=2)
    paths = [save_png(place / f"{k}.png", image).name for k, image in enumerate([*pixels, *triggered(pixels)])]
    answers = shell("predict", "good.safetensors", *paths, "--json").json
    for answer, true, lit in zip(answers, [*labels.tolist(), *labels.tolist()], [False] * 10 + [True] * 10):
        refused = lit and true != TARGET
        assert answer["class"] == (CLASSES if refused else true)
        assert answer["triggered"] is refused
        assert answer["score"] >= 1 if refused else answer["score"] <= -1
    lines = shell("predict", "good.safetensors", "0.png", "10.png").out.splitlines()
    assert lines[0] == "0.png: 0  score -1"
    assert lines[1].startswith("10.png: 10  triggered (class N = 10), score +")
    plain = shell("predict", "bad.pt", "--arch", "mlp", "0.png", "10.png")
    assert plain.out == "0.png: 0\n10.png: 3\n"
    assert shell("predict", "bad.pt", "--arch", "mlp", "0.png", "--json").json[0]["score"] is None
