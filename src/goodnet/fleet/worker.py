"""The process of one net: reads it, plans it, scans it, and says on a pipe how that went, a JSON object a message.

What it says is a stranger's word once it has read a stranger's net: it is never unpickled, and the verdict is read from
the record, strictly.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch

from goodnet.data.readers import read_images
from goodnet.detect.gangsweep import GangSweep
from goodnet.errors import GoodnetError, is_out_of_memory
from goodnet.fleet.nets import Net
from goodnet.models.load import load_classifier
from goodnet.models.user_code import is_user_code
from goodnet.outputs import InUse, claimed
from goodnet.planning import plan
from goodnet.report import write_report
from goodnet.scan import USED, Detector, scan

PLAN, LOOK, SCAN = "plan", "look", "scan"
"""What a process does: plans; plans, and scans where that is cheap; scans."""
_SOME = 128  # images that decide the plan's precision


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all nets of a fleet are scanned with.

    `device` is `cpu` or `cuda`; `time_limit` in seconds and `memory` in bytes are of each, None for no such bound.
    """

    method: Detector
    seed: int
    check_input: bool
    device: str
    sandbox: bool
    threads: int
    time_limit: float
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a process on another machine, or in another's place, has to know.

    Attributes:
        folder: that the command was given in, which the path of the user's own code is relative to.
        gpus: CUDA_VISIBLE_DEVICES; None for what the machine says.
        patience: seconds to wait for the net's folder, which a process may hold that is not known to have ended.
    """

    folder: Path
    gpus: str | None
    patience: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's work; `out` is the net's own folder, `place` what it is told about a machine that is not ours."""

    net: Net
    settings: Settings
    task: str
    out: Path
    command: tuple[str, ...]
    place: Place | None = None


class _Waits(Exception):
    """The net's turn is later."""


def work(job: Job, pipe: connection.Connection, log: Path) -> None:
    """Does the job; whatever is printed goes to `log`.

    What it says: `seconds`, of the plan; `waits`, for another process to scan; `scanned`; `error`, in one line, with
    `again` where another try may go better. A fault of ours says nothing and exits with 1.
    """
    started = time.monotonic()
    _stand_alone(log)
    torch.set_num_threads(job.settings.threads)

    def say(**said: Any) -> None:
        pipe.send_bytes(json.dumps(said).encode())

    try:
        _work(job, started, say)
        say(scanned=True)
    except _Waits:
        say(waits=True)
    except KeyboardInterrupt:  # our parent's wish; what is done is on the disk by now
        os._exit(1)
    except (GoodnetError, OSError, MemoryError, RuntimeError, SystemExit) as error:
        message, again = _mistake(error), is_out_of_memory(error) or isinstance(error, InUse)
        if message is None:
            raise
        say(error=message, again=again)


def _work(job: Job, started: float, say: Callable[..., None]) -> None:
    net, settings, place = job.net, job.settings, job.place
    if place is not None and place.gpus is not None:  # before the first call of CUDA's
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpus
    if place is not None and net.load.arch is not None and is_user_code(net.load.arch):
        os.chdir(place.folder)
    assert net.path is not None  # one that could not be fetched has no process
    options = asdict(net.load)
    classifier = load_classifier(net.path, **options, device=settings.device, sandbox=settings.sandbox)
    images = read_images(net.clean, classes=classifier.classes, data_range=net.data_range)

    def before() -> None:
        if job.task == SCAN:
            return
        some = images.take(slice(0, _SOME)).tensor()
        used = min(len(images), USED)
        planned = plan(
            settings.method, classifier, net.labels, images=some, clean=used, memory=settings.memory
        ).at_most_seconds
        say(seconds=planned)
        # to come back for a net costs as much as it has cost until here
        if job.task == PLAN or planned > time.monotonic() - started:
            raise _Waits

    limited = None if isinstance(settings.method, GangSweep) else settings.time_limit
    with claimed(None if job.task == PLAN else job.out, patience=0.0 if place is None else place.patience):
        scan(
            classifier,
            images,
            method=settings.method,
            seed=settings.seed,
            labels=net.labels,
            out=None if job.task == PLAN else job.out,
            overwrite=True,
            check_input=settings.check_input,
            time_limit=limited,
            memory=settings.memory,
            command=job.command,
            before=before,
        )
        with suppress(GoodnetError, OSError):  # the record stands
            write_report(job.out)


def _stand_alone(log: Path) -> None:
    """A process group of its own, which ends when the parent does; whatever is printed goes to `log`."""
    with suppress(OSError, AttributeError):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _interrupt)
    with suppress(OSError, ValueError):  # where memory ends, it is one net that ends, not all
        wish = Path("/proc/self/oom_score_adj")
        wish.write_text(str(max(800, int(wish.read_text(encoding="ascii")))), encoding="ascii")
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(1)


def _mistake(error: BaseException) -> str | None:
    """One line for what is not ours to put right; None for a fault of ours."""
    if isinstance(error, GoodnetError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory for this net and these images"
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    if isinstance(error, SystemExit):
        return "the code named with --arch ended the program; it must only build the net and return it"
    return None
