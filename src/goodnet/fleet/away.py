"""A fleet's nets on the machines of a Ray cluster: a task starts there the process that a net has here.

So a file that breaks its process harms only its own row there, too, and what became of the process is the task's
result: it is begun again only where the task itself was lost, with its machine.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from goodnet.clusters import Needs
from goodnet.errors import UsageError
from goodnet.fleet.machine import memory_of, own_threads
from goodnet.fleet.processes import Outcome, run_each
from goodnet.fleet.worker import Job, Place
from goodnet.models.user_code import is_user_code
from goodnet.outputs import check_shared, marked
from goodnet.runners import OnRay
from goodnet.shipping import Tell

_PATIENCE = 100.0  # seconds after which a network's file system has let go what a lost machine held
_ARRIVAL = 60.0  # seconds until a file that another machine has written is seen here
_SHARED = "--runner ray: expected --out, the nets and their images"


@dataclass(frozen=True, kw_only=True)
class Away:
    """Where the processes of a fleet are started."""

    runner: OnRay
    needs: Needs

    def each(
        self, jobs: Iterable[Job], tick: Callable[[], object], out: Path | None
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """As `processes.run_each`; `out` is the folder of all results, None where nothing is written.

        Raises:
            UsageError: a machine does not see `out`, or a file that is there; and those of `OnRay`.
        """
        given = list(jobs)
        with _marked(out) as mark:
            shared = _Shared(mark=mark, folder=Path.cwd())

            def tell(moved: int) -> None:
                tick()

            tasks = self.runner.tasks(net_task, shared, given, self.needs, tell=tell, lost=_lost)
            with closing(tasks) as ended:
                for number, outcome in ended:
                    yield given[number], _arrived(given[number], outcome)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all tasks are told: a file of `outputs.marked`, and the folder that the command was given in."""

    mark: Path | None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """A file that the net needs and a machine does not see."""

    path: Path
    machine: str


def net_task(shared: _Shared, job: Job, tell: Tell) -> Outcome | Unseen:
    """Starts the net's process and waits for its end. Raises UsageError where --out is not seen from here."""
    check_shared(shared.mark, _SHARED)
    for path in _files(shared.folder, job):
        if not path.exists():
            return Unseen(path=path, machine=platform.node())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    # the process is forked from a helper that was started for an earlier task, maybe with another GPU
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if job.settings.device == "cuda" else None
    place = Place(folder=shared.folder, gpus=gpus, patience=_PATIENCE)
    with _no_main(), closing(run_each([replace(job, place=place)], 1)) as ended:
        ((_, outcome),) = ended
    return outcome


def share_out_on(
    runner: OnRay, jobs: int | None, *, device: str, largest: int, nets: int, memory: int | None
) -> tuple[int, Away]:
    """`machine.share_out`, for a cluster: how many nets it runs at a time as it is now, and what each takes.

    Without `jobs`, machines that join later take part, too. Raises UsageError as `OnRay` does.
    """
    cores = runner.cores()
    wanted = max(1, min(nets, jobs or nets))
    needs = Needs(gpu=device == "cuda", memory=memory_of(memory, largest), at_once=jobs or Needs.at_once)
    shared = runner.room(needs) if needs.gpu else wanted
    needs = replace(needs, threads=own_threads(max(cores, default=1)) or _threads(cores, shared))
    return max(1, min(wanted, runner.room(needs))), Away(runner=runner, needs=needs)


def _threads(cores: list[int], wanted: int) -> int:
    """The most that so many nets at a time can have; one where there are not as many cores as nets."""
    fitting = (some for some in range(max(cores, default=1), 1, -1) if sum(one // some for one in cores) >= wanted)
    return next(fitting, 1)


def _files(folder: Path, job: Job) -> list[Path]:
    net = job.net
    code = net.load.arch.rpartition(":")[0] if net.load.arch is not None and is_user_code(net.load.arch) else None
    return [path for path in (net.path, net.clean, None if code is None else folder / code) if path is not None]


def _lost(why: str) -> Outcome | Unseen:
    return Outcome(broke=why)


def _arrived(job: Job, outcome: Outcome | Unseen) -> Outcome:
    """What became of the net, once its record is seen here. Raises UsageError."""
    if isinstance(outcome, Unseen):
        if outcome.path.exists():
            raise UsageError(
                f"{_SHARED} in folders that all machines share, but {outcome.machine} does not see {outcome.path}"
            )
        return Outcome(error=f"{outcome.path}: No such file or directory")
    until = time.monotonic() + _ARRIVAL
    while outcome.scanned and not (job.out / "scan.json").exists() and time.monotonic() < until:
        time.sleep(0.2)
    return outcome


@contextmanager
def _marked(out: Path | None) -> Iterator[Path | None]:
    if out is None:
        yield None
    else:
        with marked(out) as mark:
            yield mark


@contextmanager
def _no_main() -> Iterator[None]:
    """Processes begin by importing the main module of the one that starts them: here that is Ray's, and needless."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
