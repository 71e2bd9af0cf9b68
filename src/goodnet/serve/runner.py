"""One job at a time, in a process of its own; the others wait in line. What a page is told of it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from goodnet.errors import DataError, UsageError
from goodnet.serve import jobs, process
from goodnet.serve.jobs import Choices, Jobs
from goodnet.serve.worker import MISTAKE, PICTURE

_PICTURE_SECONDS = 120.0
_HEARTBEAT = 15.0
_UNKNOWN = -1.0


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a job is, as the page gets it.

    Attributes:
        version, state, task: of the job.
        place: in the line, 1 for the next; 0 where it does not wait.
        stage: what goes on; empty before the first word of the process.
        share: of the stage, 0..1; below 0 where unknown.
        left: seconds to the end of the stage; below 0 where unknown.
        elapsed: seconds since the job's process was started.
        at_most: seconds that the whole scan will take by its plan; below 0 where unknown.
    """

    version: int
    state: str
    task: str
    place: int = 0
    stage: str = ""
    share: float = _UNKNOWN
    left: float = _UNKNOWN
    elapsed: float = 0.0
    at_most: float = _UNKNOWN


class _Clock:
    """What the process says of its progress, timed."""

    def __init__(self) -> None:
        self.started = self.stage_started = time.monotonic()
        self.stage, self.done, self.total, self.at_most = "", 0, 0, _UNKNOWN

    def hear(self, said: Mapping[str, Any]) -> None:
        if isinstance(said.get("seconds"), int | float):
            self.at_most = float(said["seconds"])
        stage, done, total = said.get("stage"), said.get("done"), said.get("total")
        if isinstance(stage, str) and isinstance(done, int) and isinstance(total, int):
            if stage != self.stage or done < self.done:  # another, or the same again
                self.stage_started = time.monotonic()
            self.stage, self.done, self.total = stage[:200], done, total

    def standing(self, base: Standing) -> Standing:
        now = time.monotonic()
        share = min(1.0, self.done / self.total) if self.total > 0 else _UNKNOWN
        left = (now - self.stage_started) / share * (1 - share) if share > 0 else _UNKNOWN
        return replace(base, stage=self.stage, share=share, left=left, elapsed=now - self.started, at_most=self.at_most)


class Runner:
    """Runs the jobs of `jobs`. Everything but the processes lives in one event loop."""

    def __init__(self, all_jobs: Jobs):
        self.jobs = all_jobs
        self._line: list[str] = []
        self._process: Process | None = None
        self._running = ""
        self._clock = _Clock()
        self._turn = asyncio.Event()
        self._news = asyncio.Condition()
        self._told = 0
        self._picture = asyncio.Lock()
        self._pictures: set[Process] = set()
        self._task: asyncio.Task[None] | None = None
        self.closing = False

    def open(self) -> None:
        """Starts taking jobs."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends what runs; queued and running jobs are found as interrupted by the next server on the same folder."""
        await self.let_go()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for one in [*([self._process] if self._process else []), *self._pictures]:
            await process.end(one)

    async def let_go(self) -> None:
        """Lets open streams of events end, which the server would wait for."""
        self.closing = True
        await self._tell()

    async def submit(self, name: str, task: str, *, choices: Choices | None = None) -> None:
        """Puts a job into the line. Raises UsageError where it is in it already, or its process has not ended yet."""
        if name in (*self._line, self._running):
            raise UsageError("this job is waiting or running already")
        self.jobs.change(name, state=jobs.QUEUED, task=task, choices=choices)
        self._line.append(name)
        self._turn.set()
        await self._tell()

    async def cancel(self, name: str) -> None:
        """Takes a job out of the line, or ends its process. Nothing happens to one that has ended."""
        if name in self._line:
            self._line.remove(name)
            self.jobs.change(name, state=jobs.CANCELLED)
        elif name == self._running:
            self.jobs.change(name, state=jobs.CANCELLED)
            if self._process is not None:
                await process.end(self._process)
        await self._tell()

    def standing(self, name: str) -> Standing:
        """How far a job is now. Raises KeyError where there is none of the name."""
        job = self.jobs[name]
        base = Standing(version=job.version, state=job.state, task=job.task)
        if name == self._running and job.state == jobs.RUNNING:
            return self._clock.standing(base)
        return replace(base, place=self._line.index(name) + 1) if name in self._line else base

    async def events(self, name: str) -> AsyncIterator[Standing | None]:
        """How far a job is: at once, and whenever that changes, until it has ended; None to keep the line alive."""
        last: Standing | None = None
        while name in self.jobs and not self.closing:
            told, now = self._told, self.standing(name)
            if now != last:
                yield now
                last = now
            if not self.jobs[name].active:
                return
            try:
                await asyncio.wait_for(self._heard(told), _HEARTBEAT)
            except asyncio.TimeoutError:
                yield None

    async def picture(self, name: str, file: str, called: str) -> Mapping[str, Any]:
        """What the job's GoodNet answers to a picture (`worker._picture`).

        Args:
            file: its name in the job's folder.
            called: its name for the user, for messages.

        Raises:
            DataError: the picture is refused, in one line.
        """
        async with self._picture:
            with tempfile.TemporaryFile() as log:
                place = self.jobs.place(name)
                child = await process.start(place, self.jobs.folder, PICTURE, log, picture=file)
                self._pictures.add(child)
                said: dict[str, Any] = {}
                try:
                    said = await asyncio.wait_for(_last_words(child), _PICTURE_SECONDS)
                except (asyncio.TimeoutError, ValueError):
                    said = {"error": "reading it took too long; refused"}
                finally:
                    await process.end(child)
                    self._pictures.discard(child)
                if isinstance(said.get("answer"), dict):
                    return dict(said["answer"])
                broke = f"the process that reads it broke ({process.last_line(log)})"
                raise DataError(str(said.get("error") or broke).replace(file, called))

    async def _run(self) -> None:
        while True:
            await self._turn.wait()
            self._turn.clear()
            while self._line:
                await self._one(self._line.pop(0))

    async def _one(self, name: str) -> None:
        self._running, self._clock = name, _Clock()
        job = self.jobs.change(name, state=jobs.RUNNING)
        await self._tell()
        error = ""
        with tempfile.TemporaryFile() as log:
            try:
                self._process = await process.start(self.jobs.place(name), self.jobs.folder, job.task, log)
                if not self._wanted(name):  # cancelled in between
                    await process.end(self._process)
                async for said in process.lines(self._process):
                    error = str(said.get("error", error))
                    if said.get("arch") and self._wanted(name):
                        self.jobs.found(name, arch=str(said["arch"]))
                    self._clock.hear(said)
                    await self._tell()
                code = await self._process.wait()
            except (OSError, ValueError) as failure:  # no process to be had, or a line without an end
                code, error = MISTAKE, f"the job's process could not be run ({failure})"
            finally:
                if self._process is not None:
                    await process.end(self._process)
                self._process = None
            self._running = ""
            if self._wanted(name):
                message = error or (_broken(code, process.last_line(log)) if code else "")
                self.jobs.change(name, state=jobs.FAILED if message else jobs.DONE, message=message)
        await self._tell()

    def _wanted(self, name: str) -> bool:
        return name in self.jobs and self.jobs[name].state == jobs.RUNNING

    async def _tell(self) -> None:
        async with self._news:
            self._told += 1
            self._news.notify_all()

    async def _heard(self, told: int) -> None:
        """Waits for news after the first `told`."""
        async with self._news:
            await self._news.wait_for(lambda: self._told != told)


def new_picture() -> str:
    """A name for a picture in a job's folder."""
    return f"picture-{secrets.token_hex(8)}"


def _broken(code: int, said: str) -> str:
    """Why a process ended that has not said so itself."""
    if code < 0:
        known = -code in set(signal.Signals)
        why = f"it was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"
        return f"the job's process broke: {why}" + (", maybe for want of memory" if code == -signal.SIGKILL else "")
    return f"the job's process broke, which is a fault in goodnet; please report it ({said or f'exit code {code}'})"


async def _last_words(child: Process) -> dict[str, Any]:
    """All that a process says until it ends."""
    said: dict[str, Any] = {}
    async for line in process.lines(child):
        said.update(line)
    return said
