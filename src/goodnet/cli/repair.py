"""`goodnet repair`."""

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
)
from goodnet.cli.output import print_table, print_text, write_page
from goodnet.errors import DataError, UsageError
from goodnet.guard.disagreement import Disagreement
from goodnet.record import RepairRecord, to_json
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.unlearning import Unlearning
from goodnet.repairing import METHODS, Found, Limits, Output, repair
from goodnet.report.figures import visible
from goodnet.report.terminal import repair_table


@click.command("repair", short_help="Turns a BadNet into a GoodNet with a class N: triggered.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--clean", required=True, type=click.Path(path_type=Path), help="HDF5, folder or npz of clean images.")
@click.option("--scan", "scan_folder", type=click.Path(path_type=Path),
              help="--out folder of a scan of MODEL; gives the triggers to judge by, and the seed.")  # fmt: skip
@click.option("--method", type=click.Choice(list(METHODS.values())), default="fine-pruning", show_default=True)
@click.option("-o", "--goodnet", type=click.Path(path_type=Path), help="Where the GoodNet goes.")
@click.option("--layer", help="Whose channels to prune; default: the last convolution (DeepID: conv_3).")
@click.option("--epochs", type=click.IntRange(0), help="Of training; 0 only prunes. Default: the method's.")
@click.option("--learning-rate", type=float, help="Default: the method's.")
@click.option("--max-accuracy-drop", type=float, default=0.05, show_default=True,
              help="ACC may fall by this share: pruning stops there, and more is not accepted.")  # fmt: skip
@click.option("--max-asr", type=float, default=0.10, show_default=True,
              help="Accepted only if each of the scan's triggers still works on at most this share,")  # fmt: skip
@click.option("--min-detection", type=float, default=0.0, show_default=True,
              help="and is sent to class N at least this often.")  # fmt: skip
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
    method = _method(options)
    output = Output(
        goodnet=options["goodnet"],
        folder=options["out"],
        overwrite=options["overwrite"],
        keep_rejected=options["keep_rejected"],
        arch_name=model_opts.arch,
    )
    if output.goodnet is not None and output.goodnet.resolve() == model.resolve():
        raise UsageError(f"-o: expected another file than the net itself, {model}, which a GoodNet does not replace")
    classifier = model_opts.load(model)
    images = read_clean(clean, classifier, options["data_range"])
    seed: int = options["seed"]
    found: Found | None = None
    if options["scan_folder"] is not None:
        found, scanned = Found.in_folder(options["scan_folder"])
        if scanned.model.sha256 != classifier.sha256:
            raise DataError(f"--scan: expected a scan of this net, but {options['scan_folder']} is of another")
        seed = scanned.method.seed
    with progress.shown(options["as_json"]) as report:
        record, _ = repair(
            classifier,
            images,
            method=method,
            guard=Disagreement(max_fpr=options["max_fpr"]),
            found=found,
            limits=limits,
            output=output,
            seed=seed,
            command=command_line(),
            progress=report,
        )
    write_page(options["out"])
    if options["as_json"]:
        click.echo(to_json(record), nl=False)
    else:
        _say(record, asked=output.goodnet is not None)
    return {True: 0, False: 1, None: 2}[record.accepted]


def _method(options: dict[str, Any]) -> FinePruning | Unlearning:
    given = {name: options[name] for name in ("epochs", "learning_rate") if options[name] is not None}
    given["max_accuracy_drop"] = options["max_accuracy_drop"]
    if options["method"] == "fine-pruning":
        return FinePruning(layer=options["layer"], **given)
    if options["layer"] is not None:
        raise UsageError(f"--layer: expected none with --method {options['method']}, which trains all layers")
    return Unlearning(**given)


def _say(record: RepairRecord, *, asked: bool) -> None:
    print_table(repair_table(record))
    verdict = {True: "Accepted", False: "Not accepted", None: "Not judged"}[record.accepted]
    print_text(f"{verdict}: {'; '.join(record.reasons)}.")
    if record.goodnet_file is not None:
        click.echo(f"GoodNet: {visible(record.goodnet_file)}")
    elif asked:
        print_text("No GoodNet was written; --keep-rejected writes it all the same.")
    else:
        print_text("No GoodNet was written; -o FILE says where it goes.")
