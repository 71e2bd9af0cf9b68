"""The notebooks run from top to bottom and show what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def notebook(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")))


def test_the_notebooks_are_these() -> None:
    assert NAMES == ["repair", "vet"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_of_a_run(name: str) -> None:
    """No outputs, numbers or names of kernels: a diff then shows what somebody wrote, and no figure grows old."""
    read = notebook(name)
    assert (read["nbformat"], read["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in read["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), cell["id"], "exec")  # plain Python, no magic


def need_jupyter() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")):
        reason = "nbclient or ipykernel is not installed: pip install -e '.[notebooks]'"
        if os.environ.get("GOODNET_NEED_NOTEBOOKS"):
            pytest.fail(reason)
        pytest.skip(reason)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What it printed, and how many pictures it showed; in a kernel of its own, which writes into `folder` alone."""
    need_jupyter()
    import nbformat
    from nbclient import NotebookClient

    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(folder))
    read = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(read)
    NotebookClient(read, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in read.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def row(printed: str, name: str) -> list[float]:
    """The percentages in the last line that begins with `name`."""
    line = re.findall(rf"^{name} .*%.*$", printed, re.MULTILINE)[-1]
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


@pytest.mark.slow
def test_vetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOODNET_SANDBOX", "")  # as users have it, with a kernel's own stdout
    printed, pictures = run("vet", tmp_path, monkeypatch)
    assert "suspect [0]" in printed
    assert pictures == 3
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("flagged")] == ["0"]
    before, after = (json.loads(found) for found in re.findall(r"^(?:before|after): +(\[.*\])$", printed, re.MULTILINE))
    assert after.count(0) >= 4 > before.count(0)
    assert "class" in Path(printed.split()[-1]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_repairing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, pictures = run("repair", tmp_path, monkeypatch)
    assert pictures == 1
    assert "nc-unlearn: accepted" in printed
    assert "fine-pruning: not accepted" in printed
    accuracy, asr = row(printed, "before")
    assert accuracy > 95
    assert asr > 85
    accuracy, _, asr, refused = row(printed, "nc-unlearn")
    assert accuracy > 93
    assert asr < 10
    assert refused > 80
    watched, disagreeing = row(printed, "watch"), row(printed, "disagreement")
    assert watched[0] <= disagreeing[0]
    assert watched[1] < 10
    onnx, goodnet = (re.search(rf"^{name}: +(\[.*\])$", printed, re.MULTILINE) for name in ("ONNX", "goodnet"))
    assert onnx is not None
    assert goodnet is not None
    assert onnx[1] == goodnet[1]
    assert onnx[1].count("10") >= 5
