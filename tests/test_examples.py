"""The examples start, say what they take, and on the competition's own files do what they claim."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_python_example_says_what_it_takes() -> None:
    done = run(sys.executable, EXAMPLES / "csaw.py", "--help")  # imports all that it uses
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("data", "--scan", "--labels", "--out"))


def test_shell_example_says_what_it_takes() -> None:
    assert run("sh", "-n", EXAMPLES / "csaw.sh").returncode == 0
    done = run("sh", EXAMPLES / "csaw.sh", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "csaw.sh DATA [OUT]" in done.stdout


@pytest.mark.slow
def test_python_example_on_a_real_net(shared_data: Path, tmp_path: Path) -> None:
    done = run(sys.executable, EXAMPLES / "csaw.py", shared_data / "faces", "--labels", "8", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "anonymous_1_bd_weights.h5: suspect, labels [0]" in done.stdout
    assert "five triggered faces:" in done.stdout
    assert (tmp_path / "goodnet.safetensors").is_file()


@pytest.mark.thorough  # a minute; the Python example beside it does the same steps
def test_shell_example_on_a_real_net(shared_data: Path, tmp_path: Path) -> None:
    done = run("sh", EXAMPLES / "csaw.sh", shared_data / "faces", tmp_path / "out", LABELS="0-11")
    assert done.returncode == 0, done.stderr
    assert "SUSPECT" in done.stdout
    assert {"scan", "repair", "evaluate", "goodnet.safetensors"} == {p.name for p in (tmp_path / "out").iterdir()}
