"""From Python: the README's lines on a net with a known backdoor, and an import that costs nothing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import goodnet
from cli_support import TARGET, block_images, fill, save_images, triggered
from goodnet import api
from goodnet.auto import CANDIDATES, auto
from goodnet.errors import UsageError

README = Path(__file__).resolve().parents[1] / "README.md"
NAMES = ("load", "scan", "repair", "evaluate", "report")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path)
    pixels, labels = block_images(seed=1)
    save_images(tmp_path / "test.npz", data=pixels, label=labels)
    save_images(tmp_path / "triggered.npz", data=triggered(pixels), label=np.full(60, TARGET), true_label=labels)
    (tmp_path / "bad.pt").rename(tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_readmes_ten_lines(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dear candidates, which are tried first and have tests of their own, are left out."""
    monkeypatch.setattr(api, "auto", partial(auto, candidates=CANDIDATES[3:]))
    (code,) = re.findall(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    scanned, repaired, measured = names["scanned"], names["repaired"], names["measured"]
    assert (scanned.verdict, scanned.flagged_labels) == ("suspect", (TARGET,))
    assert repaired.accepted
    assert measured.acc.value >= 0.95
    assert measured.before.poisoned[0].asr.value == 1
    assert measured.poisoned[0].asr.value <= 0.1
    assert f"suspect ({TARGET},)" in capsys.readouterr().out
    assert all(Path("out", name).is_file() for name in ("report.html", "good.safetensors", "goodnet.sarif"))
    assert goodnet.load("out/good.safetensors").refuses
    with pytest.raises(UsageError, match=r"goodnet\.sarif is there already"):
        goodnet.report("out", sarif="out/goodnet.sarif")


def test_nothing_to_repair_is_said(place: Path) -> None:
    with pytest.raises(UsageError, match="the scan is clean; there is none to repair"):
        goodnet.repair(goodnet.load("clean.pt", arch="mlp"), "clean.npz")


def test_importing_goodnet_imports_nothing_else() -> None:
    heavy = "{'torch', 'numpy', 'h5py', 'click', 'rich', 'jinja2'}"
    assert python(f"import sys, goodnet; dir(goodnet); print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("first", ["", "import goodnet.cli, goodnet.repair.anp"])
def test_each_name_is_called_whatever_was_imported_first(first: str) -> None:
    code = f"""
{first}
import goodnet, goodnet.errors
from goodnet import evaluate, load, repair, report, scan
for call in (lambda: report("nowhere"), lambda: goodnet.report("nowhere"), lambda: load("nowhere")):
    try:
        call()
    except goodnet.errors.GoodnetError as error:
        print(error)
for one in (scan, goodnet.scan, repair, evaluate):
    try:
        one()
    except TypeError as error:
        print(error)
from goodnet.scan import METHODS
import goodnet.scan as module
assert module.METHODS is METHODS and callable(module)
"""
    lines = python(code).splitlines()
    assert len(lines) == 7
    assert all("nowhere: expected a" in line for line in lines[:3])
    assert [line.partition("(")[0] for line in lines[3:]] == ["scan", "scan", "repair", "evaluate"]


def test_each_name_has_a_docstring() -> None:
    assert set(goodnet.__all__) == set(NAMES) <= set(dir(goodnet))
    for name in NAMES:
        said = inspect.getdoc(getattr(api, name))
        assert said is not None
        assert "Args:" in said
        assert "Raises:" in said
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        goodnet.nothing  # noqa: B018


def test_help_and_reports_do_not_wait_for_torch() -> None:
    code = "import sys, goodnet.cli; goodnet.cli.run([{}]); print('torch' in sys.modules)"
    for arguments in ("'--help'", "'report', 'nowhere'"):
        assert python(code.format(arguments)).splitlines()[-1] == "False"
