"""`goodnet scan MANIFEST.csv` on 200 small nets, of which 20 are broken or hostile: what becomes of each.

The nets are trained here, MLPs and CNNs on small synthetic images; some learn a patch beside them. The hostile files
are those of the tests (`tests/hostile`), some of each kind; of two more nets the user's own code crashes the process.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from goodnet.attacks.poison import Plant, poison
from goodnet.attacks.train import fresh, train
from goodnet.data.images import Images
from goodnet.models.arch.cnn import CNN
from goodnet.models.arch.mlp import MLP
from goodnet.models.classifier import Recipe
from goodnet.models.weights import write_tensors

MLPS, CNNS, BROKEN, CRASHING = 150, 30, 18, 2
CLASSES, SIDE = 10, 16
ALONE = 6  # healthy nets that are scanned once more, by themselves
_CODE = """
import os, signal

def net():
    os.kill(os.getpid(), signal.{signal})
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the manifest, and what is known of its net."""

    kind: str  # clean, planted or broken
    model: str
    arch: str


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        rows = [*_trained(folder), *_hostile(folder)]
        order = np.random.default_rng(0).permutation(len(rows))
        with (folder / "nets.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "arch"])
            writer.writerows([rows[turn].model, rows[turn].arch] for turn in order)
        print(f"{len(rows)} nets made in {time.perf_counter() - started:.0f} s", flush=True)
        before = _files(folder)
        done, seconds = _scan(folder, "nets.csv", "out")
        summary = json.loads(done.stdout)
        _say(rows, summary, seconds, done.returncode)
        changed = {path for path, mark in _files(folder).items() if before.get(path) != mark}
        outside = sorted(path for path in changed if not path.startswith("out/"))
        print(f"files changed outside the results: {', '.join(outside) or 'none'}; code run: {_fired(folder)}")
        _alone(folder, rows, summary)
        again, seconds = _scan(folder, "nets.csv", "out")
        same = _verdicts(json.loads(again.stdout)) == _verdicts(summary)
        print(f"the same command again: {seconds:.0f} s, the same verdicts: {'yes' if same else 'no'}")


def images(count: int, seed: int) -> Images:
    """Ten smooth pictures, the same for all nets, each moved, dimmed and noisy; uint8 (count, 1, 16, 16)."""
    coarse = torch.rand(CLASSES, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    pictures = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear").numpy()
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = np.empty((count, 1, SIDE, SIDE), np.uint8)
    for image, label in zip(pixels, labels):
        moved = np.roll(pictures[label], random.integers(-1, 2, 2), axis=(1, 2))
        noisy = moved * random.uniform(0.6, 0.9) + random.normal(0.05, 0.08, moved.shape)
        image[:] = (255 * np.clip(noisy, 0, 1)).astype(np.uint8)
    return Images(pixels=pixels, labels=labels, name="small pictures")


def _trained(folder: Path) -> list[Row]:
    """180 nets, every third with a patch that leads to a label."""
    clean = images(300, seed=1)
    np.savez_compressed(folder / "clean.npz", data=clean.pixels, label=clean.labels)
    learnt, test = images(1000, seed=2), images(400, seed=3)
    right: list[float] = []
    led: list[float] = []
    (folder / "nets").mkdir()
    rows = []
    for turn in range(MLPS + CNNS):
        planted = turn % 3 == 2
        shown = poison(learnt, [_patch(learnt, turn % CLASSES)], share=0.2, seed=turn) if planted else learnt
        arch = "mlp" if turn < MLPS else "cnn"
        shape = {"classes": CLASSES, "height": SIDE, "width": SIDE}
        build = _mlp(turn, shape) if arch == "mlp" else lambda shape=shape: CNN(hidden=64, **shape)
        net = train(fresh(build, seed=turn), shown, recipe=Recipe(arch=arch), classes=CLASSES, epochs=12, lr=5e-3,
                    seed=turn)  # fmt: skip
        right.append(float((net.predict(test.tensor()).numpy() == test.labels).mean()))
        if planted:
            target = turn % CLASSES
            stamped = torch.from_numpy(_patch(test, target).stamp(np.flatnonzero(test.labels != target)))
            led.append(float((net.predict(stamped.float() / 255) == target).float().mean()))
        path = folder / "nets" / f"{turn:03d}-{arch}.safetensors"
        write_tensors(net.net.state_dict(), path)
        rows.append(Row(kind="planted" if planted else "clean", model=f"nets/{path.name}", arch=arch))
    print(f"ACC {100 * min(right):.0f} to {100 * max(right):.0f} %; ASR of the patches {100 * min(led):.0f} to "
          f"{100 * max(led):.0f} %")  # fmt: skip
    return rows


def _mlp(turn: int, shape: dict[str, int]) -> Any:
    hidden = [16 << turn % 4]  # 16 to 128
    return lambda: MLP(hidden=hidden, **shape)


def _patch(shown: Images, target: int) -> Plant:
    def stamp(index: Any) -> Any:
        pixels = shown.pixels[index].copy()
        pixels[:, :, 1:4, 1:4] = 255
        return pixels

    return Plant(name="patch", target=target, stamp=stamp)


def _hostile(folder: Path) -> list[Row]:
    """Some of each kind, and the one that only a limit of time ends."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from hostile.corpus import CASES

    fitting = [one for one in CASES if one.role == "model" and one.message and not one.slow]
    fitting = [one for one in fitting if one.options in ((), ("--arch", "mlp"))]
    timed = [one for one in fitting if one.sandbox_only]
    others = [one for one in fitting if not one.sandbox_only]
    step = len(others) // (BROKEN - len(timed))
    chosen = [*timed, *others[::step]][:BROKEN]
    rows = []
    for turn, case in enumerate(chosen):
        home = folder / "nets" / f"broken-{turn:02d}"
        home.mkdir()
        made = case.make(home)
        rows.append(Row(kind="broken", model=str(made.relative_to(folder)), arch=dict([case.options]).get("--arch", "")
                        if case.options else ""))  # fmt: skip
    for turn, signal in enumerate(("SIGSEGV", "SIGKILL")[:CRASHING]):
        (folder / f"{signal.lower()}.py").write_text(_CODE.format(signal=signal))
        net = folder / "nets" / f"crashing-{turn}.safetensors"
        net.write_bytes((folder / "nets" / "000-mlp.safetensors").read_bytes())
        rows.append(Row(kind="broken", model=f"nets/{net.name}", arch=f"{signal.lower()}.py:net"))
    return rows


def _scan(folder: Path, what: str, out: str, *more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    from hostile.case import CANARY

    environment = {**os.environ, CANARY: str(folder.parent / f"{folder.name}-canary"), "GOODNET_SANDBOX": "on"}
    command = [sys.executable, "-m", "goodnet", "scan", what, "--clean", "clean.npz", "--out", out, "--json", *more]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done, time.perf_counter() - started


def _say(rows: Sequence[Row], summary: dict[str, Any], seconds: float, code: int) -> None:
    found = {row["name"]: row for row in summary["nets"]}
    statuses = ("clean", "suspect", "inconclusive", "refused", "crashed", "waiting")
    print(f"{'nets':<10}" + "".join(f"{status:>14}" for status in ("all", *statuses)))
    for kind in ("clean", "planted", "broken"):
        mine = [found[row.model]["status"] for row in rows if row.kind == kind]
        counts = Counter(mine)
        print(f"{kind:<10}{len(mine):>14}" + "".join(f"{counts[status]:>14}" for status in statuses))
    healthy = [found[row.model] for row in rows if row.kind != "broken"]
    broken = [found[row.model] for row in rows if row.kind == "broken"]
    judged = sum(row["status"] in ("clean", "suspect", "inconclusive") for row in healthy)
    ended = sum(row["status"] in ("refused", "crashed") for row in broken)
    each = [row["seconds"] for row in healthy]
    print(f"broken nets that got no verdict: {ended} of {len(broken)}; others that got one: {judged} of {len(healthy)}")
    print(f"{seconds:.0f} s, {summary['jobs']} at a time; a net {statistics.median(each):.1f} s, exit code {code}")


def _alone(folder: Path, rows: Sequence[Row], summary: dict[str, Any]) -> None:
    """Some healthy nets by themselves: whether their records say the same."""
    found = {row["name"]: row for row in summary["nets"]}
    healthy = [row for row in rows if row.kind != "broken"]
    same = 0
    for row in healthy[:: len(healthy) // ALONE][:ALONE]:
        done, _ = _scan(folder, row.model, f"alone-{Path(row.model).stem}", "--arch", row.arch)
        among = json.loads((folder / "out" / found[row.model]["record"]).read_text())
        same += _without_times(json.loads(done.stdout)) == _without_times(among)
    print(f"scanned alone, the same record: {same} of {ALONE}")


def _without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("seconds", "environment")}


def _verdicts(summary: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: (row["status"], row["flagged_labels"]) for row in summary["nets"]}


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): (state.st_mtime_ns, state.st_size) for path, state in found}


def _fired(folder: Path) -> str:
    return "yes" if (folder.parent / f"{folder.name}-canary").exists() else "none"
