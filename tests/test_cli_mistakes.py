"""Every wrong input: exit code 3, one line that says what to do, nothing on stdout, and no file written or changed."""

from __future__ import annotations

import gzip
import os
import pickle
import shlex
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cli_support import (
    TARGET,
    USER_CODE,
    Shell,
    block_images,
    block_net,
    files_in,
    save_images,
    save_net,
    save_png,
    triggered,
)
from goodnet.cli import run

SCAN = "scan net.pt --arch mlp --clean clean.npz"
BARE = "repair net.pt --method fine-pruning --arch mlp --clean clean.npz"
REPAIR = f"{BARE} --layer fc1 --prune-only"
EVALUATE = "evaluate net.pt --arch mlp --clean clean.npz"
RAISED = "canary"

CASES: dict[str, tuple[str, str]] = {
    # the model's file
    "model missing": ("scan nowhere.pt --clean clean.npz", "No such file"),
    "model is a folder": ("scan folder --clean clean.npz", "a folder without config.json"),
    "model is a text": ("scan text.txt --clean clean.npz --arch mlp", "its bytes are none"),
    "model is empty": ("scan empty.pt --clean clean.npz --arch mlp", "an empty file"),
    "model is a web page": ("scan page.h5 --clean clean.npz --arch mlp", "expected a net, got a web page"),
    "model is a Git LFS pointer": ("scan pointer.pt --clean clean.npz --arch mlp", "git lfs pull"),
    "model is packed": ("scan net.tar.gz --clean clean.npz --arch mlp", "unpack it"),
    "picture and net swapped": ("predict a.png good.safetensors", "expected a net, got a single picture"),
    "model is the data, HDF5": ("scan data.h5 --clean clean.npz --arch mlp", "'label'; is it the data, not the net"),
    "model is the data": ("scan clean.npz --clean clean.npz --arch mlp", "clean.npz"),
    "truncated pt": ("scan cut.pt --clean clean.npz --arch mlp", "cut.pt"),
    "truncated h5": ("scan cut.h5 --clean clean.npz --arch mlp", "cut off: "),
    "truncated safetensors": ("scan cut.safetensors --clean clean.npz --arch mlp", "cut.safetensors"),
    "pickle with code": ("scan code.pt --clean clean.npz --arch mlp", "run code"),
    "pickle with code, predict": ("predict code.pt a.png", "run code"),
    "NaN weights": ("scan nan.pt --clean clean.npz --arch mlp", "NaN"),
    "a GoodNet is scanned": ("scan good.safetensors --clean clean.npz", "got a GoodNet"),
    "a GoodNet is repaired": ("repair good.safetensors --method fine-pruning --clean clean.npz", "repaired already"),
    # which net it is
    "h5 weights without arch": ("scan weights.h5 --clean clean.npz", "--arch"),
    "pt weights without arch": ("scan net.pt --clean clean.npz", "--arch; its weights look like mlp"),
    "unknown arch": ("scan net.pt --arch resnet9000 --clean clean.npz", "deepid"),
    "arch that does not fit": ("scan net.pt --arch deepid --clean clean.npz", "look like mlp"),
    "user file missing": ("scan user.pt --arch nowhere.py:plain --clean clean.npz", "no file"),
    "user callable missing": ("scan user.pt --arch arch.py:nothing --clean clean.npz", "it has"),
    "user callable raises": ("scan user.pt --arch arch.py:failing --clean clean.npz", "no such dataset at all"),
    "user callable exits": ("scan user.pt --arch arch.py:leaving --clean clean.npz", "ended the program"),
    "user callable gives no net": ("scan user.pt --arch arch.py:no_module --clean clean.npz", "Module"),
    "user code does not fit": ("scan net.pt --arch arch.py:plain --clean clean.npz", "do not fit"),
    "classes that are others": (f"{SCAN} --classes 7", "10 classes"),
    "input shape malformed": (f"{SCAN} --input-shape 28x28", "3,55,47"),
    "input shape of two": (f"{SCAN} --input-shape 28,28", "3,55,47"),
    "input shape that does not fit": (f"{SCAN} --input-shape 1,20,20", "another shape"),
    "input shape, inspect": ("inspect net.pt --arch mlp --input-shape 1,2", "3,55,47"),
    "mean of wrong length": (f"{SCAN} --mean 0.1,0.2", "1 or 1 numbers"),
    "mean no number": (f"{SCAN} --mean black", "0.48,0.45,0.41"),
    "mean not finite": (f"{SCAN} --mean nan", "finite"),
    "std 0": (f"{SCAN} --std 0", "above 0"),
    "input range nonsense": (f"{SCAN} --input-range 0..7", "0..255"),
    "no CUDA": (f"{SCAN} --device cuda", "--device cpu"),
    "no such device": (f"{SCAN} --device tpu", "cuda"),
    # clean images
    "data missing": ("scan net.pt --arch mlp --clean nowhere.npz", "nothing there"),
    "data not named": ("scan net.pt --arch mlp", "--clean"),
    "data empty": ("scan net.pt --arch mlp --clean none.npz", "at least one image"),
    "folder without images": ("scan net.pt --arch mlp --clean folder", "got none"),
    "data is the net": ("scan net.pt --arch mlp --clean net.pt", "expected images under"),
    "data is a text": ("scan net.pt --arch mlp --clean text.txt", "another format"),
    "data is a web page": ("scan net.pt --arch mlp --clean page.h5", "folder of PNG or JPEG, got a web page"),
    "data is empty": ("scan net.pt --arch mlp --clean empty.pt", "an empty file"),
    "truncated h5 of images": ("scan net.pt --arch mlp --clean cut.h5", "cut off: "),
    "truncated npz": ("scan net.pt --arch mlp --clean cut.npz", "cut.npz"),
    "wrong shape": ("scan net.pt --arch mlp --clean small.npz", "1x28x28"),
    "three axes": ("scan net.pt --arch mlp --clean flat.npz", "(N, C, H, W)"),
    "labels out of range": ("scan net.pt --arch mlp --clean labels.npz", "below 10"),
    "NaN pixels": ("scan net.pt --arch mlp --clean nan.npz", "finite"),
    "floats without range": ("scan net.pt --arch mlp --clean floats.npz", "--data-range 0..255"),
    "one image": ("scan net.pt --arch mlp --clean one.npz --no-preflight", "at least 3 images"),
    "one image, repair": ("repair net.pt --method clp --arch mlp --clean one.npz", "at least 3 images"),
    "one class alone": ("scan net.pt --arch mlp --clean same.npz --no-preflight", "other classes"),
    "fed the wrong way": ("scan net255.pt --arch mlp --clean clean.npz", "pass --input-range 0..255"),
    # scan's own
    "labels malformed": (f"{SCAN} --labels 1,x", "0,5,10-20"),
    "labels backwards": (f"{SCAN} --labels 7-3", "0,5,10-20"),
    "labels out of the net's": (f"{SCAN} --labels 3,10", "labels 0..9"),
    "false alarm rate of 0": (f"{SCAN} --false-alarm-rate 0", "(0, 1]"),
    "false alarm rate of 2": (f"{SCAN} --false-alarm-rate 2", "(0, 1]"),
    "false alarm rate of NaN": (f"{SCAN} --false-alarm-rate nan", "(0, 1]"),
    "block of 0": (f"{SCAN} --block 0", "--block"),
    "block for gangsweep": (f"{SCAN} --block 8 --method gangsweep", "--block: expected with --method staged"),
    "memory of no unit": (f"{SCAN} --memory 2", "as 2GiB or 800MB"),
    "memory of nothing": (f"{SCAN} --memory 0GiB", "from 1MiB to 1PiB"),
    "memory for gangsweep": (f"{SCAN} --memory 2GiB --method gangsweep", "--memory: expected with --method staged"),
    "unknown precision": (f"{SCAN} --precision float16", "bfloat16"),
    "precision for gangsweep": (f"{SCAN} --precision bfloat16 --method gangsweep", "--precision: expected with"),
    "time limit of 0": (f"{SCAN} --time-limit 0", "--time-limit"),
    "time limit of NaN": (f"{SCAN} --time-limit nan", "time limit"),
    "time limit for gangsweep": (f"{SCAN} --time-limit 60 --method gangsweep", "--time-limit: expected with"),
    "plan for labels out of the net's": (f"{SCAN} --plan --labels 10", "labels 0..9"),
    "seed below 0": (f"{SCAN} --seed -1", "--seed"),
    "out is a file": (f"{SCAN} --out text.txt", "expected a folder"),
    "out is below a file": (f"{SCAN} --out text.txt/below/it", "text.txt is a file"),
    "out has a scan": (f"{SCAN} --out scanned", "--overwrite"),
    # repair
    "unknown layer": ("repair net.pt --method fine-pruning --arch mlp --clean clean.npz --layer fc9", "fc1, fc2"),
    "no convolution": ("repair net.pt --method fine-pruning --arch mlp --clean clean.npz", "--layer"),
    "unknown method": (f"{REPAIR} --method prayer", "fine-pruning"),
    "goodnet exists": (f"{REPAIR} -o text.txt", "--overwrite"),
    "goodnet is a folder": (f"{REPAIR} -o folder", "expected a file name"),
    "goodnet in no folder": (f"{REPAIR} -o nowhere/good.safetensors", "make it first"),
    "goodnet over the net": (f"{REPAIR} -o ./net.pt --overwrite", "expected another file"),
    "repair exists": (f"{REPAIR} --out repaired", "--overwrite"),
    "scan of another net": (f"{REPAIR} --scan otherscan", "a scan of this net"),
    "scan folder missing": (f"{REPAIR} --scan nowhere", "No such file"),
    "no record of a scan": (f"{REPAIR} --scan notscan", "a scan's record"),
    "scan without its triggers": (f"{REPAIR} --scan lost", "triggers.npz"),
    "triggers damaged": (f"{REPAIR} --scan damaged", "triggers.npz"),
    "triggers of another shape": (f"{REPAIR} --scan misshapen", "scan again"),
    "accuracy drop below 0": (f"{REPAIR} --max-accuracy-drop -0.1", "--max-accuracy-drop"),
    "ASR limit below 0": (f"{REPAIR} --max-asr -1", "--max-asr"),
    "detection limit over 1": (f"{REPAIR} --min-detection 1.5", "--min-detection"),
    "FPR limit of NaN": (f"{REPAIR} --max-fpr nan", "--max-fpr"),
    "learning rate of 0": (f"{REPAIR} --learning-rate 0", "learning_rate > 0"),
    "learning rate of NaN": (f"{REPAIR} --learning-rate nan", "learning_rate > 0"),
    "epochs below 0": ("repair net.pt --method fine-pruning --arch mlp --clean clean.npz --epochs -1", "--epochs"),
    "epochs of 0": ("repair net.pt --method fine-pruning --arch mlp --clean clean.npz --epochs 0", "--epochs"),
    "prune only and tune only": (f"{REPAIR} --tune-only", "got both"),
    "pruning's option for unlearning": (f"{REPAIR} --method nc-unlearn", "--layer: expected with --method"),
    "a layer for clp": (f"{REPAIR} --method clp", "--layer: expected with --method fine-pruning, nc-prune"),
    "rounds of rnp": (f"{BARE} --method rnp --rounds 2", "--rounds: expected 1"),
    "unlearning's option for pruning": (f"{REPAIR} --teach labels", "--teach: expected with"),
    "nothing to unlearn": (f"{BARE} --method nc-unlearn", "--scan"),
    "nothing to filter": (f"{BARE} --method nc-filter", "--scan"),
    "nothing to prune by": (f"{BARE} --method nc-prune", "--scan"),
    "nothing to sweep": (f"{BARE} --method gangsweep", "--scan"),
    "class N for unlearning": (f"{BARE} --method nc-unlearn --teach class-n", "logits or labels"),
    "no poison to learn from": (f"{BARE} --method retrain", "--poisoned"),
    "poison without targets": (f"{BARE} --method retrain --poisoned unlabelled.npz", "attacker's targets"),
    "guard without a scan": (f"{BARE} --method rnp --guard watch", "--guard watch: expected labels"),
    "watch without a scan": (f"{BARE} --method watch", "--method watch: expected labels"),
    "unlearn without a scan": (f"{BARE} --method unlearn", "--method unlearn: expected labels"),
    "auto decides by itself": (f"{BARE} --method auto --epochs 3", "--epochs: expected with a --method of your own"),
    "guard for auto": (f"{BARE} --method auto --guard watch", "--guard: expected with a --method of your own"),
    "time limit of 0 for auto": (f"{BARE} --method auto --time-limit 0", "--time-limit"),
    "surrogate of another shape": (f"{BARE} --method clp --surrogate small.npz", "1x28x28"),
    "surrogate that is not there": (f"{BARE} --surrogate nowhere.npz", "nowhere.npz"),
    "poison of another shape": (f"{BARE} --method retrain --poisoned small.npz", "1x28x28"),
    "poison is missing": (f"{BARE} --method retrain --poisoned nowhere.npz", "nothing there"),
    "too little poison": (f"{BARE} --method retrain --poisoned one.npz", "at least 3 images"),
    "rounds of fine-pruning": (f"{REPAIR} --rounds 2", "--rounds: expected 1"),
    "rounds of 0": (f"{REPAIR} --rounds 0", "--rounds"),
    "a scan and triggers": (f"{REPAIR} --scan scanned --triggers scanned/triggers.npz", "got both"),
    "triggers missing": (f"{BARE} --method nc-filter --triggers nowhere.npz", "expected triggers"),
    "triggers are a folder": (f"{BARE} --method nc-filter --triggers scanned", "pass the file, or --scan"),
    "triggers of a scan that flagged nothing": (f"{BARE} --method nc-filter --triggers unflagged.npz", "flagged none"),
    "triggers are images": (f"{BARE} --method nc-filter --triggers clean.npz", "expected triggers"),
    # bench
    "no data to bench with": ("bench csaw --data nowhere", "--data"),
    "benchmark unknown": ("bench speed", "No such command"),
    "bench of an unknown net": ("bench csaw --net mine", "sunglasses"),
    # evaluate
    "before has other classes": ("evaluate net.pt --arch mlp --clean clean.npz --before five.pt", "10 classes"),
    "poisoned without labels": (f"{EVALUATE} --poisoned unlabelled.npz", "attacker's targets"),
    "poisoned of another shape": (f"{EVALUATE} --poisoned small.npz", "1x28x28"),
    "poisoned missing": (f"{EVALUATE} --poisoned nowhere.npz", "nothing there"),
    "evaluation exists": (f"{EVALUATE} --out notes", "--overwrite"),
    # predict
    "picture of wrong size": ("predict good.safetensors a.png small.png", "28x28"),
    "picture of 16 bits": ("predict good.safetensors deep.png", "8 bits"),
    "no picture": ("predict good.safetensors text.txt", "PNG or JPEG"),
    "picture missing": ("predict good.safetensors nowhere.png", "nothing there"),
    "picture not named": ("predict good.safetensors", "IMAGES"),
    "GoodNet cut short": ("predict cut.safetensors a.png", "cut.safetensors"),
    # report, inspect, and what is no command
    "report without records": ("report folder", "found none"),
    "report of a damaged record": ("report broken", "scan.json"),
    "report nowhere": ("report nowhere", "no such folder"),
    "inspect nothing": ("inspect nowhere.pt", "No such file"),
    "inspect user code": ("inspect net.pt --arch arch.py:plain", "runs nothing"),
    "unknown command": ("sacn net.pt", "sacn"),
    "unknown option": (f"{SCAN} --bogus", "--bogus"),
    "argument missing": ("scan --clean clean.npz", "MODEL"),
    "two nets": (f"{SCAN} good.pt", "good.pt"),
}  # fmt: skip


class Bomb:
    """A pickle that makes a file when it is loaded with the ordinary unpickler."""

    def __reduce__(self) -> Any:
        return os.mkdir, (RAISED,)


@pytest.fixture(scope="module")
def place(short_scans: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every right and wrong input of the cases above."""
    folder = tmp_path_factory.mktemp("mistakes")
    _nets(folder)
    _images(folder)
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("hello\n")
    (folder / "arch.py").write_text(USER_CODE)
    pixels, _ = block_images(1)
    save_png(folder / "a.png", pixels[0])
    save_png(folder / "small.png", pixels[0, :, :20])
    save_png(folder / "deep.png", pixels[0].astype(np.uint16) * 257)
    before = os.getcwd()
    os.chdir(folder)
    try:
        _records()
    finally:
        os.chdir(before)
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-100])
    return folder


def _nets(folder: Path) -> None:
    net = save_net(folder / "net.pt", block_net(TARGET))
    save_net(folder / "clean.pt", block_net())
    wider = {key: torch.randn(value.shape) for key, value in block_net(hidden=12).items()}
    save_net(folder / "user.pt", wider)
    save_net(folder / "nan.pt", {**block_net(), "fc2.bias": torch.full((10,), torch.nan)})
    # what a block holds, 40..230 of 255, passes the bias only where the net is fed 0..255
    save_net(folder / "net255.pt", {**block_net(), "fc1.bias": torch.full((11,), -60.0)})
    save_net(folder / "five.pt", {**block_net(), "fc2.weight": torch.ones(5, 11), "fc2.bias": torch.zeros(5)})
    (folder / "cut.pt").write_bytes(net.read_bytes()[:-2000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "page.h5").write_text("\n<!DOCTYPE html>\n<html><body>Not found</body></html>\n")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (folder / "net.tar.gz").write_bytes(gzip.compress(net.read_bytes()))
    with (folder / "code.pt").open("wb") as file:
        pickle.dump({"fc1.weight": Bomb()}, file)
    with h5py.File(folder / "weights.h5", "w") as weights:
        weights["dense/dense/kernel:0"] = np.ones((784, 10), np.float32)
        weights["dense/dense/bias:0"] = np.ones(10, np.float32)
    (folder / "cut.h5").write_bytes((folder / "weights.h5").read_bytes()[:-3000])


def _images(folder: Path) -> None:
    pixels, labels = block_images()
    save_images(folder / "clean.npz", data=pixels, label=labels)
    with h5py.File(folder / "data.h5", "w") as images:
        images["data"], images["label"] = pixels, labels
    save_images(folder / "unlabelled.npz", data=triggered(pixels))
    save_images(folder / "none.npz", data=pixels[:0], label=labels[:0])
    save_images(folder / "small.npz", data=pixels[:, :, :20], label=labels)
    save_images(folder / "flat.npz", data=pixels[:, 0], label=labels)
    save_images(folder / "labels.npz", data=pixels, label=labels + 3)
    save_images(folder / "one.npz", data=pixels[:1], label=labels[:1])
    same = np.flatnonzero(labels == TARGET)
    save_images(folder / "same.npz", data=pixels[same], label=labels[same])
    floats = pixels.astype(np.float32)
    save_images(folder / "floats.npz", data=floats, label=labels)
    floats[0, 0, 0, 0] = np.nan
    save_images(folder / "nan.npz", data=floats, label=labels)
    (folder / "cut.npz").write_bytes((folder / "clean.npz").read_bytes()[:-500])


def _records() -> None:
    """A scan, a repair and an evaluation, whatever they say, and what may have become of their records."""
    for command in (
        f"{SCAN} --out scanned",
        f"{SCAN.replace('net.pt', 'clean.pt')} --out otherscan",
        f"{REPAIR} --scan scanned --keep-rejected --out repaired -o good.safetensors",
        f"{EVALUATE} --out notes",
    ):
        assert run(shlex.split(command)) in (0, 1, 2)
    Path("notscan").mkdir()
    shutil.copy("notes/evaluate.json", "notscan/scan.json")
    for name in ("lost", "damaged", "misshapen", "broken"):
        Path(name).mkdir()
        shutil.copy("scanned/scan.json", f"{name}/scan.json")
    whole = Path("scanned/triggers.npz").read_bytes()
    Path("damaged/triggers.npz").write_bytes(whole[: len(whole) // 2])
    mask, pattern = np.ones((1, 1, 20, 28), np.float32), np.ones((1, 1, 20, 28), np.float32)
    np.savez("misshapen/triggers.npz", labels=np.array([TARGET]), masks=mask, patterns=pattern,
             flagged=np.array([True]))  # fmt: skip
    np.savez("unflagged.npz", labels=np.array([TARGET]), masks=np.ones((1, 1, 28, 28), np.float32),
             patterns=np.ones((1, 1, 28, 28), np.float32), flagged=np.array([False]))  # fmt: skip
    Path("broken/scan.json").write_text(Path("scanned/scan.json").read_text()[:-200])


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = CASES[name]
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(place)
    before = files_in(place)
    outcome = Shell(capsys)(*shlex.split(command))
    assert outcome.code == 3, outcome
    assert outcome.out == ""
    assert outcome.err.endswith("\n")
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("goodnet: ")
    assert expected in lines[0]
    assert ".part" not in lines[0]
    assert files_in(place) == before
    assert RAISED not in before
