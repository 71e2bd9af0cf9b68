"""`goodnet evaluate`."""

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
    remark_on_poisoned,
    run_options,
    take_model_options,
)
from goodnet.cli.output import print_table, print_text, write_page
from goodnet.evaluation import evaluate
from goodnet.outputs import check_folder, claimed
from goodnet.report import words
from goodnet.report.terminal import evaluate_table
from goodnet.strict_json import to_json


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--clean", required=True, type=click.Path(path_type=Path), help="Clean test images with true labels.")
@click.option("--poisoned", multiple=True, type=click.Path(path_type=Path),
              help="Triggered images, labelled with the target; give it once a set.")  # fmt: skip
@click.option("--before", type=click.Path(path_type=Path), help="The net before repair, to compare with.")
@data_range_option
@model_options
@run_options
def evaluate_command(model: Path, clean: Path, poisoned: tuple[Path, ...], **options: Any) -> int:
    """Measures ACC, ASR, RA, detection and FPR of MODEL, a BadNet or a GoodNet.

    Every figure comes with its 95 % interval; with --before, DER too.
    """
    check_folder(options["out"], "evaluate.json", overwrite=options["overwrite"])
    model_opts = take_model_options(options)
    classifier = model_opts.load(model)
    before = None if options["before"] is None else model_opts.load(options["before"])
    images = read_clean(clean, classifier, options["data_range"])
    triggered = [read_clean(path, classifier, options["data_range"]) for path in poisoned]
    with progress.shown(options["as_json"]) as report, claimed(options["out"]):
        record = evaluate(
            classifier,
            images,
            triggered,
            before=before,
            out=options["out"],
            overwrite=options["overwrite"],
            command=command_line(),
            progress=report,
        )
    remark_on_poisoned(triggered)
    write_page(options["out"])
    if options["as_json"]:
        click.echo(to_json(record), nl=False)
    else:
        print_table(evaluate_table(record))
        print_text(words.FIGURES.format(classes=record.model.classes))
    return 0
