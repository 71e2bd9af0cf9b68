"""What a terminal, a pipe and a shell get: help on one screen, colours where they are wanted, --quiet, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import goodnet.cli
from cli_support import PRUNING, TARGET, Shell, block_images, repair, save_images, scan, triggered

COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


def test_the_help_is_one_screen_and_knows_every_command(shell: Shell) -> None:
    lines = shell("--help").out.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    start = lines.index("Commands, in the order of use:") + 1
    names = {path.stem for path in Path(goodnet.cli.__file__).parent.glob("*.py")}
    listed = [line.split()[0] for line in lines[start : lines.index("", start)]]
    assert len(listed) == 11
    assert names.issuperset(listed)
    assert len([line for line in lines if line.startswith("  goodnet ")]) == 3


def test_every_example_in_the_help_is_a_command_that_parses(place: Path, shell: Shell) -> None:
    """Each fails at its first file, not at its options."""
    for line in shell("--help").out.splitlines():
        if line.startswith("  goodnet "):
            done = shell(*line.split("    ")[0].split()[1:])
            assert done.code == 3
            assert "No such file" in done.err, done.err


@pytest.mark.slow
def test_quiet_leaves_the_answer_and_the_errors(place: Path, shell: Shell) -> None:
    loud, silent = scan(shell, "bad.pt"), scan(shell, "bad.pt", "--quiet")
    assert "Plan:" in loud.err
    assert (silent.code, silent.err) == (loud.code, "")
    without_seconds = [re.sub(r"searched; .*?(\d[\d,]* forward)", r"searched; \1", done.out) for done in (silent, loud)]
    assert without_seconds[0] == without_seconds[1]
    assert shell("-q", "scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--labels", "3-5").err == ""
    assert scan(shell, "bad.pt", "--plan", "-q").out.startswith("Plan:")  # which was asked for
    wrong = scan(shell, "missing.pt", "-q")
    assert (wrong.code, wrong.err.count("\n")) == (3, 1)
    pixels, labels = block_images()
    save_images(place / "poisoned.npz", data=triggered(pixels), label=np.where(labels == TARGET, 0, labels))
    command = ("evaluate", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--poisoned", "poisoned.npz")
    assert "take care" in shell(*command).err
    assert shell(*command, "-q").err == ""
    assert repair(shell, "-q", "-o", "good.safetensors", "--keep-rejected", how=PRUNING).err == ""
    for command in ("inspect", "bench", "report", "demo"):
        assert "-q, --quiet" in shell(command, "--help").out


def run_command(*arguments: str, tty: bool, **variables: str) -> str:
    """What a process of its own prints, on a terminal of 80 columns or into pipes."""
    command = [sys.executable, "-m", "goodnet", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    if not tty:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout + done.stderr
    pty = pytest.importorskip("pty")
    terminal, end = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=end, stderr=end, stdin=subprocess.DEVNULL):
        os.close(end)
        printed = b""
        while True:
            try:
                block = os.read(terminal, 1 << 16)
            except OSError:  # Linux, where the other end is closed
                block = b""
            if not block:
                break
            printed += block
    os.close(terminal)
    return printed.decode()


@pytest.mark.slow
def test_colours_only_where_they_are_wanted(place: Path) -> None:
    command = ("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--labels", "0-4")
    coloured = run_command(*command, tty=True)
    assert COLOUR.search(coloured)  # the bars
    plain = run_command(*command, tty=True, NO_COLOR="1")
    assert "INCONCLUSIVE" in plain or "SUSPECT" in plain
    assert not COLOUR.search(plain)
    piped = run_command(*command, tty=False)
    assert "Plan:" in piped
    assert "\x1b" not in piped
    assert all(len(line) <= 80 for line in piped.splitlines())


def test_tables_in_a_pipe_have_no_codes(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = shell("evaluate", "bad.pt", "--arch", "mlp", "--clean", "clean.npz")
    assert "ACC" in done.out
    assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(instruction: str) -> str:
        monkeypatch.setenv("_GOODNET_COMPLETE", instruction)
        with pytest.raises(SystemExit) as done:
            goodnet.cli.main()
        assert done.value.code == 0
        return capsys.readouterr().out

    script = asked(f"{name}_source")
    assert "_GOODNET_COMPLETE" in script
    assert f"{name}_complete" in script
    for typed, expected in (("goodnet re", {"repair", "report"}), ("goodnet scan --pre", {"--precision"})):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", typed.split()[-1] if name == "fish" else str(len(typed.split()) - 1))
        assert expected <= set(re.findall(r"[a-z-]+", asked(f"{name}_complete")))
