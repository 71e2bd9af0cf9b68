"""Full disks, kills, folders that cannot be written to or are in use, records of a later goodnet: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from cli_support import PRUNING, Shell, block_net, files_in, save_net
from goodnet.export import save_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier
from goodnet.outputs import claimed
from goodnet.strict_json import writing_record
from test_cli_process import interrupting, unplanned

SCAN = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--block", "160", "--out", "found")
REPAIR = ("repair", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", *PRUNING, "--keep-rejected",
          "-o", "good.safetensors", "--out", "repaired")  # fmt: skip
EVALUATE = ("evaluate", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--out", "measured")
EXPORT = ("export", "bad.pt", "--arch", "mlp", "-o", "net.safetensors")
PLOT = ("inspect", "bad.pt", "--arch", "mlp", "--plot", "net.svg")
ATTACK = (
    "attack",
    "--clean",
    "clean.npz",
    "--arch",
    "mlp",
    "--attack",
    "patch",
    "--epochs",
    "1",
    "--out",
    "attacked",
)
COMMANDS = {command[0]: command for command in (SCAN, REPAIR, EVALUATE, EXPORT, PLOT, ATTACK)}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_what_was_there_stays(name: str, place: Path, shell: Shell) -> None:
    for size in (600,) if name == "scan" else (0, 600):
        before = files_in(place)
        with full_disk(size):
            done = shell(*COMMANDS[name])
        (line,) = unplanned(done.err)
        assert (done.code, done.out) == (3, ""), done.err
        assert re.fullmatch(r"goodnet: .*File too large; check the path and free space", line)
        left = set(files_in(place)) - set(before)
        assert not {path for path in left if path.endswith((".json", ".npz", ".safetensors", ".svg"))}
        assert not {path for path in left if path.endswith((".part", ".lock"))}
    assert shell(*COMMANDS[name]).code in (0, 1, 2)
    before = files_in(place)
    with full_disk(600):
        assert shell(*COMMANDS[name], "--overwrite").code == 3
    assert files_in(place) == before


def test_what_a_record_goes_with_is_not_touched_where_the_record_does_not_fit(tmp_path: Path) -> None:
    record, beside = tmp_path / "scan.json", tmp_path / "triggers.npz"
    for path in (record, beside):
        path.write_text("old")

    def save() -> None:
        with writing_record({"format": "goodnet.scan/1", "text": "x" * 1000}, record):
            beside.write_text("new")

    with full_disk(600), pytest.raises(OSError, match="File too large"):
        save()
    assert (record.read_text(), beside.read_text()) == ("old", "old")
    save()
    assert beside.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.json", "triggers.npz"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_said_first(
    name: str, place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))  # root may always
    before = files_in(place)
    done = shell(*COMMANDS[name])
    assert (done.code, done.out) == (3, "")
    assert len(done.err.splitlines()) == 1
    assert "cannot be written to" in done.err
    assert files_in(place) == before


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no folder that nobody can write to")
def test_nor_one_where_even_root_may_not_write(place: Path, shell: Shell) -> None:
    for command in (SCAN, REPAIR, EVALUATE, ATTACK):
        done = shell(*command[:-1], "/sys/goodnet")
        assert (done.code, done.out) == (3, "")
        assert len(unplanned(done.err)) == 1
        assert "/sys" in done.err
    assert not Path("good.safetensors").exists()


@pytest.mark.slow
def test_a_kill_at_any_step_of_saving_leaves_whole_files(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("saving_driver.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, one in found.items():
        assert (name, one["wrong"], one["code"]) == (name, [], 0)
        assert one["steps"] == 2 * len(one["files"]) + 1, name
    assert {"scan.json", "triggers.npz"} < set(found["scan"]["files"])
    assert {"repair.json", "triggers.npz", "good.safetensors"} < set(found["repair"]["files"])


def test_two_runs_do_not_share_a_folder(place: Path, shell: Shell) -> None:
    program = (
        "import pathlib, sys; from goodnet.outputs import claimed\n"
        "with claimed(pathlib.Path('found')): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = files_in(place)
        for command in (SCAN, (*EVALUATE[:-1], "found"), (*REPAIR[:-1], "found"), (*ATTACK[:-1], "found")):
            done = shell(*command)
            assert (done.code, done.out) == (3, "")
            assert unplanned(done.err) == [
                "goodnet: --out: found is in use by another run; wait for its end, or name another folder"
            ]
        assert files_in(place) == before
        other.send_signal(signal.SIGKILL)
    assert (place / "found" / ".goodnet.lock").exists()
    assert shell(*EVALUATE[:-1], "found").code == 0
    assert not (place / "found" / ".goodnet.lock").exists()


def test_a_claim_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    with claimed(None), claimed(tmp_path / "a" / "b"), claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with suppress(KeyError), claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
        raise KeyError
    assert files_in(tmp_path).keys() == {"a", "a/b", "a/b/kept"}


def test_records_of_a_later_goodnet_are_named_as_such(place: Path, shell: Shell) -> None:
    Path("old").mkdir()
    for record, later in (
        ("scan", "goodnet.scan/2"),
        ("repair", "goodnet.repair/10"),
        ("evaluate", "goodnet.evaluate/2"),
    ):
        text = json.dumps({"format": later, "verdict": "perhaps"})
        Path(f"old/{record}.json").write_text(text)
        line = f"goodnet: old/{record}.json: a record of format {later}, of a later goodnet; update goodnet to read it"
        done = shell("report", "old")
        assert (done.code, done.out, done.err) == (3, "", line + "\n")
        if record == "scan":
            done = shell(*REPAIR, "--scan", "old")
            assert (done.code, done.out, done.err) == (3, "", line + "\n")
        assert Path(f"old/{record}.json").read_text() == text
        Path(f"old/{record}.json").unlink()
    Path("old/scan.json").write_text('{"format": "goodnet.scan/two"}')
    assert "got none of them" in shell("report", "old").err


def test_a_checkpoint_of_rubbish_is_left_out(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupting(monkeypatch, after=130):
        assert shell(*SCAN[:-4], "--out", "found").code == 2
    (kept,) = Path("found").glob(".checkpoint-*/*.npz")
    raw = kept.read_bytes()
    np.savez(kept, **{"rubbish": np.zeros(3)})
    kept.with_name("000001.npz").write_bytes(raw[: len(raw) // 2])
    kept.with_name("000002.npz").write_bytes(b"")
    done = shell(*SCAN[:-4], "--out", "found", "--json")
    assert "going on" not in done.err
    assert done.code == 1
    assert not list(Path("found").glob(".checkpoint-*"))


def test_what_is_written_has_the_permissions_of_any_new_file(place: Path, shell: Shell) -> None:
    old = os.umask(0o027)
    try:
        net = load_classifier(save_net(place / "net.pt", block_net()), arch="mlp")
        save_goodnet(goodnet_from(net, net), place / "good.safetensors")
        for command in (EVALUATE, EXPORT, PLOT, ATTACK):
            assert shell(*command).code == 0
    finally:
        os.umask(old)
    written = [place / "good.safetensors", place / "net.safetensors", place / "net.svg"]
    written += [path for folder in ("measured", "attacked") for path in (place / folder).rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o640"}
