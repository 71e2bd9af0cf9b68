"""A process that reads damaged files one after another, watches each read, and writes down what it should not do.

Faults are: an error that is no GoodnetError or more than one line; a file opened, a process or a connection started;
words on stdout or stderr; more memory or time than a file of a few kilobytes is worth. A crash is its parent's to see.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import typing
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import goodnet

CPU_SECONDS = 5.0
MEMORY = 256 << 20
ADDRESSES = 1 << 30
MESSAGE = 1000
STATUS = struct.Struct("<qqqqd")  # of a job: next input, how many were read, refused, at fault; seconds
_RECYCLED = 500
_KEPT = 3  # inputs of one kind of fault

_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
          "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir",
          "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.putenv", "shutil.rmtree", "urllib.Request")  # fmt: skip
_PACKAGE = str(Path(goodnet.__file__).parent)
_CODE = (".py", ".pyc", ".so")


class TooLong(BaseException):
    """Raised by the timer; no reader catches it."""


class Watch:
    """What happens while `on`: by the interpreter's audit events."""

    def __init__(self, folder: Path):
        self.on = False
        self.seen: list[str] = []
        self.folder = str(folder)
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _NEVER or (event == "open" and self._opens(*arguments[:2])) or self._runs(event, arguments):
            self.seen.append(f"{event} {str(arguments)[:200]}")
            raise RuntimeError("not while a file is read")

    def _opens(self, path: Any, mode: Any) -> bool:
        if isinstance(path, int):
            return False
        name = os.path.abspath(os.fsdecode(path))
        if any(letter in str(mode or "r") for letter in "wax+"):
            return True
        return not (name.startswith((self.folder, sys.prefix, sys.base_prefix, _PACKAGE)) or name.endswith(_CODE))

    def _runs(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Code from no module's file, as `eval` and `exec` of a string give. Hints and imports do so, too."""
        if event != "exec" or not getattr(arguments[0], "co_filename", "<").startswith("<"):
            return False
        callers = {frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)}
        return callers.isdisjoint((typing.__file__, "<frozen importlib._bootstrap>"))


class Noise:
    """Standard output and error, put into a file."""

    def __init__(self, folder: Path):
        self.file = os.open(folder / "noise", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(self.file, stream)

    def take(self) -> str:
        """What was written since the last call."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        size = os.fstat(self.file).st_size
        if not size:
            return ""
        text = os.pread(self.file, min(size, 2000), 0).decode("utf-8", "replace")
        os.ftruncate(self.file, 0)
        return text


def main(spec: dict[str, Any]) -> None:
    """Runs `spec["jobs"]`, each (target, first, past the last)."""
    for module in spec["extra"]:  # further targets
        import_module(module)
    out = Path(spec["out"])
    noise, watch = Noise(out), Watch(out / "work")
    warnings.simplefilter("always")
    for unseen in (ResourceWarning, DeprecationWarning, PendingDeprecationWarning, ImportWarning):  # as users have it
        warnings.simplefilter("ignore", unseen)
    signal.signal(signal.SIGPROF, _too_long)
    status = os.open(out / "status", os.O_WRONLY)
    for number, (target, first, stop) in enumerate(spec["jobs"]):
        job = _Job(target, spec, noise, watch)
        for index in range(first, stop):
            os.pwrite(status, job.status(index), number * STATUS.size)
            if (index - first) % _RECYCLED == 0:
                job.rest()
            job.run(index)
        os.pwrite(status, job.status(stop), number * STATUS.size)


class _Job:
    """One target's inputs and counts. Its whole files are read first, which fills imports and caches."""

    def __init__(self, target: str, spec: dict[str, Any], noise: Noise, watch: Watch):
        from .targets import Inputs

        self.target, self.noise, self.watch, self.seconds = target, noise, watch, spec["cpu_seconds"]
        self.out = Path(spec["out"])
        self.inputs = Inputs(target, Path(spec["files"]) / target, spec["seed"])
        for name, content in self.inputs.files:
            self._read(name, content, None)
        noise.take()
        self.counts = {"read": 0, "refused": 0, "fault": 0}
        _bound_memory()
        self.begun = time.monotonic()
        self.rest()

    def status(self, index: int) -> bytes:
        return STATUS.pack(index, *self.counts.values(), time.monotonic() - self.begun)

    def rest(self) -> None:
        """What memory grew slowly, by caches of the allocator, is not counted."""
        _reset_peak()
        self.base = _peak()

    def run(self, index: int) -> None:
        name, content = self.inputs.make(index)
        self.watch.seen.clear()
        outcome, what = self._read(name, content, self.watch)
        if self.watch.seen:
            outcome, what = "fault", f"did what no reader may: {self.watch.seen[0]}"
        if said := self.noise.take():
            outcome, what = "fault", f"said: {said.strip()[-600:]}"
        if (grown := _peak() - self.base) > MEMORY:
            outcome, what = "fault", f"took {grown >> 20} MiB"
            self.rest()
        self.counts[outcome] += 1
        if outcome == "fault":
            _keep(self.out, self.target, index, what, self.path)

    def _read(self, name: str, content: bytes, watch: Watch | None) -> tuple[str, str]:
        from .targets import TARGETS, arch_of, put

        self.path = put(self.target, self.out / "work", name, content)
        return judge(partial(TARGETS[self.target].read, self.path, arch_of(name)), watch, seconds=self.seconds)


def judge(read: Callable[[], object], watch: Watch | None = None, *, seconds: float = CPU_SECONDS) -> tuple[str, str]:
    """("read" | "refused" | "fault", what was said)."""
    from goodnet.errors import GoodnetError

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        if watch is not None:
            watch.on = True
        read()
    except TooLong:
        return "fault", f"took more than {seconds:g} s {_place(sys.exc_info()[1])}"
    except GoodnetError as error:
        return _refusal(error)
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {str(error)[:300]} {_place(error)}"
    finally:
        if watch is not None:
            watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read", ""


def _refusal(error: BaseException) -> tuple[str, str]:
    text = str(error)
    if not text.strip() or "\n" in text or "\r" in text or len(text) > MESSAGE:
        return "fault", f"not one line of at most {MESSAGE} characters: {len(text)}: {text[:300]!r} {_place(error)}"
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, MemoryError):
            return "fault", f"asked for more than {ADDRESSES >> 20} MiB {_place(reason)}"
        reason = reason.__cause__ or reason.__context__
    return "refused", text


def _place(error: BaseException | None) -> str:
    """The last line of goodnet's that the error passed."""
    frames = traceback.extract_tb(error.__traceback__ if error is not None else None)
    ours = [frame for frame in frames if "/goodnet/" in frame.filename] or frames
    return f"[{Path(ours[-1].filename).name}:{ours[-1].lineno}]" if ours else ""


def _keep(out: Path, target: str, index: int, what: str, path: Path) -> None:
    key = what.rpartition("[")[2] if what.endswith("]") else what[:40]
    kind = "".join(letter if letter.isalnum() else "-" for letter in f"{what.partition(':')[0][:30]}-{key}")[:90]
    folder = out / "faults" / target / kind
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.iterdir())) < _KEPT:
        copy = shutil.copytree if path.is_dir() else shutil.copy
    copy(path, folder / f"{index}-{path.name}")
    with (out / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"target": target, "index": index, "what": what}) + "\n")


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak() -> int:
    """The most memory since `_reset_peak`; ru_maxrss would count what the parent had."""
    words = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split(None, 1)
    return int(words[0]) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _too_long(*_: Any) -> None:
    raise TooLong


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
