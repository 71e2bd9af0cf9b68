"""`goodnet report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from goodnet.cli.views import Views, view_options
from goodnet.errors import DataError, UsageError
from goodnet.fleet_record import NETS, PAGE, SUMMARY, read_fleet
from goodnet.report import read_parts, write_report
from goodnet.report.figures import visible
from goodnet.report.fleet_page import write_summary


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page. Default: report.html in FOLDER.")
@view_options
@click.option("--overwrite", is_flag=True, help="Replace earlier files of --sarif and --junit.")
def report_command(folder: Path, output: Path | None, **options: Any) -> int:
    """Writes the HTML page again from the records in FOLDER.

    With --sarif and --junit also what pipelines read: a run, or a suite, for
    each scan and repair in FOLDER and one level below it. Of many nets' scan
    the summary is written again.
    """
    views = Views.of(options, out=folder, keep=() if output is None else (output,))
    if (folder / SUMMARY).is_file():
        if views.sarif or views.junit:
            raise UsageError(
                f"{folder}: holds many nets; expected a folder of one, as {NETS}/NAME, with --sarif or --junit"
            )
        page = folder / PAGE if output is None else output
        write_summary(read_fleet(folder / SUMMARY), page)
        click.echo(f"Summary: {visible(str(page))}")
        return 0
    parts = read_parts(folder)
    records = [record for part in parts for record in (part.scan, part.repair) if record is not None]
    if not records and (views.sarif or views.junit):
        raise DataError(f"{folder}: expected a scan or a repair for --sarif and --junit, found evaluations alone")
    click.echo(f"Report: {visible(str(write_report(folder, output)))}")
    views.write(*records)
    return 0
