"""`goodnet inspect --scan-code`: modelscan's word beside ours; what it skipped or failed at never reads as a pass."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from cli_support import Shell, block_net, save_net
from goodnet import code_scanners
from goodnet.code_scanners import scan_code
from goodnet.errors import UsageError

REAL = shutil.which("modelscan", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
CLEAN: dict[str, Any] = {
    "summary": {
        "scanned": {"total_scanned": 1, "scanned_files": ["net.pt:data.pkl"]},
        "skipped": {"total_skipped": 3, "skipped_files": []},
        "modelscan_version": "9.9.9",
    },
    "issues": [],
    "errors": [],
}
ISSUE = {"description": "Use of unsafe operator 'system'", "source": "data.pkl", "severity": "CRITICAL", "scanner": "x"}
MISSING = {"category": "DEPENDENCY", "description": "please install\n tensorflow", "source": "net.keras"}


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_net(tmp_path / "net.pt", block_net())


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A modelscan of our own: `body` runs with `out`, where the report goes, and `args`."""
    script = folder / "modelscan"
    start = "import json, os, sys, time\nargs = sys.argv[1:]\nout = args[args.index('-o') + 1]\n"
    script.write_text(f"#!{sys.executable}\n{start}{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(code_scanners, "_program", lambda: str(script))


def report(code: int, **changes: Any) -> str:
    return f"open(out, 'w').write({json.dumps(json.dumps({**CLEAN, **changes}))}); sys.exit({code})"


def nothing(**more: Any) -> dict[str, Any]:
    return {"summary": {**CLEAN["summary"], "scanned": {"total_scanned": 0}}, **more}


CASES: dict[str, tuple[str, str, int]] = {
    "clean": (report(0), "none found", 0),
    "issues": (report(1, issues=[ISSUE]), "issues", 1),
    "issues and errors": (report(1, issues=[ISSUE], errors=[MISSING]), "issues", 1),
    "errors": (report(2, errors=[MISSING]), "error", 2),
    "skipped": (report(3, **nothing()), "skipped", 2),
    "skipped for want of a library": (report(3, **nothing(errors=[MISSING])), "error", 2),
    "clean by code, nothing looked at": (report(0, **nothing()), "skipped", 2),
    "clean by code, with errors": (report(0, errors=[MISSING]), "error", 2),
    "errors by code, none named": (report(2), "error", 2),
    "clean by code, with issues": (report(0, issues=[ISSUE]), "issues", 1),
    "issues by code, none named": (report(1), "error", 2),
    "usage": ("sys.exit(4)", "error", 2),
    "killed": ("os.kill(os.getpid(), 9)", "error", 2),
    "no report": ("sys.exit(0)", "error", 2),
    "empty report": ("open(out, 'w')", "error", 2),
    "garbage": ("open(out, 'wb').write(bytes(range(256)) * 9)", "error", 2),
    "a list": ("open(out, 'w').write('[]')", "error", 2),
    "nested": ("open(out, 'w').write('[' * 100000)", "error", 2),
    "words for numbers": (report(0, summary={**CLEAN["summary"], "scanned": {"total_scanned": "1"}}), "error", 2),
    "numbers for words": (report(1, issues=[{**ISSUE, "description": 3}]), "error", 2),
    "issues that are none": (report(1, issues=["x"]), "error", 2),
    "without errors": (f"open(out, 'w').write({json.dumps(json.dumps({'summary': {}}))})", "error", 2),
    "too much": ("open(out, 'wb').truncate(17 << 20)", "error", 2),
}


@pytest.mark.parametrize("name", CASES)
def test_every_ending(name: str, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    body, verdict, code = CASES[name]
    fake(tmp_path, monkeypatch, body)
    done = shell("inspect", "net.pt", "--scan-code", "--json")
    (said,) = json.loads(done.out)["code_scanners"]
    assert (said["tool"], said["verdict"], done.code) == ("modelscan", verdict, code)
    assert (verdict == "error") <= bool(said["errors"]) or name == "errors by code, none named"
    assert all("\n" not in line for line in (*said["issues"], *said["errors"]))
    words = shell("inspect", "net.pt", "--scan-code")
    assert words.code == code
    assert f": {verdict} (" in words.out
    assert ("none found" in words.out) == (verdict == "none found")


def test_what_takes_too_long_is_ended_with_all_that_it_started(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']); open('%s', 'w').write(str(p.pid)); time.sleep(60)"
    )
    fake(tmp_path, monkeypatch, child % (tmp_path / "pid"))
    begun = time.monotonic()
    (said,) = scan_code(net, seconds=3.0)
    assert time.monotonic() - begun < 30
    assert (said.verdict, said.errors) == ("error", ("stopped after 3 s",))
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    ends = time.monotonic() + 10  # a signal that was sent may still be on its way
    while _runs(state) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _runs(state)


def _runs(state: Path) -> bool:
    """Whether the process of this /proc file is neither gone nor a zombie; False where there is no /proc."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hostile_words_do_not_reach_the_terminal(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    words = "\x1b[31m\u202eevil\nsecond line" + "x" * 5000
    many = [{**ISSUE, "description": words, "source": words}] * 50
    fake(tmp_path, monkeypatch, report(1, issues=many, summary={**CLEAN["summary"], "modelscan_version": "\x1b[2J1"}))
    done = shell("inspect", "net.pt", "--scan-code")
    assert done.code == 1
    assert not {"\x1b", "\u202e"} & set(done.out)
    assert "and 30 more" in done.out
    assert max(map(len, done.out.splitlines())) < 1000


def test_settings_beside_the_model_are_not_taken(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """modelscan reads modelscan-settings.toml in the folder that it is started in: a stranger's may lie there."""
    (tmp_path / "modelscan-settings.toml").write_text("x")
    there = "{'cwd': os.getcwd(), 'files': os.listdir('.')}"
    fake(tmp_path, monkeypatch, f"json.dump({there}, open({str(tmp_path / 'seen')!r}, 'w'))")
    scan_code(net)
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["files"] == []
    assert not Path(seen["cwd"]).exists()


def test_without_modelscan_one_line_says_how_to_get_it(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    done = shell("inspect", "net.pt", "--scan-code")
    assert done.code == 3
    assert "pip install 'goodnet[scan-code]'" in done.err
    assert done.err.count("\n") == 1
    assert shell("inspect", "net.pt").code == 0
    assert "code_scanners" not in json.loads(shell("inspect", "net.pt", "--json").out)


def test_a_program_that_cannot_be_started(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_scanners, "_program", lambda: str(net))
    (said,) = scan_code(net)
    assert said.verdict == "error"


def test_a_refused_file_stays_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    fake(tmp_path, monkeypatch, report(0))
    done = shell("inspect", "module.pt", "--scan-code")
    assert done.code == 3
    assert "none found" in done.out


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.skipif(REAL is None, reason="needs modelscan: pip install 'goodnet[scan-code]'")
def test_the_real_modelscan(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    monkeypatch.setattr(code_scanners, "_program", lambda: REAL)
    done = shell("inspect", "net.pt", "--scan-code", "--json")
    (said,) = json.loads(done.out)["code_scanners"]
    assert (done.code, said["verdict"], said["issues"], said["scanned"]) == (0, "none found", [], 1)
    torch.save({"fc1.weight": Code()}, tmp_path / "code.pt")
    done = shell("inspect", "code.pt", "--scan-code", "--json")
    (said,) = json.loads(done.out)["code_scanners"]
    assert (done.code, said["verdict"]) == (3, "issues")  # refused by us, too
    assert said["issues"][0].startswith("critical: Use of unsafe operator 'system'")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x00")
    assert [scan.verdict for scan in scan_code(tmp_path / "net.onnx")] == ["skipped"]
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    assert scan_code(tmp_path / "broken.h5")[0].verdict in ("error", "skipped")
    with h5py.File(tmp_path / "lambda.h5", "w") as file:
        layers = {"layers": [{"class_name": "Lambda", "config": {}}]}
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
    assert scan_code(tmp_path / "lambda.h5")[0].verdict == "issues"


def test_no_scanner_is_a_mistake_of_the_user(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="modelscan"):
        scan_code(net)
