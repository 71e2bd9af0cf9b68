"""`goodnet repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from goodnet.cli import progress
from goodnet.cli.options import (
    command_line,
    data_range_option,
    model_options,
    read_clean,
    run_options,
    take_model_options,
)
from goodnet.errors import DataError
from goodnet.guard.disagreement import Disagreement
from goodnet.models.classifier import Classifier
from goodnet.record import RepairRecord, ScanRecord, read_record, to_json
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repairing import Limits, Output, repair
from goodnet.report import write_report
from goodnet.report.terminal import repair_table
from goodnet.triggers.files import read_triggers
from goodnet.triggers.trigger import Trigger


@click.command("repair")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--clean", required=True, type=click.Path(path_type=Path), help="HDF5, folder or npz of clean images.")
@click.option("--scan", "scan_folder", type=click.Path(path_type=Path), help="--out folder of a scan of MODEL.")
@click.option("--method", type=click.Choice(["fine-pruning"]), default="fine-pruning", show_default=True)
@click.option("-o", "--goodnet", type=click.Path(path_type=Path), help="Where the GoodNet goes.")
@click.option("--layer", help="Whose channels to prune; default: the last convolution (DeepID: conv_3).")
@click.option("--epochs", type=click.IntRange(0), default=10, show_default=True, help="Of tuning; 0 prunes only.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True)
@click.option("--max-accuracy-drop", type=float, default=0.05, show_default=True,
              help="Pruning stops there on the choosing split; acceptance asks it of the judging split.")  # fmt: skip
@click.option("--max-asr", type=float, default=0.10, show_default=True, help="Of the scan's triggers, to be accepted.")
@click.option("--min-detection", type=float, default=0.0, show_default=True, help="Of the same, to be accepted.")
@click.option("--max-fpr", type=float, help="Refuse at most this share of the choosing split; default: no bound.")
@click.option("--keep-rejected", is_flag=True, help="Write the GoodNet even if it is not accepted.")
@data_range_option
@model_options
@run_options
def repair_command(model: Path, clean: Path, **options: Any) -> int:
    """Turns MODEL into a GoodNet whose class N means "this input is triggered".

    The clean images are split in three: to fit, to choose, to judge. With --scan,
    the triggers found there judge the repair. Exits with 0 if accepted, 1 if not,
    2 if there was nothing to judge the backdoor with, 3 on wrong input.
    """
    model_opts = take_model_options(options)
    limits = Limits(**{name: options[name] for name in ("max_accuracy_drop", "max_asr", "min_detection")})
    method = FinePruning(
        layer=options["layer"],
        max_accuracy_drop=limits.max_accuracy_drop,
        epochs=options["epochs"],
        learning_rate=options["learning_rate"],
    )
    output = Output(
        goodnet=options["goodnet"],
        folder=options["out"],
        overwrite=options["overwrite"],
        keep_rejected=options["keep_rejected"],
        arch_name=model_opts.arch,
    )
    classifier = model_opts.load(model)
    images = read_clean(clean, classifier, options["data_range"])
    seed: int = options["seed"]
    triggers: tuple[Trigger, ...] = ()
    if options["scan_folder"] is not None:
        seed, triggers = _found(options["scan_folder"], classifier)
    with progress.shown(options["as_json"]) as report:
        record, _ = repair(
            classifier,
            images,
            method=method,
            guard=Disagreement(max_fpr=options["max_fpr"]),
            triggers=triggers,
            limits=limits,
            output=output,
            seed=seed,
            command=command_line(),
            progress=report,
        )
    if options["out"] is not None:
        write_report(options["out"])
    if options["as_json"]:
        click.echo(to_json(record), nl=False)
    else:
        _say(record)
    return {True: 0, False: 1, None: 2}[record.accepted]


def _found(folder: Path, classifier: Classifier) -> tuple[int, tuple[Trigger, ...]]:
    """Seed of a scan of this net, and the triggers of the labels that it flagged."""
    record = read_record(folder / "scan.json")
    if not isinstance(record, ScanRecord):
        raise DataError(f"--scan: expected {folder / 'scan.json'} to be a scan's record, got {record.format}")
    if record.model.sha256 != classifier.sha256:
        raise DataError(f"--scan: expected a scan of this net, but {folder} is one of {record.model.name}")
    triggers = read_triggers(folder / "triggers.npz")
    return record.method.seed, tuple(trigger for trigger in triggers if trigger.target in record.flagged_labels)


def _say(record: RepairRecord) -> None:
    Console(width=None if Console().is_terminal else 80, highlight=False).print(repair_table(record))
    verdict = {True: "Accepted", False: "Not accepted", None: "Not judged"}[record.accepted]
    click.echo(f"{verdict}: {'; '.join(record.reasons)}.")
    if record.goodnet_file is not None:
        click.echo(f"GoodNet: {record.goodnet_file}")
    elif record.accepted is not True:
        click.echo("No GoodNet was written; --keep-rejected writes it all the same.")
