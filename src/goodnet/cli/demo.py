"""`goodnet demo`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from goodnet.cli import progress
from goodnet.cli.options import command_line
from goodnet.cli.output import print_table, print_text
from goodnet.demo import run_demo
from goodnet.report import write_report
from goodnet.report.terminal import evaluate_table, scan_summary


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-demo"), show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in the same folder.")
@click.option("--json", "as_json", is_flag=True, help="Quiet, but for the report's path.")
def demo_command(out: Path, seed: int, overwrite: bool, as_json: bool) -> int:
    """Shows all of goodnet on drawn faces, in about three minutes.

    Plants a backdoor (lipstick) in a face recogniser, scans it and a clean one,
    repairs it, measures before and after, and ends with the report.
    """

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    with progress.shown(as_json) as report:
        found = run_demo(out, seed=seed, overwrite=overwrite, command=command_line(), say=say, progress=report)
    for title, record in (("The backdoored net", found.badnet), ("The clean net", found.clean)):
        say(f"\n{title}\n{scan_summary(record)}")
    if found.repair is not None and found.measured is not None and not as_json:
        verdict = "accepted" if found.repair.accepted else "not accepted"
        say(f"\nRepaired ({verdict}), measured on new faces:")
        print_table(evaluate_table(found.measured))
        print_text(f"Why {verdict}: {'; '.join(found.repair.reasons)}.")
    page = write_report(out)
    click.echo(json.dumps({"report": str(page)}) if as_json else f"Report: {page}")
    return 0
