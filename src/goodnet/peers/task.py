"""What a program is given and what it gives back: in memory for its adapter, as files between the processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from goodnet import strict_json
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import DataError
from goodnet.models.arch import build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.surgery import clone
from goodnet.models.weights import write_tensors
from goodnet.outputs import replacing
from goodnet.progress import Progress, silent
from goodnet.record import VERDICTS

_NET, _CLEAN, _SURROGATE, _ASKED, _MIXED = "net.safetensors", "clean.npz", "surrogate.npz", "asked.npz", "mixed.npz"
_TASK, _SAID, _ANSWERS, _BEGUN, _PROGRESS = "task.json", "said.json", "answers.npz", "begun.json", "progress.json"
_COLUMNS = {"data": "pixels", "label": "labels", "group": "groups"}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a program says of a net.

    Attributes:
        verdict: `suspect`, `clean` or `inconclusive`; None of a program that gives none.
        flagged: labels; None of a program that flags none by design.
        answers: by the name of a repair or guard, its classes (N,) for the images asked about; the number of classes
            for a refused one.
        guards: names of those that can refuse.
        pointed_at: (N,) of the mixed images, True where the program takes one for poisoned; None without.
        note: what a reader has to know.
    """

    verdict: str | None = None
    flagged: tuple[int, ...] | None = None
    answers: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    pointed_at: npt.NDArray[np.bool_] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A net for a program to look at.

    Attributes:
        net: the net as it came.
        clean: the defender's labelled images; `surrogate`: pictures of the same kind, of other classes, or None.
        asked: images without labels, to be answered by what the program makes of the net.
        mixed: for filters of training data: the clean images with some poisoned ones among them, labelled with the
            target, as an attacker would have slipped them in; None where there are none.
        seed: of all that is random.
        patched: run the program as it is after the small repair that its entry in `registry.PEERS` tells of.
        progress: told of labels done.
        tell: told what the program says so far, for the case that it is ended before it comes to more.
    """

    net: Classifier
    clean: Images
    surrogate: Images | None
    asked: Images
    mixed: Images | None
    seed: int
    patched: bool
    progress: Progress = silent
    tell: Callable[[Said], None] = lambda said: None

    @property
    def module(self) -> nn.Module:
        """A copy of the net that takes images in [0, 1] and may be trained."""
        return Whole(clone(self.net)).requires_grad_(True).eval()

    @property
    def labels(self) -> Tensor:
        """(N,) of the clean images."""
        assert self.clean.labels is not None
        return torch.from_numpy(self.clean.labels)

    def answers(self, module: nn.Module) -> npt.NDArray[np.int64]:
        """(N,) a module's classes for the images that are asked about."""
        module.eval()
        with torch.no_grad():
            parts = [module(part).argmax(1) for part in torch.split(self.asked.tensor(), 256)]
        return torch.cat(parts).numpy()


class Whole(nn.Module):
    """A Classifier as a module, what it does to its input included."""

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = net.net
        self._prepare = net.prepare

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self._prepare(x))
        return out


@dataclass(frozen=True, kw_only=True)
class _SaidFile:
    verdict: str | None
    flagged: tuple[int, ...] | None
    note: str
    guards: tuple[str, ...] = ()
    error: str = ""
    format: str = "goodnet.peer-said/1"


def write_task(folder: Path, task: Task, peer: str) -> None:
    """Puts a task into `folder`, which is there."""
    write_tensors(task.net.net.state_dict(), folder / _NET)
    sets = {
        _CLEAN: task.clean,
        _SURROGATE: task.surrogate,
        _ASKED: replace(task.asked, labels=None),
        _MIXED: task.mixed,
    }
    for name, images in sets.items():
        (folder / name).unlink(missing_ok=True)
        if images is not None:
            columns = {column: getattr(images, field) for column, field in _COLUMNS.items()}
            np.savez(folder / name, **{key: value for key, value in columns.items() if value is not None})
    for name in (_SAID, _ANSWERS, _BEGUN, _PROGRESS):
        (folder / name).unlink(missing_ok=True)
    net = task.net
    plain = {
        "peer": peer, "seed": task.seed, "patched": task.patched, "classes": net.classes, "name": net.name,
        "arch": net.recipe.arch, "options": dict(net.recipe.options), "input": asdict(net.input),
    }  # fmt: skip
    _write(folder / _TASK, plain)


def read_task(folder: Path) -> tuple[str, Task]:
    """The program's name and its task."""
    plain: dict[str, Any] = json.loads((folder / _TASK).read_text(encoding="utf-8"))
    recipe = Recipe(arch=plain["arch"], options=plain["options"])
    module = build(recipe)
    module.load_state_dict(load_file(folder / _NET))
    given = plain["input"]
    spec = InputSpec(**{**given, "mean": tuple(given["mean"]), "std": tuple(given["std"])})
    net = Classifier(net=module, input=spec, classes=plain["classes"], recipe=recipe, name=plain["name"])
    sets = [read_images(folder / name) if (folder / name).is_file() else None
            for name in (_CLEAN, _SURROGATE, _ASKED, _MIXED)]  # fmt: skip
    clean, surrogate, asked, mixed = sets
    assert clean is not None
    assert asked is not None
    task = Task(
        net=net, clean=clean, surrogate=surrogate, asked=asked, mixed=mixed, seed=plain["seed"],
        patched=plain["patched"], progress=lambda stage, done, total: _tell(folder, stage, done, total),
        tell=lambda said: write_said(folder, said),
    )  # fmt: skip
    return plain["peer"], task


def write_begun(folder: Path, version: str) -> None:
    """Says which version runs, before it does."""
    _write(folder / _BEGUN, {"version": version})


def read_begun(folder: Path) -> str:
    """The version that has begun; empty where none has said so."""
    version = _read(folder / _BEGUN).get("version")
    return version if isinstance(version, str) else ""


def read_progress(folder: Path) -> tuple[int, int] | None:
    """Labels done and labels in all, where the program has told."""
    told = _read(folder / _PROGRESS)
    done, total = told.get("done"), told.get("total")
    return (done, total) if isinstance(done, int) and isinstance(total, int) and 0 <= done <= total else None


def write_said(folder: Path, said: Said) -> None:
    """Leaves what the program said."""
    arrays: dict[str, Any] = {f"net: {name}": answers for name, answers in said.answers.items()}
    if said.pointed_at is not None:
        arrays["pointed at"] = said.pointed_at
    np.savez(folder / _ANSWERS, **arrays)
    _write_said(folder, _SaidFile(verdict=said.verdict, flagged=said.flagged, note=said.note, guards=said.guards))


def write_failed(folder: Path, error: str) -> None:
    """Leaves why the program failed."""
    _write_said(folder, _SaidFile(verdict=None, flagged=None, note="", error=error))


def read_said(folder: Path, task: Task) -> Said | str:
    """What the program said, or why it failed.

    Raises:
        DataError: it has said nothing, or nothing that is an answer to the task.
    """
    told: _SaidFile = strict_json.read(folder / _SAID, {"goodnet.peer-said/1": _SaidFile})
    if told.error:
        return told.error
    try:
        with np.load(folder / _ANSWERS, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"its answers cannot be read ({error})") from error
    pointed = given.pop("pointed at", None)
    said = Said(verdict=told.verdict, flagged=told.flagged, note=told.note, guards=told.guards, pointed_at=pointed,
                answers={name.removeprefix("net: "): array for name, array in given.items()})  # fmt: skip
    _check(said, task)
    return said


def _check(said: Said, task: Task) -> None:
    """Raises DataError where it is no answer to the task."""
    classes = task.net.classes
    if said.verdict not in (None, *VERDICTS):
        raise DataError(f"its verdict is {said.verdict!r}, which is none of {', '.join(VERDICTS)}")
    if not all(0 <= label < classes for label in said.flagged or ()):
        raise DataError(f"it flags {said.flagged}, and the net has {classes} classes")
    for name, answers in said.answers.items():
        if answers.shape != (len(task.asked),) or answers.dtype.kind not in "iu":
            raise DataError(f"{name}: expected {len(task.asked)} whole numbers, got {answers.dtype} {answers.shape}")
        most = classes if name in said.guards else classes - 1
        if len(answers) and not 0 <= answers.min() <= answers.max() <= most:
            raise DataError(
                f"{name}: answers from {answers.min()} to {answers.max()}, and the net has {classes} classes"
            )
    pointed = said.pointed_at
    wanted = None if task.mixed is None else (len(task.mixed),)
    if pointed is not None and (pointed.shape != wanted or pointed.dtype != np.bool_):
        raise DataError(
            f"expected True or False of {wanted} images of the mixed set, got {pointed.dtype} {pointed.shape}"
        )


def _tell(folder: Path, stage: str, done: int, total: int) -> None:
    _write(folder / _PROGRESS, {"stage": stage, "done": done, "total": total})


def _write_said(folder: Path, said: _SaidFile) -> None:
    strict_json.write_record(said, folder / _SAID)


def _write(path: Path, plain: Mapping[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(plain), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}
