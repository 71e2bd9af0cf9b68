"""The process of one task of one job: scans, repairs or tries a picture, and says on stdout how far it is, a line of
JSON at a time. It ends with the server: stdin is a pipe that nobody but the server holds open."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodnet.errors import DataError, GoodnetError, UsageError, is_out_of_memory
from goodnet.serve.fence import stay_inside
from goodnet.serve.jobs import FORMAT, REPAIR, SCAN, Choices, Job, Place
from goodnet.strict_json import read

PICTURE = "picture"
MISTAKE = 3
_EVERY = 0.1
_SOME = 128  # images that decide the plan's precision


def main(request: Mapping[str, Any], stdin: int = 0) -> None:
    """Does one task. Exits with 0, with 3 for what is the user's to put right, and with 1 for a fault of ours.

    Args:
        request: `task`, `folder` (the job's), `root` (of all jobs), `fenced` (`fence`), and for pictures `picture`, the
            name of a file in the job's folder.
        stdin: the pipe; the process ends when its other end is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's to handle
    place = Place(folder=Path(request["folder"]))
    if request["fenced"]:
        stay_inside(place.folder, kept_from=Path(request["root"]))
    threading.Thread(target=_end_with_server, args=(stdin,), daemon=True).start()
    say = _Lines(os.dup(1))
    os.dup2(2, 1)  # whatever libraries print is not for the server
    job: Job = read(place.job, {FORMAT: Job})
    try:
        if request["task"] == PICTURE:
            say(answer=_picture(place, str(request["picture"])))
        else:
            {SCAN: _scan, REPAIR: _repair}[request["task"]](job, place, say)
    except (GoodnetError, OSError, MemoryError, RuntimeError) as error:
        message = _mistake(error)
        if message is None:
            raise
        say(error=_in_users_words(message, job, place))
        sys.exit(MISTAKE)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with_server(stdin: int) -> None:
    while os.read(stdin, 1024):
        pass
    os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(1)


class _Lines:
    """Writes lines of JSON, of progress at most ten a second."""

    def __init__(self, descriptor: int):
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self._stage, self._spoke = "", 0.0

    def __call__(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._spoke < _EVERY:
            return
        self._stage, self._spoke = stage, now
        self(stage=stage, done=done, total=total)


def _scan(job: Job, place: Place, say: _Lines) -> None:
    from goodnet.planning import plan
    from goodnet.scan import USED, scan
    from goodnet.staged import Staged

    say(stage="reading the files", done=0, total=0)
    classifier, images, command = _load(job, place, say)
    _surrogate(job, place, classifier)  # what a repair could not use is said before minutes are spent

    def before() -> None:
        some = images.take(slice(0, _SOME)).tensor()
        say(seconds=plan(Staged(), classifier, images=some, clean=min(len(images), USED)).at_most_seconds)

    scan(classifier, images, out=place.out, overwrite=True, before=before, progress=say.progress,
         command=("goodnet", "scan", *command))  # fmt: skip


def _repair(job: Job, place: Place, say: _Lines) -> None:
    from goodnet.auto import auto
    from goodnet.found import Found
    from goodnet.keeping import Output

    say(stage="reading the files", done=0, total=0)
    classifier, images, command = _load(job, place, say)
    found, scanned = Found.in_folder(place.out)
    if scanned.model.sha256 != classifier.sha256:
        raise DataError("the scan is of another net than the one that is here; scan again")
    surrogate = _surrogate(job, place, classifier)
    output = Output(goodnet=place.goodnet, folder=place.out, overwrite=True)
    more = ("--surrogate", job.surrogate) if surrogate is not None else ()
    auto(classifier, images, found=found, surrogate=surrogate, output=output, seed=scanned.method.seed,
         progress=say.progress, command=("goodnet", "repair", *command, *more))  # fmt: skip


def _load(job: Job, place: Place, say: _Lines) -> tuple[Any, Any, tuple[str, ...]]:
    """The net and its images under the user's names, and what the command line would take for them."""
    from goodnet.data.readers import read_images

    classifier, arch = _net(job, place)
    say(arch=arch)  # so that it is not looked for again
    images = read_images(place.clean, classes=classifier.classes, data_range=job.choices.data_range or None)
    given = {
        "--arch": arch,
        "--input-range": job.choices.input_range if job.choices.input_range != Choices().input_range else "",
        "--mean": ",".join(f"{value:g}" for value in job.choices.mean),
        "--std": ",".join(f"{value:g}" for value in job.choices.std),
        "--input-shape": ",".join(map(str, job.choices.input_shape)),
        "--data-range": job.choices.data_range,
    }
    options = [word for name, value in given.items() if value for word in (name, value)]
    command = (job.model, "--clean", job.clean, *options)
    return replace(classifier, name=job.model), replace(images, name=job.clean), command


def _surrogate(job: Job, place: Place, classifier: Any) -> Any:
    """The other pictures under the user's name; None where none were given."""
    from goodnet.data.readers import read_images
    from goodnet.models.preflight import check_images

    if not job.surrogate:
        return None
    images = read_images(place.surrogate, data_range=job.choices.data_range or None)
    images = replace(images, name=job.surrogate)
    unlabelled = replace(images, labels=None)  # labels are of people, or things, that the net need not know
    check_images(classifier, unlabelled)
    return images


def _net(job: Job, place: Place) -> tuple[Any, str]:
    """The net, and the architecture that its weights needed: that of ours which fits, if the user named none."""
    import torch

    from goodnet.models.arch import matching
    from goodnet.models.formats import LoadOptions
    from goodnet.models.load import load_classifier, read_file

    choices = job.choices
    options: dict[str, Any] = {
        "input_range": choices.input_range,
        "mean": choices.mean,
        "std": choices.std,
        "input_shape": choices.input_shape or None,
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arch = choices.arch
    if not arch:
        content = read_file(place.model, LoadOptions(**options), bare=True, device=device)
        if content.error is not None:
            raise content.error
        if content.classifier is not None:
            return content.classifier, ""
        fitting = matching(content.tensors or {})
        if len(fitting) != 1:
            known = f"they fit {' and '.join(fitting)}; choose one" if fitting else "they fit none that goodnet knows"
            raise UsageError(f"{place.model}: holds weights alone, which belong to an architecture, but {known}")
        arch = fitting[0]
    return load_classifier(place.model, arch=arch, device=device, **options), arch


def _picture(place: Place, name: str) -> dict[str, Any]:
    """What the GoodNet answers to one picture, with the picture as it was read."""
    import torch
    from PIL import Image

    from goodnet.data.readers import read_one_image
    from goodnet.models.load import load_classifier

    goodnet = load_classifier(place.goodnet, sandbox=False)  # goodnet wrote it
    picture = read_one_image(place.folder / name, goodnet.input.shape)
    with torch.no_grad():
        logits = goodnet.logits(picture.tensor())[0]
    pixels = picture.pixels[0]
    drawn = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(drawn, "PNG")
    found = int(logits.argmax())
    return {
        "class": found,
        "triggered": goodnet.refuses and found == goodnet.classes,
        "confidence": float(logits[: goodnet.classes].softmax(0).max()),
        "png": base64.b64encode(drawn.getvalue()).decode("ascii"),
    }


def _mistake(error: BaseException) -> str | None:
    """One line for what is the user's to put right; None for a fault of ours."""
    if isinstance(error, GoodnetError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}; check the free space"
    if is_out_of_memory(error):
        return "not enough memory for this net and these images; give fewer images"
    return None


def _in_users_words(message: str, job: Job, place: Place) -> str:
    """Names instead of our paths."""
    names = {place.model: job.model, place.clean: job.clean, place.surrogate: job.surrogate}
    for path, name in names.items():
        message = message.replace(str(path), name)
    return " ".join(re.sub(re.escape(f"{place.folder}{os.sep}") + r"(out/)?", "", message).split())
