"""Starting a job's process, and ending it with all that it has started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

from goodnet.models.sandbox import wanted
from goodnet.serve.jobs import Place

# -I: neither the current folder nor PYTHON* variables decide which code runs
_START = (
    "import json, sys; request = json.loads(sys.stdin.buffer.raw.readline()); sys.path[:] = request['path']; "
    "from goodnet.serve.worker import main; main(request)"
)
MAX_LINE = 64 << 20  # an answer holds a picture


async def start(place: Place, root: Path, task: str, log: IO[bytes], **more: str) -> Process:
    """Starts `worker.main` for a job; what it prints besides its lines goes to `log`."""
    place.temporary.mkdir(exist_ok=True, mode=0o700)
    request = {
        "path": [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str) and entry],
        "task": task,
        "folder": str(place.folder),
        "root": str(root),
        "fenced": wanted(None),
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _START,
        stdin=PIPE, stdout=PIPE, stderr=log,
        env={**os.environ, "TMPDIR": str(place.temporary), "TEMP": str(place.temporary), "TMP": str(place.temporary)},
        cwd=place.folder,
        limit=MAX_LINE,
        start_new_session=True,  # a Ctrl-C is the server's alone to handle
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")  # and stays open: the process ends when it closes
    return process


async def lines(process: Process) -> AsyncIterator[Mapping[str, Any]]:
    """What the process says, until it closes its stdout; what is no line of its own is left out."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            yield said


async def end(process: Process) -> int:
    """Kills the process and its children if it still runs; its exit code."""
    if process.returncode is None:
        try:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass
    return await process.wait()


def last_line(log: IO[bytes]) -> str:
    """The last line that the process has printed, for the message of one that broke."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4096))
    text = log.read().decode("utf-8", "replace").strip().splitlines()
    return text[-1][:300] if text else ""
