"""What a long run has done so far, a label at a time: kept in memory and, where there is a folder, on disk.

Every result depends on (seed, label) alone, so a run that was killed goes on with what is there and ends as if nothing
had happened. Results are written in small files of their own, each under a temporary name first: a kill costs the last
seconds and never leaves half a file.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from goodnet.outputs import replacing

Result = Mapping[str, npt.NDArray[np.generic]]
_FLUSH_EVERY = 5.0


class OutOfTime(Exception):
    """The time that the user gave is over; what is done is kept."""


class Work:
    """The results of a run's stages by label.

    Args:
        folder: where they are kept; None keeps them in memory alone. What an earlier run left there is taken over, so
            its name must say everything that results depend on (`about.fingerprint`).
        time_limit: seconds from now after which `check` raises; None for no limit.
    """

    def __init__(self, folder: Path | None = None, *, time_limit: float | None = None):
        self.folder = folder
        self.out_of_time = False
        self._ends = None if time_limit is None else time.monotonic() + time_limit
        self._lock = Lock()
        self._stages: dict[str, dict[int, Result]] = {}
        self._fresh: dict[str, dict[int, Result]] = {}
        self._flushed = time.monotonic()
        self._files = 0
        if folder is not None and folder.is_dir():
            for file in sorted(folder.glob("*.npz")):
                self._take(file)
        self.resumed = sum(map(len, self._stages.values()))

    def done(self, stage: str) -> dict[int, Result]:
        """What is done of a stage."""
        with self._lock:
            return dict(self._stages.get(stage, {}))

    def add(self, stage: str, label: int, result: Result) -> None:
        """Keeps a label's result; from any thread."""
        with self._lock:
            self._stages.setdefault(stage, {})[label] = result
            if self.folder is not None:
                self._fresh.setdefault(stage, {})[label] = result
                if time.monotonic() - self._flushed > _FLUSH_EVERY:
                    self._flush()

    def check(self) -> None:
        """Raises OutOfTime once the time is over."""
        if self._ends is not None and time.monotonic() > self._ends:
            self.out_of_time = True
            raise OutOfTime

    def flush(self) -> None:
        """Writes what is not on disk yet. Where that fails it stays in memory, and the run goes on."""
        with self._lock:
            self._flush()

    def remove(self) -> None:
        """Deletes the folder: the run is whole, its record is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self.folder is None or not self._fresh:
            return
        arrays = {
            f"{stage}/{label}/{name}": array
            for stage, results in self._fresh.items()
            for label, result in results.items()
            for name, array in result.items()
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while (file := self.folder / f"{self._files:06d}.npz").exists():
                self._files += 1
            with replacing(file) as part, part.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        except OSError:  # a full disk: the next time tries again, and a disk that stays full stops the record
            with suppress(OSError):
                self.folder.rmdir()  # if it is empty
            return
        self._fresh = {}

    def _take(self, file: Path) -> None:
        """Takes over an earlier run's file; one that cannot be read is left out, and its labels are done again."""
        try:
            with warnings.catch_warnings(), np.load(file, allow_pickle=False) as arrays:
                warnings.simplefilter("ignore")
                read = {key: arrays[key] for key in arrays.files}
            places = [(stage, int(label), name) for stage, label, name in (key.rsplit("/", 2) for key in read)]
            if not all(isinstance(array, np.ndarray) for array in read.values()):
                return
        except Exception:  # zipfile, zlib and numpy raise many types for a damaged file
            return
        for (stage, label, name), array in zip(places, read.values()):
            self._stages.setdefault(stage, {}).setdefault(label, {})[name] = array  # type: ignore[index]
