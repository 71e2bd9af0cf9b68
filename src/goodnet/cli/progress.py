"""Progress on stderr: a bar with ETA on a terminal, a line now and then in a log, nothing under --json or --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from goodnet.cli import output
from goodnet.progress import Progress as Report
from goodnet.progress import silent

_LOG_EVERY = 10.0
_QUIET_FOR = 2.0


@contextmanager
def shown(quiet: bool) -> Iterator[Report]:
    """Gives the callable that work reports to."""
    if quiet or output.quiet():
        yield silent
    elif sys.stderr.isatty():
        with _bars() as bars, output.notes_through(_above(bars)):
            yield _OnTerminal(bars)
    else:
        yield _InLog()


def _above(bars: Progress) -> Callable[[str], None]:
    return lambda text: bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _OnTerminal:
    """A bar a stage; a stage that begins again starts its bar and its clock anew."""

    def __init__(self, bars: Progress):
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        elif done < self.bars.tasks[self.bars.task_ids.index(self.tasks[stage])].completed:
            self.bars.reset(self.tasks[stage], total=total)
        self.bars.update(self.tasks[stage], completed=done, total=total)


class _InLog:
    """At most a line every ten seconds, none for stages that are over in two."""

    def __init__(self) -> None:
        self.stage, self.done, self.started, self.spoke = "", 0, 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done < self.done:  # another, or the same again
            self.stage, self.started, self.spoke = stage, now, now - _LOG_EVERY + _QUIET_FOR
        self.done = done
        if now - self.spoke < _LOG_EVERY or done == 0:
            return
        self.spoke = now
        left = (now - self.started) / done * (total - done)
        click.echo(f"{stage}: {done / total:.0%}, {_minutes(left)} left", err=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
