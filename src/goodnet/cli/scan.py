"""`goodnet scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from goodnet.cli import progress
from goodnet.cli.options import (
    command_line,
    data_range_option,
    model_options,
    read_clean,
    run_options,
    take_model_options,
    whole_numbers,
)
from goodnet.cli.output import write_page
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.outputs import check_folder
from goodnet.report.figures import visible
from goodnet.report.terminal import scan_summary
from goodnet.scan import METHODS, Detector, scan
from goodnet.strict_json import to_json

EXIT = {"clean": 0, "suspect": 1, "inconclusive": 2}


@click.command("scan", short_help="Is MODEL backdoored, for which labels, by what trigger?")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--clean", required=True, type=click.Path(path_type=Path), help="HDF5, folder or npz of clean images.")
@click.option("--method", type=click.Choice(list(METHODS.values())), default="neural-cleanse", show_default=True,
              help="gangsweep makes a trigger for each image: a second opinion.")  # fmt: skip
@click.option(
    "--labels", type=whole_numbers, metavar="NUMBERS", help="Only these labels, as 0,5,10-20; never ends in clean."
)
@click.option("--exhaustive", is_flag=True, help="Search every label whole, however many there are.")
@click.option("--false-alarm-rate", type=float, default=0.01, show_default=True,
              help="How often the statistics alone may point at a label of a clean net.")  # fmt: skip
@click.option("--block", type=click.IntRange(1), help="Images a pass and thread: bounds memory.")
@click.option("--no-preflight", is_flag=True, help="Scan even if ACC says that the net is fed the wrong way.")
@data_range_option
@model_options
@run_options
def scan_command(model: Path, clean: Path, **options: Any) -> int:
    """Says whether MODEL is backdoored, for which labels, and shows the trigger.

    Exits with 0 if clean, 1 if suspect, 2 if inconclusive, 3 on wrong input.
    """
    out: Path | None = options["out"]
    check_folder(out, "scan.json", overwrite=options["overwrite"])
    method = _method(options)
    classifier = take_model_options(options).load(model)
    images = read_clean(clean, classifier, options["data_range"])
    with progress.shown(options["as_json"]) as report:
        record = scan(
            classifier,
            images,
            method=method,
            seed=options["seed"],
            labels=options["labels"],
            out=out,
            overwrite=options["overwrite"],
            check_input=not options["no_preflight"],
            command=command_line(),
            progress=report,
        )
    page = write_page(out)
    if options["as_json"]:
        click.echo(to_json(record), nl=False)
    else:
        click.echo(scan_summary(record))
        if page is not None:
            click.echo(f"Report: {visible(str(page))}")
        elif out is None:
            click.echo("Pass --out DIR for the report, the triggers and the record.")
    return EXIT[record.verdict]


def _method(options: dict[str, Any]) -> Detector:
    exhaustive, rate = options["exhaustive"], options["false_alarm_rate"]
    if options["method"] == "neural-cleanse":
        return NeuralCleanse(exhaustive=exhaustive, false_alarm_rate=rate, block=options["block"])
    if options["block"] is not None:
        raise UsageError("--block: expected with --method neural-cleanse, got --method gangsweep")
    return GangSweep(exhaustive=exhaustive, false_alarm_rate=rate)
