"""Where work of many blocks is done: in this process, or as tasks on Ray (`OnRay`; this is the only module with ray).

A block is a piece that depends on nothing but itself and what all of them share: some labels of a scan, a trigger to
judge, a net of a benchmark. Who runs them, in what order and how often a lost one is begun again changes no result:
blocks are cut alike everywhere, and each is computed by the same function with the same number of threads.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import metadata
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from goodnet.clusters import LOCAL, QUIET, Needs, check_answers, host_and_port, in_folder, variables
from goodnet.errors import UsageError
from goodnet.shipping import KEPT, Pieces, Tell, by_value, cpu_kind, versions

S = TypeVar("S")
B = TypeVar("B")
R = TypeVar("R")
_T = TypeVar("_T")


def quiet(moved: int) -> None:
    """Tells nobody."""


class Runner(Protocol):
    """Maps a function over blocks.

    Attributes:
        here: functions run in this process, and are given `shared` itself.
    """

    @property
    def here(self) -> bool: ...

    def run(
        self,
        function: Callable[[S, B, Tell], R],
        shared: S,
        blocks: Sequence[B],
        *,
        tell: Tell = quiet,
        alone: bool = False,
    ) -> Iterator[tuple[int, R]]:
        """Yields each block's index and result as it is there; to stop is to close the iterator, or to raise.

        Args:
            function: called with `shared`, a block and what to call with how much of it is done; of a module, so that
                another process can find it.
            shared: what all blocks need; not to be changed.
            tell: given what functions tell, added up or not; it may raise, which ends the run.
            alone: a block has all cores to itself, as many threads as torch uses; otherwise one.

        Raises:
            what a function or `tell` has raised; other blocks are ended first.
        """
        ...


class _Stopped(Exception):
    """Another block has raised, or nobody waits for results any more."""


class Serial:
    """In this process: one thread a core, each with single-threaded kernels; or one block after another.

    No barrier stands after every kernel, so a busy machine costs its share and no more: two threads a kernel, beside
    one other busy process on two cores, were measured 20 times slower than alone. What a thread computes does not hang
    on the others, so results do not depend on how many there are.
    """

    here = True

    def run(
        self,
        function: Callable[[S, B, Tell], R],
        shared: S,
        blocks: Sequence[B],
        *,
        tell: Tell = quiet,
        alone: bool = False,
    ) -> Iterator[tuple[int, R]]:
        """See `Runner`; `alone` runs in the calling thread."""
        if alone:
            yield from ((i, function(shared, block, tell)) for i, block in enumerate(blocks))
        elif len(blocks):
            yield from _threaded(function, shared, blocks, tell)


SERIAL = Serial()


def _threaded(
    function: Callable[[S, B, Tell], R], shared: S, blocks: Sequence[B], tell: Tell
) -> Iterator[tuple[int, R]]:
    stopped = False

    def told(moved: int) -> None:
        if stopped:
            raise _Stopped
        tell(moved)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(min(threads, len(blocks)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            waiting = {pool.submit(function, shared, block, told): i for i, block in enumerate(blocks)}
            for future in as_completed(list(waiting)):
                yield waiting.pop(future), future.result()
        finally:
            stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(threads)


def in_threads(work: Callable[[_T], R], items: Sequence[_T]) -> list[R]:
    """`work` of each item, in the order of items, in as many threads as torch uses."""
    results = dict(_threaded(lambda _shared, item, _tell: work(item), None, items, quiet)) if len(items) else {}
    return [results[i] for i in range(len(items))]


_MIN_RAY = (2, 52)  # the first whose clusters ask for a token: older ones run code for whoever reaches their ports
_RETRIES = 5  # of a block whose worker or node is lost
_WAKE = 0.5  # seconds
_ENDING = 10.0  # seconds until a task that was told to end is killed


class OnRay:
    """Blocks as tasks of a Ray cluster, which is joined at the first `run` and left at the end of the `with`.

    What blocks share, the net first of all, goes through the object store once: pickles that this process has made of
    goodnet's own layers and tensors, never of a file. Tasks that are lost with their worker are begun again, results
    are kept by this process alone, and nothing runs on when it ends.

    Args:
        address: `auto` for the cluster that this machine is part of, `host:port`, `ray://host:port`; None starts one on
            this machine. A process that is connected already stays so.
        gpus_per_task: share of a GPU that a task takes; None for a whole one where the net is on a GPU.
        cores: of a cluster that is started here; None for as many as torch has threads.
        say: told, in a line, what the user should know: lost nodes, other kinds of CPU.

    Raises:
        UsageError: ray is missing or too old; from `run`, there is no such cluster, it has no room for a task, its
            workers have other versions, or the net is made by code of the user's own.
    """

    here = False

    def __init__(
        self,
        address: str | None = None,
        *,
        gpus_per_task: float | None = None,
        cores: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.address, self.gpus_per_task, self.own_cores, self.say = address, gpus_per_task, cores, say
        self._ray: Any = None
        self._host_and_port = None if address in (None, "auto") else host_and_port(str(address))
        self._left = ExitStack()
        self._refs: dict[str, Any] = {}
        self._known: set[str] = set()
        self._own = False
        self._other_cpus: set[str] = set()
        try:
            found = metadata.version("ray")
        except metadata.PackageNotFoundError:
            raise UsageError("--runner ray: ray is not installed; pip install 'goodnet[ray]'") from None
        if tuple(int(part) for part in found.split(".")[:2]) < _MIN_RAY:
            wanted = ".".join(map(str, _MIN_RAY))
            raise UsageError(f"--runner ray: expected ray {wanted} or later, got {found}; pip install 'goodnet[ray]'")

    def __enter__(self) -> OnRay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[[S, B, Tell], R],
        shared: S,
        blocks: Sequence[B],
        *,
        tell: Tell = quiet,
        alone: bool = False,
    ) -> Iterator[tuple[int, R]]:
        """See `Runner`; what a block tells comes with its result."""
        needs = Needs(threads=torch.get_num_threads() if alone else 1)
        return self.tasks(function, shared, blocks, needs, tell=tell)

    def tasks(
        self,
        function: Callable[[S, B, Tell], R],
        shared: S,
        blocks: Sequence[B],
        needs: Needs,
        *,
        tell: Tell = quiet,
        lost: Callable[[str], R] | None = None,
    ) -> Generator[tuple[int, R], None, None]:
        """`run`, for blocks of other needs.

        Args:
            tell: called a few times a second, too, with 0.
            lost: the result of a block that has cost its worker so often that it is given up, by what is known of
                that; None ends the run.
        """
        tell(0)
        if not len(blocks):
            return
        ray = self._connected()
        pieces = Pieces()
        key = pieces.add(shared)
        task = self._task(replace(needs, gpu=needs.gpu or pieces.on_gpu))
        refs = [self._put(piece, raw) for piece, raw in pieces.found.items()]
        header = (versions(), needs.threads, key, list(pieces.found))
        waiting = enumerate(blocks)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < needs.at_once and (some := next(waiting, None)) is not None:
                    running[task.remote(header, pickle.dumps((function, some[1])), *refs)] = some[0]
                if not running:
                    break
                ready, _ = ray.wait(list(running), timeout=_WAKE)
                tell(0)
                for ref in ready:
                    i = running.pop(ref)
                    result, moved = self._result(ref, lost)
                    tell(moved)
                    yield i, result
        finally:
            self._end(list(running))
        self._tell_of_lost_nodes()

    def cores(self) -> list[int]:
        """Of each node of the cluster, which is joined for it."""
        self._connected()
        return [int(node.get("CPU", 0)) for node in self._nodes().values()]

    def room(self, needs: Needs) -> int:
        """How many blocks the cluster can run at a time, as it is now; it is joined for it. Raises UsageError."""
        self._connected()
        taken = self._resources(needs)
        return sum(
            min(int(node.get(name, 0) // some) for name, some in taken.items()) for node in self._nodes().values()
        )

    def close(self) -> None:
        """Leaves the cluster, and ends it if it was started here."""
        self._left.close()
        self._ray, self._refs, self._own = None, {}, False

    def _connected(self) -> Any:
        if self._ray is not None:
            return self._ray
        self._left.enter_context(variables(QUIET if self.address is not None else {**QUIET, **LOCAL}))
        import ray  # what it is to heed is set

        if not ray.is_initialized():
            in_main = threading.current_thread() is threading.main_thread()
            if in_main:
                self._left.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            self._join(ray)
            if in_main:  # Ray's own ends as if the user's code had
                signal.signal(signal.SIGTERM, _as_ctrl_c)
        self._ray = ray
        self._known = set(self._nodes())
        return ray

    def _join(self, ray: Any) -> None:
        if self._host_and_port is not None:
            check_answers(str(self.address), self._host_and_port)
        base = "/tmp" if os.path.isdir("/tmp") else None  # a socket's path has at most 107 characters
        folder = tempfile.mkdtemp(prefix="goodnet-ray-", dir=base)
        self._left.callback(shutil.rmtree, folder, ignore_errors=True)
        self._left.callback(ray.shutdown)
        options: dict[str, Any] = {"log_to_driver": False}
        if self.address is None:
            cores = self.own_cores or torch.get_num_threads()
            options |= {"num_cpus": cores, "include_dashboard": False, "_temp_dir": folder}
        try:
            with in_folder(folder):
                ray.init(address=self.address or "local", logging_level="ERROR", **options)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, and those of gRPC
            where = "this machine" if self.address is None else self.address
            raise UsageError(f"--runner ray: no Ray cluster at {where}: {str(error).strip()[:300]}") from error
        self._own = self.address is None

    def _task(self, needs: Needs) -> Any:
        """The remote function."""
        taken = self._resources(needs)
        cores, gpus, memory = (taken.get(name, 0) for name in ("CPU", "GPU", "memory"))
        made = self._ray.remote(by_value())
        return made.options(num_cpus=cores, num_gpus=gpus, memory=memory or None, max_retries=_RETRIES, name="goodnet")

    def _resources(self, needs: Needs) -> dict[str, float]:
        """What a task takes of its node, by Ray's names. Raises UsageError where no node could ever run it."""
        if self.gpus_per_task is not None and not needs.gpu:
            raise UsageError(
                "--gpus-per-task: expected a net on a GPU (--device cuda), got one on the CPU: tasks compute on the "
                "same kind of device as this process, or the record would be another"
            )
        gpus = (self.gpus_per_task or 1.0) if needs.gpu else 0.0
        cores = 1 if needs.gpu else needs.threads
        nodes = self._nodes().values()
        if not any(node.get("GPU", 0) >= gpus for node in nodes):
            raise UsageError(f"--gpus-per-task: expected a node with {gpus:g} of a GPU, got none in the cluster")
        able = [node for node in nodes if node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus]
        if not able:
            raise UsageError(f"--runner ray: expected a node with {cores} cores, got none in the cluster; add one")
        memory = min(needs.memory, int(max(node.get("memory", 0) for node in able)))
        return {"CPU": cores} | ({"GPU": gpus} if gpus else {}) | ({"memory": memory} if memory else {})

    def _nodes(self) -> dict[str, dict[str, float]]:
        """What each node that lives has, by its number."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def _put(self, key: str, raw: bytes) -> Any:
        """The piece in the object store; put there once, for as long as it is among the last used."""
        ref = self._refs.pop(key, None)
        self._refs[key] = self._ray.put(np.frombuffer(raw, np.uint8)) if ref is None else ref
        while len(self._refs) > KEPT:
            self._refs.pop(next(iter(self._refs)))
        return self._refs[key]

    def _result(self, ref: Any, lost: Callable[[str], Any] | None) -> tuple[Any, int]:
        errors = self._ray.exceptions
        try:
            other, cpu, raw = self._ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except errors.RayError as error:
            memory = isinstance(error, errors.OutOfMemoryError)
            if lost is not None:
                why = "not enough memory on its machine" if memory else f"lost with its worker {_RETRIES + 1} times"
                return lost(why), 0
            if memory:
                raise MemoryError(str(error)) from error
            raise UsageError(
                f"--runner ray: a block was lost with its worker {_RETRIES + 1} times: {str(error).strip()[:300]}"
            ) from error
        if other:
            raise UsageError(f"--runner ray: a worker {other}; install the same goodnet there")
        if cpu != cpu_kind() and cpu not in self._other_cpus:
            self._other_cpus.add(cpu)
            self.say(f"take care: workers with {cpu} round otherwise than this machine with {cpu_kind()}, which may "
                     "change figures a little")  # fmt: skip
        result, moved = pickle.loads(raw)
        return result, moved

    def _end(self, running: Sequence[Any]) -> None:
        """Takes back what is not done: gently, then by force; a cluster of our own is ended with it.

        Ray 2.60 aborts this process where a task is taken back at the very moment at which it is sent to its worker: in
        one of three interruptions, with the first tasks first, in one of ten so. Nothing else runs on our own.
        """
        if running and self._own:
            self.close()
            return
        for force in (False, True):
            if not running:
                return
            for ref in reversed(running):
                with suppress(Exception):  # it has ended in the meantime, or its node has
                    self._ray.cancel(ref, force=force)
            with suppress(Exception):
                running = self._ray.wait(running, num_returns=len(running), timeout=_ENDING)[1]

    def _tell_of_lost_nodes(self) -> None:
        alive = set(self._nodes())
        if self._known - alive:
            lost = len(self._known - alive)
            self.say(f"{lost} of {len(self._known)} nodes were lost; what they had not finished was done again")
        self._known = alive


def _as_ctrl_c(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
