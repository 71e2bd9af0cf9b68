"""Jobs on disk: a folder each, with a random name, so that a reload, a second tab or a new start of the server shows
the same. Needs no torch."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from goodnet.errors import DataError, UsageError
from goodnet.record import RepairRecord, ScanRecord, read_record
from goodnet.strict_json import read, write_record

FORMAT = "goodnet.job/1"
QUEUED, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = (
    "queued", "running", "done", "failed", "cancelled", "interrupted",
)  # fmt: skip
ACTIVE = (QUEUED, RUNNING)
SCAN, REPAIR = "scan", "repair"
MAX_JOBS = 50
_ID = re.compile(r"[0-9a-f]{32}")
_PARTIAL = ".upload-"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user said of the net and the images, as `goodnet scan` takes it; empty where nothing was said."""

    arch: str = ""
    input_range: str = "0..1"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_shape: tuple[int, ...] = ()
    data_range: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One net and what is done with it.

    Attributes:
        id: 32 hexadecimal digits, 128 random bits; also the name of the folder.
        created: seconds since 1970.
        model, clean, surrogate: what the user calls the files; shown, and never used as a path. `surrogate` is empty
            where no such file was given.
        task: `scan` or `repair`, the last that was asked for.
        state: of that task.
        message: why it ended without a result, in one line.
        version: goes up by one with each change, so that a page knows whether it is out of date.
    """

    id: str
    created: float
    model: str
    clean: str
    choices: Choices
    surrogate: str = ""
    task: str = SCAN
    state: str = QUEUED
    message: str = ""
    version: int = 0
    format: str = FORMAT

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, kw_only=True)
class Place:
    """The files of one job, under names of ours."""

    folder: Path

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def clean(self) -> Path:
        return self.folder / "clean"

    @property
    def surrogate(self) -> Path:
        return self.folder / "surrogate"

    @property
    def out(self) -> Path:
        """Records, triggers and pictures, as `--out` leaves them."""
        return self.folder / "out"

    @property
    def goodnet(self) -> Path:
        return self.folder / "goodnet.safetensors"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def scan(self) -> ScanRecord | None:
        """The scan's record, None where there is none yet. Raises DataError where it cannot be read."""
        record = read_record(self.out / "scan.json") if (self.out / "scan.json").is_file() else None
        return record if isinstance(record, ScanRecord) else None

    def repair(self) -> RepairRecord | None:
        """As `scan`."""
        record = read_record(self.out / "repair.json") if (self.out / "repair.json").is_file() else None
        return record if isinstance(record, RepairRecord) else None


class Jobs:
    """All jobs of a folder.

    Raises:
        UsageError: it cannot be made or written to.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"--folder: expected a folder for jobs, but {folder}: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UsageError(f"--folder: {folder} cannot be written to; name another, or change its permissions")
        self._jobs: dict[str, Job] = {}
        for left in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        for path in self.folder.iterdir():
            if _ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                self._restore(path.name)

    def _restore(self, name: str) -> None:
        """Takes over what an earlier server left; a folder that is no job of ours is left alone."""
        with suppress(DataError):
            job: Job = read(self.place(name).job, {FORMAT: Job})
            if job.id != name:
                return
            self._jobs[name] = job
            if job.active:
                self.change(name, state=INTERRUPTED, message="the server was stopped before it was done")

    def place(self, name: str) -> Place:
        """Where a job's files are. Raises KeyError for anything but an id."""
        if not _ID.fullmatch(name):
            raise KeyError(name)
        return Place(folder=self.folder / name)

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def all(self) -> list[Job]:
        """The newest first."""
        return sorted(self._jobs.values(), key=lambda job: (-job.created, job.id))

    @contextmanager
    def receiving(self) -> Iterator[Place]:
        """An empty folder for uploads, removed at the end unless `add` made a job of it.

        Raises:
            UsageError: there are too many jobs.
        """
        if len(self._jobs) >= MAX_JOBS:
            raise UsageError(f"there are {MAX_JOBS} jobs already; delete one first")
        folder = self.folder / f"{_PARTIAL}{secrets.token_hex(16)}"
        folder.mkdir(mode=0o700)
        try:
            yield Place(folder=folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, received: Place, *, model: str, clean: str, choices: Choices, surrogate: str = "") -> Job:
        """Makes a job of what was received; it stands on disk before it is known."""
        job = Job(id=secrets.token_hex(16), created=time.time(), model=model, clean=clean, surrogate=surrogate,
                  choices=choices)  # fmt: skip
        received.temporary.mkdir(mode=0o700)
        write_record(job, received.job)
        received.folder.rename(self.folder / job.id)
        self._jobs[job.id] = job
        return job

    def change(
        self, name: str, *, state: str, task: str | None = None, message: str = "", choices: Choices | None = None
    ) -> Job:
        """A new state, on disk first; `task` and `choices` stay where they are None."""
        job = self._jobs[name]
        job = replace(
            job,
            state=state,
            task=task or job.task,
            message=message,
            choices=choices or job.choices,
            version=job.version + 1,
        )
        write_record(job, self.place(name).job)
        self._jobs[name] = job
        return job

    def found(self, name: str, *, arch: str) -> None:
        """The architecture that the net's weights needed: no news for a page."""
        job = self._jobs[name]
        if job.choices.arch != arch:
            self._jobs[name] = replace(job, choices=replace(job.choices, arch=arch))
            write_record(self._jobs[name], self.place(name).job)

    def remove(self, name: str) -> None:
        """Removes a job and all its files."""
        del self._jobs[name]
        shutil.rmtree(self.place(name).folder, ignore_errors=True)
