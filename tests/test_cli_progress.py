"""What progress tells: how long is left, of the stage as it runs now."""

from __future__ import annotations

import pytest

from goodnet.cli import output, progress


def test_a_stage_that_begins_again_is_timed_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = progress._InLog()
    for seconds, stage, done in (
        (0, "a", 0),
        (50, "a", 100),
        (400, "b", 1),
        (500, "a", 1),
        (520, "a", 20),
        (530, "a", 2),
    ):
        clock[0] = float(seconds)
        report(stage, done, 100)
    clock[0] = 545.0
    report("a", 4, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a: 100%, 0 s left", "a: 20%, 80 s left", "a: 4%, 6 min left"]


def test_notes_come_above_the_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Not at the end of a bar's own line, which is drawn anew."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.shown(False) as report:
        report("a", 1, 2)
        output.note("[bold]a[/] note")
    drawn = capsys.readouterr().err
    before, after = drawn.split("[bold]a[/] note")
    assert before.endswith("\x1b[2K")  # its line was emptied first
    assert after.startswith("\n")
    output.note("later")
    assert capsys.readouterr().err == "later\n"


def test_a_bar_begins_again() -> None:
    with progress._bars() as bars:
        report = progress._OnTerminal(bars)
        report("a", 90, 100)
        report("a", 3, 50)
        assert [(task.completed, task.total) for task in bars.tasks] == [(3, 50)]
