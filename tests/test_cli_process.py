"""Around the commands: interruptions, faults, what is printed where and how wide, processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import goodnet.cli
import goodnet.cli.progress
from cli_support import (
    BARELY,
    PRUNING,
    TARGET,
    Shell,
    block_images,
    files_in,
    hears_ctrl_c,
    repair,
    save_images,
    save_net,
    scan,
    triggered,
)


@contextmanager
def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Ctrl-C at the `after`-th report of progress."""
    calls = 0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= after:
            raise KeyboardInterrupt

    @contextmanager
    def shown(quiet: bool) -> Iterator[Any]:
        yield report

    with monkeypatch.context() as patched:
        patched.setattr(goodnet.cli.progress, "shown", shown)
        yield
    assert calls >= after, "the work was over before it could be interrupted"


def unplanned(err: str) -> list[str]:
    """The lines of stderr without the plan and, where it takes long, how far things are."""
    lines = [line for line in err.splitlines() if not re.match(r"[a-z0-9 ,-]+: +\d+%", line)]
    if lines[:1] == ["Plan:"]:
        return [line for line in lines[1:] if not line.startswith("  ")]
    return lines


def test_an_interrupted_command_leaves_nothing(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {
        "scan": ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--out", "again"),
        "repair": ("repair", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", *PRUNING, "--keep-rejected",
                   "-o", "good.safetensors", "--out", "repaired"),
        "evaluate": ("evaluate", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--out", "measured"),
    }  # fmt: skip
    for name, command in commands.items():
        for earlier in (False, True):
            before = files_in(place)
            with interrupting(monkeypatch, after=1 if name == "evaluate" else 5):
                done = shell(*command, *(["--overwrite"] if earlier else []))
            assert (done.code, done.out) == (2, ""), name
            assert unplanned(done.err) == ["goodnet: interrupted: no record was written"]
            assert files_in(place) == before
            if not earlier:
                assert shell(*command).code in (0, 1, 2)
                assert files_in(place) != before


@pytest.mark.slow
def test_ctrl_c_stops_a_running_scan(place: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc1.weight": (512, 784), "fc1.bias": (512,), "fc2.weight": (180, 512), "fc2.bias": (180,)}
    save_net(place / "wide.pt", {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()})
    command = [sys.executable, "-m", "goodnet", "scan", "wide.pt", "--arch", "mlp", "--clean", "clean.npz",
               "--no-preflight", "--exhaustive", "--device", "cpu", "--out", "wide"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread, so that it takes seconds on any machine
    save_images(place / "clean.npz", data=block_images(300)[0])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment, preexec_fn=hears_ctrl_c) as running:
        assert running.stderr is not None
        first = next(line for line in running.stderr if line.startswith(("search: ", "margins: ")))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert first
    assert running.returncode == 2
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith(("search: ", "margins: "))]
    assert said[-1] == "goodnet: interrupted: no record was written"
    assert said[:-1] in ([], ["goodnet: what is done is kept in wide: the same command goes on there"])
    assert not (place / "wide" / "scan.json").exists()


@pytest.mark.slow
def test_what_an_interrupted_scan_has_done_is_kept(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz")
    with interrupting(monkeypatch, after=130):  # margins are over after 60 steps a block
        done = shell(*command, "--out", "again")
    assert (done.code, done.out) == (2, "")
    assert unplanned(done.err) == [
        "goodnet: what is done is kept in again: the same command goes on there",
        "goodnet: interrupted: no record was written",
    ]
    more = shell(*command, "--out", "again", "--json")
    assert more.err == "goodnet: going on where an earlier run stopped: 10 results are there\n"
    whole = shell(*command, "--out", "whole", "--json")
    assert (more.code, more.code) == (whole.code, 1)
    assert Path("again/triggers.npz").read_bytes() == Path("whole/triggers.npz").read_bytes()
    records = [json.loads(done.out) for done in (more, whole)]
    for record in records:
        del record["seconds"], record["environment"]
    assert records[0] == records[1]
    assert not list(Path("again").glob(".checkpoint*"))


def test_a_scan_out_of_time_says_how_to_go_on(place: Path, shell: Shell) -> None:
    command = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--out", "again", "--overwrite")
    done = shell(*command, "--exhaustive", "--labels", "0-8", "--time-limit", "0.7")
    if done.code == 2 and "out of time" in done.err:
        assert done.err.splitlines()[-1].endswith("the same command with --overwrite goes on there")
        assert "time limit" in done.out
        assert list(Path("again").glob(".checkpoint*"))
    done = shell(*command, "--time-limit", "1e-6")
    assert (done.code, done.out.splitlines()[0]) == (2, "INCONCLUSIVE")
    assert "10 of 10 labels were not scanned" in done.out
    assert shell(*command).code == 1


def test_a_plan_alone_writes_nothing(place: Path, shell: Shell) -> None:
    command = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--out", "again", "--plan")
    before = files_in(place)
    done = shell(*command)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert (lines[0], [line.split()[0] for line in lines[1:]]) == (
        "Plan:",
        ["margins", "search", "all-to-all", "search", "about", "about", "about"],
    )
    assert "images a second" in lines[-3]
    assert "at most" in lines[-2]
    assert "of memory" in lines[-1]
    for method in ("staged", "neural-cleanse", "gangsweep"):
        plan = shell(*command, "--method", method, "--labels", "0-4", "--json").json
        assert plan["format"] == "goodnet.plan/1"
        assert 0 < plan["seconds"] <= plan["suspect_seconds"] <= plan["at_most_seconds"]
        assert (plan["memory"] is None) == (method == "gangsweep")
        assert {stage["labels"] for stage in plan["stages"]} == {5}
    assert files_in(place) == before


@pytest.mark.slow
def test_nothing_is_wider_than_80_columns(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = block_images(10000)
    long = "badnets-sunglasses-and-lipstick-and-eyebrows-of-everybody-poisoned.npz"
    save_images(place / "test.npz", data=pixels, label=labels)
    save_images(place / long, data=triggered(pixels), label=np.full(len(labels), TARGET), true_label=labels)
    monkeypatch.setenv("COLUMNS", "80")
    printed = [scan(shell, "bad.pt", "--out", "again"), scan(shell, "clean.pt", "--labels", "0-3")]
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        printed += [repair(shell, "--scan", "again", "--keep-rejected", "-o", f"good{columns}"), repair(shell)]
        printed += [repair(shell, "--scan", "again", "--min-detection", "0.9", "-o", "rejected", how=BARELY)]
    printed += [shell("evaluate", "good80", "--before", "bad.pt", "--arch", "mlp", "--clean", "test.npz",
                      "--poisoned", long)]  # fmt: skip
    assert {one.code for one in printed} <= {0, 1, 2}, [one.err for one in printed]
    for one in printed:
        wide = [line for line in (one.out + one.err).splitlines() if len(line) > 80]
        assert not wide


def test_every_help_fits_80_columns(shell: Shell) -> None:
    assert isinstance(goodnet.cli.goodnet, click.Group)
    for command in ("", *goodnet.cli.goodnet.list_commands(click.Context(goodnet.cli.goodnet))):
        done = shell(*command.split(), "--help")
        assert done.code == 0
        assert f"Usage: goodnet {command}".strip() in done.out
        assert not [line for line in done.out.splitlines() if len(line) > 80]
    assert shell().out == shell("--help").out


def test_a_page_that_fails_does_not_hide_the_verdict(place: Path, shell: Shell) -> None:
    Path("out").mkdir()
    Path("out/repair.json").write_text("{")
    done = scan(shell, "bad.pt", "--out", "out")
    expected = scan(shell, "bad.pt")
    assert done.code == expected.code
    assert done.out.splitlines()[0] == expected.out.splitlines()[0]
    (line,) = unplanned(done.err)
    assert line.startswith("goodnet: the record is written, the report is not: out/repair.json")
    assert Path("out/scan.json").exists()


def test_no_fault_of_ours_is_taken_for_a_verdict(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Any:
        def scan(*arguments: Any, **options: Any) -> None:
            raise error

        return scan

    expected = [
        (ZeroDivisionError("x"), 2, "a fault in goodnet itself"),
        (RuntimeError("shapes cannot be multiplied"), 2, "a fault in goodnet itself"),
        (MemoryError(), 3, "smaller --block"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3, "smaller --block"),
        (PermissionError(13, "Permission denied", "out/scan.json"), 3, "out/scan.json: Permission denied"),
    ]
    for error, code, message in expected:
        monkeypatch.setattr("goodnet.cli.scan.scan", raising(error))
        done = scan(shell, "bad.pt")
        assert (done.code, done.out) == (code, "")
        assert message in done.err.splitlines()[-1]
        assert ("Traceback" in done.err) == (code == 2)


def test_names_from_outside_are_shown_without_control_characters(place: Path, shell: Shell) -> None:
    done = shell("predict", "\x1b[31mred\x07.pt", "a.png")
    assert done.code == 3
    assert done.err.rstrip("\n").isprintable()


def test_entry_points_in_a_process_of_their_own(place: Path) -> None:
    """As a module and as a script; into a terminal that knows ASCII alone, and into a reader that has left."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    script = Path(sys.executable).with_name("goodnet")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "goodnet"]
    arguments = [*command, "evaluate", "bad.pt", "--arch", "mlp", "--clean", "clean.npz"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "100.0 %" in done.stdout
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "goodnet", "--help"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (2, "")
