"""Run by test_faults.py: saves what a scan, a repair and a long run keep, and is killed at every step of it.

A warm process forks one child a step, which kills itself with SIGKILL there. After each the folder is looked at: every
file under its own name must be, whole, what was there before or what was to be written. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import goodnet.outputs
import goodnet.repairing
import goodnet.scan
from cli_support import TARGET, block_images, block_net, save_net
from goodnet.data.images import Images
from goodnet.found import Found
from goodnet.keeping import Output, keep
from goodnet.models.load import load_classifier
from goodnet.repair.fine_pruning import FinePruning
from goodnet.work import Work

Save = Callable[[Path], Any]


def dying(at: int, save: Save, folder: Path) -> int:
    """Exit code of a child that dies at its `at`-th step: before a file is on the disk, or once it has its name."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = 0

    def stepping(inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*arguments)

        return step

    goodnet.outputs._to_disk = stepping(goodnet.outputs._to_disk)
    try:
        save(folder)
        os._exit(0)
    finally:
        os._exit(1)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def killed(save: Save, folder: Path) -> dict[str, Any]:
    """Kills `save` at every step, over files that say `old`. What was found wrong, and how many steps there were."""
    place = folder / "place"  # always the same, for records name it
    place.mkdir(parents=True)
    save(place)
    new, old = hashes(place), hashlib.sha256(b"old").hexdigest()
    shutil.rmtree(place)
    wrong, steps, code = [], 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        steps += 1
        for name in new:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"old")
        code = dying(steps, save, place)
        for name, digest in hashes(place).items():
            if name in new and digest not in (new[name], old):
                wrong.append(f"step {steps}: {name} is neither the old nor the new one")
            if name not in new and not (Path(name).name.startswith(".") and name.endswith(".part")):
                wrong.append(f"step {steps}: {name} is left behind")
        if code == 0 and any(hashes(place)[name] != digest for name, digest in new.items()):
            wrong.append("what was left behind is in the way")
        shutil.rmtree(place)
    return {"wrong": wrong, "steps": steps, "code": code, "files": sorted(new)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    net = load_classifier(save_net(folder / "bad.pt", block_net(TARGET)), arch="mlp", sandbox=False)
    pixels, labels = block_images()
    images = Images(pixels=pixels, labels=labels, name="clean")
    taken: dict[str, Any] = {}
    write, kept = goodnet.scan._write, goodnet.repairing.keep
    goodnet.scan._write = lambda *given: taken.update(scan=given) or write(*given)
    goodnet.repairing.keep = lambda *given: taken.update(repair=given) or kept(*given)
    goodnet.scan.scan(net, images, out=folder / "scan")
    found, _ = Found.in_folder(folder / "scan")
    goodnet.repairing.repair(
        net, images, method=FinePruning(layers=("fc1",), mode="prune"), found=found, output=Output()
    )

    def save_scan(out: Path) -> None:
        write(*taken["scan"][:2], out)

    def save_repair(out: Path) -> None:
        output = Output(goodnet=out / "good.safetensors", folder=out, overwrite=True, keep_rejected=True)
        keep(*taken["repair"][:3], output)

    def save_work(out: Path) -> None:
        work = Work(out)
        work.add("search", 1, {"norm": np.arange(3.0)})
        work._files = 0
        file = out / "000000.npz"
        file.unlink(missing_ok=True)
        work.flush()

    saves = {"scan": save_scan, "repair": save_repair, "work": save_work}
    print(json.dumps({name: killed(save, folder / f"kill-{name}") for name, save in saves.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
