"""What scanners for code say of a model file: today modelscan (https://github.com/protectai/modelscan, Apache-2.0).

Its verdict is shown beside ours and never stands for it: it knows unsafe names in pickles and Keras configs, nothing of
weights. It runs in a process of its own, in an empty folder (it takes settings from the one that it is started in), and
what it writes is read like any stranger's file. Fickling (0.1.12) is left out: it calls each of ten state dicts that
torch.save wrote "likely unsafe".
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodnet.errors import UsageError

ISSUES, NONE_FOUND, SKIPPED, ERROR = "issues", "none found", "skipped", "error"
_TOOL = "modelscan"
_INSTALL = "pip install 'goodnet[scan-code]' (Python 3.10 to 3.12), or pipx install modelscan"
_SECONDS = 300.0
_MAX_OUTPUT = 16 << 20
_MAX_ITEMS, _MAX_TEXT = 1000, 300
# its exit codes: issues found or not, errors while scanning, nothing that it could scan, wrong usage
_CLEAN, _FOUND, _FAILED, _NOTHING = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class CodeScan:
    """What one scanner said; issues, errors and skips are kept apart.

    Attributes:
        verdict: `issues`; `error` where the tool failed or could not read a part that it knows; `skipped` where it
            looked at nothing; `none found` only where it looked at something and failed nowhere.
        scanned: parts that it looked at.
        issues, errors: one line each.
        skipped: parts that it does not know (raw weights in a zip are such).
    """

    tool: str
    version: str | None
    verdict: str
    scanned: int = 0
    issues: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    skipped: int = 0


def scan_code(path: Path, *, seconds: float = _SECONDS) -> tuple[CodeScan, ...]:
    """Runs the scanners that are installed on the file. Raises UsageError where there is none."""
    return (_modelscan(path.resolve(), _program(), seconds),)


def _program() -> str:
    """modelscan of this environment, or else of the PATH."""
    beside = shutil.which(_TOOL, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(_TOOL)
    if found is None:
        raise UsageError(f"--scan-code: needs modelscan, which is not installed: {_INSTALL}")
    return os.path.abspath(found)


def _modelscan(path: Path, program: str, seconds: float) -> CodeScan:
    with tempfile.TemporaryDirectory(prefix="goodnet-code-") as folder:
        output = Path(folder) / "modelscan.json"
        command = [program, "scan", "--show-skipped", "-r", "json", "-o", str(output), "-p", str(path)]
        try:
            code = _run(command, folder, seconds)
        except subprocess.TimeoutExpired:
            return _error(f"stopped after {seconds:g} s")
        except OSError as error:
            return _error(f"cannot be started ({error.strerror})")
        try:
            if output.stat().st_size > _MAX_OUTPUT:
                return _error(f"wrote more than {_MAX_OUTPUT >> 20} MiB")
            return _said(json.loads(output.read_text(encoding="utf-8")), code)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return _error(f"ended with exit code {code} and wrote no report that can be read")


def _run(command: list[str], folder: str, seconds: float) -> int:
    """The exit code. Raises TimeoutExpired once it and all that it started are gone."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=seconds)
    finally:
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


def _said(report: Any, code: int) -> CodeScan:
    """modelscan's report, checked. Raises KeyError, TypeError or ValueError where it is none."""
    summary = report["summary"]
    scanned, version = summary["scanned"]["total_scanned"], summary["modelscan_version"]
    skipped = summary.get("skipped", {}).get("total_skipped", 0)
    if not (isinstance(scanned, int) and isinstance(skipped, int) and isinstance(version, str)):
        raise TypeError("summary")
    issues = tuple(f"{_text(issue, 'severity').lower()}: {_line(issue)}" for issue in _items(report["issues"]))
    errors = tuple(_line(error) for error in _items(report["errors"]))
    if code not in (_CLEAN, _FOUND, _FAILED, _NOTHING) or (code == _FOUND) != bool(issues):
        errors = (*errors, f"exit code {code} does not fit {len(issues)} issues")
    if issues:
        verdict = ISSUES
    elif errors or code == _FAILED:
        verdict = ERROR
    else:
        verdict = SKIPPED if code == _NOTHING or scanned < 1 else NONE_FOUND
    return CodeScan(
        tool=_TOOL,
        version=version[:_MAX_TEXT],
        verdict=verdict,
        scanned=scanned,
        issues=issues,
        errors=errors,
        skipped=skipped,
    )


def _items(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError("expected a list of objects")
    return value[:_MAX_ITEMS]


def _line(item: Mapping[str, Any]) -> str:
    return f"{_text(item, 'description')} ({_text(item, 'source')})"


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item[key]
    if not isinstance(value, str):
        raise TypeError(f"expected text under {key}")
    return " ".join(value.split())[:_MAX_TEXT]


def _error(reason: str) -> CodeScan:
    return CodeScan(tool=_TOOL, version=None, verdict=ERROR, errors=(reason,))
