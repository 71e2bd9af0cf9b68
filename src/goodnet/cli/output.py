"""What commands print beside their records: at most 80 columns where the output is no terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from goodnet.errors import GoodnetError
from goodnet.outputs import write_text
from goodnet.record import RepairRecord
from goodnet.report import write_report
from goodnet.report.curve import curve_csv, curve_svg
from goodnet.report.figures import visible
from goodnet.report.terminal import WIDTH

_QUIET = "goodnet.quiet"
_writers: list[Callable[[str], None]] = [lambda text: click.echo(text, err=True)]


def quiet_option() -> click.Option:
    """-q, which every command takes; it needs no word of it."""
    return click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_remember,
                        help="Nothing on stderr but errors.")  # fmt: skip


def _remember(context: click.Context, option: click.Parameter, value: bool) -> None:
    context.meta[_QUIET] = context.meta.get(_QUIET, False) or value


def quiet() -> bool:
    """Whether the command that runs was told to say nothing but its answer."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def note(text: str) -> None:
    """A line on stderr that is no error; above the bars, where there are some."""
    if not quiet():
        _writers[-1](text)


@contextmanager
def notes_through(write: Callable[[str], None]) -> Iterator[None]:
    """Hands notes to `write` instead: what draws on the terminal has to know what else is written there."""
    _writers.append(write)
    try:
        yield
    finally:
        _writers.remove(write)


def print_table(table: Table) -> None:
    """A table as wide as the terminal, without blanks at the ends of its lines."""
    console = Console(width=None if Console().is_terminal else WIDTH, highlight=False)
    with console.capture() as printed:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_text(text: str) -> None:
    """A sentence or two, wrapped; no control character in it reaches the terminal."""
    tied = visible(text).replace(" %", "\u00a0%")  # a figure stays on one line with its sign
    for line in textwrap.wrap(tied, WIDTH, break_on_hyphens=False):
        click.echo(line.replace("\u00a0", " "))


def write_curve(record: RepairRecord, folder: Path | None) -> None:
    """The pruning curve beside the record, as CSV and as a picture, where there is one."""
    if folder is not None and record.curve:
        write_text(folder / "pruning-curve.csv", curve_csv(record))
        write_text(folder / "pruning-curve.svg", curve_svg(record))


def write_page(folder: Path | None) -> Path | None:
    """The report of a record that is written already: a page that fails is a warning, for the record stands."""
    if folder is None:
        return None
    try:
        return write_report(folder)
    except (GoodnetError, OSError) as error:
        click.echo(f"goodnet: the record is written, the report is not: {visible(str(error))}", err=True)
        return None
