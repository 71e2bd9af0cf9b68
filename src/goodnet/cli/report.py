"""`goodnet report`."""

from __future__ import annotations

from pathlib import Path

import click

from goodnet.report import write_report
from goodnet.report.figures import visible


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html in FOLDER.")
def report_command(folder: Path, output: Path | None) -> int:
    """Writes the HTML page again from the records in FOLDER."""
    click.echo(f"Report: {visible(str(write_report(folder, output)))}")
    return 0
