"""Reading a stranger's file in a process of its own: what its parsers can be made to do, they do there.

What crosses back is a safetensors file with known names in it, which is read as any stranger's GoodNet would be. A
process that takes too long, takes too much or breaks is a file refused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file

from goodnet.errors import DataError, ModelError, UnsafeFileError, UsageError
from goodnet.models.formats import Content, LoadOptions, one_line
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.limits import Limits
from goodnet.models.sandbox_child import ANSWER, NEITHER, NET, TENSORS
from goodnet.models.state_dict import safetensors_metadata

ENVIRONMENT = "GOODNET_SANDBOX"
# -I: neither the current folder nor PYTHON* variables decide which code runs
_START = (
    "import json, sys; request = json.load(sys.stdin); sys.path[:] = request['path']; "
    "from goodnet.models.sandbox_child import main; main(request)"
)
_ENVIRONMENT = frozenset(
    ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
     "SYSTEMROOT", "HDF5_USE_FILE_LOCKING")
)  # fmt: skip
_SET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "HDF5_PLUGIN_PRELOAD": "::"}  # fmt: skip
_ERRORS = {kind.__name__: kind for kind in (UsageError, DataError, ModelError, UnsafeFileError)}
_MAX_MESSAGE = 2000


def wanted(sandbox: bool | None) -> bool:
    """What was asked for, else what GOODNET_SANDBOX says, else True. Raises UsageError on another value of that."""
    if sandbox is not None:
        return sandbox
    said = os.environ.get(ENVIRONMENT, "").lower()
    if said not in ("", "0", "1", "off", "on"):
        raise UsageError(f"{ENVIRONMENT}: expected on or off, got {said!r:.40}")
    return said not in ("0", "off")


def read_in_child(
    path: Path, options: LoadOptions, *, bare: bool, size: int, sha256: str = "", device: str | torch.device = "cpu"
) -> Content:
    """`load.read_here` by a process of its own, which a limit may stop or which may break: then that is its error.

    Args:
        path: a regular file, or a folder.
        bare: of weights alone give the tensors, not one of our architectures with them.
        size: bytes of the file, or of all that is read of the folder.
        sha256, device: of the net.
    """
    limits = Limits.for_file(size)
    with tempfile.TemporaryDirectory(prefix="goodnet-") as folder:
        answer = Path(folder) / "answer"
        request = {
            "path": [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)],
            "file": str(path),
            "options": asdict(options),
            "bare": bare,
            "limits": asdict(limits),
            "answer": str(answer),
            "parent": os.getpid(),
        }
        try:
            _run(request, limits, Path(folder))
            return replace(_content(answer, limits, sha256, device), sha256=sha256)
        except UsageError:  # of the device
            raise
        except _Stopped as stopped:
            return Content(format="", sha256=sha256, read_in=_words(limits, []), error=stopped.error)
        except (ModelError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = one_line(error).replace(str(answer), "it")
            unsafe = UnsafeFileError(
                f"{path}: what the process that reads it handed over is no net ({reason}); refused"
            )
            return Content(format="", sha256=sha256, read_in=_words(limits, []), error=unsafe)


class _Stopped(Exception):
    """The child came to no end of its own."""

    def __init__(self, error: ModelError):
        super().__init__(str(error))
        self.error = error


def _content(answer: Path, limits: Limits, sha256: str, device: str | torch.device) -> Content:
    """What the child handed over; anything may be raised where that is not what it should be."""
    about = json.loads(safetensors_metadata(answer)[ANSWER])
    content = Content(format=str(about["format"]), read_in=_words(limits, [str(name) for name in about["unlimited"]]))
    if "error" in about:
        message = " ".join(str(about["message"]).split())[:_MAX_MESSAGE]
        return replace(content, error=_ERRORS[about["error"]](message))
    if about["kind"] == NET:
        return replace(content, classifier=load_goodnet(answer, sha256=sha256, device=device))
    if about["kind"] == TENSORS:
        notes = tuple(str(note) for note in about["notes"])
        tensors = load_file(answer)
        if any(value.is_complex() for value in tensors.values()):
            raise TypeError("complex weights")
        ordered = {str(key): tensors[key] for key in about["order"]}
        plain = {key: value.float() if value.is_floating_point() else value for key, value in ordered.items()}
        return replace(content, tensors=plain, notes=notes)
    if about["kind"] != NEITHER:
        raise ValueError("an answer of no known kind")
    return content


def _words(limits: Limits, unlimited: list[str]) -> str:
    allowed = [name for name in ("network", "writing") if name not in unlimited]
    without = f"; without {' and '.join(allowed)}" if allowed else ""
    return (
        f"a process of its own, allowed at most {limits.words()}{without}"
        + (f"; not limited on this system: {', '.join(unlimited)}" if unlimited else "")
    )  # fmt: skip


def _run(request: Mapping[str, Any], limits: Limits, folder: Path) -> None:
    """Runs the child to its end; it never outlives this call. Raises _Stopped."""
    if not sys.executable:
        raise UsageError(f"the Python that runs here cannot be started again to read files; set {ENVIRONMENT}=off")
    environment = {name: value for name, value in os.environ.items() if name.upper() in _ENVIRONMENT} | _SET
    where = request["file"]
    with (folder / "log").open("wb+") as log:
        with subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,  # a Ctrl-C is ours alone to handle
        ) as child:
            try:
                child.communicate(json.dumps(request).encode(), timeout=limits.wall_seconds)
            except subprocess.TimeoutExpired:
                raise UnsafeFileError(f"{where}: reading it took more than {limits.wall_seconds} s; refused") from None
            finally:
                child.kill()
        if child.returncode:
            raise _Stopped(_broken(where, child.returncode, limits, _last_line(log)))


def _broken(where: str, code: int, limits: Limits, said: str) -> ModelError:
    """Why the process ended."""
    if code > 0:  # its own doing: a disk that is full, an installation that is broken, a case nobody thought of
        return ModelError(
            f"{where}: the process that reads it failed ({said or f'exit code {code}'}); fetch the file again, or pass "
            "--no-sandbox if you trust it"
        )
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGXCPU":
        return UnsafeFileError(f"{where}: reading it took more than {limits.cpu_seconds} s of processor time; refused")
    if name == "SIGALRM":
        return UnsafeFileError(f"{where}: reading it took more than {limits.wall_seconds} s; refused")
    memory = f"{limits.memory / (1 << 30):.1f} GiB"
    return UnsafeFileError(
        f"{where}: the process that reads it broke ({name}; it may take {memory} of memory); refused"
    )


def _last_line(log: Any) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4096))
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return one_line(ValueError(lines[-1])) if lines else ""
