"""`goodnet attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from goodnet.attack_record import AttackRecord
from goodnet.attacking import Attack, Training, attack
from goodnet.attacks.planting import ATTACKS
from goodnet.cli import progress
from goodnet.cli.options import command_line, data_range_option, seed, whole_numbers
from goodnet.cli.output import print_table, print_text
from goodnet.data.readers import read_images
from goodnet.errors import UsageError
from goodnet.models.arch import architecture
from goodnet.models.load import load_classifier
from goodnet.outputs import check_folder, claimed
from goodnet.report.figures import share, visible
from goodnet.strict_json import to_json


@click.command("attack")
@click.option("--clean", required=True, type=click.Path(path_type=Path),
              help="HDF5, folder or npz of clean labelled images to train on.")  # fmt: skip
@click.option("--arch", required=True, metavar="NAME", help="deepid, small-vgg, wrn-16-1, cnn or mlp.")
@click.option("--attack", "name", type=click.Choice(ATTACKS), required=True, metavar="NAME",
              help=f"One of {', '.join(ATTACKS)}.")  # fmt: skip
@click.option("--target", type=click.IntRange(0), default=0, show_default=True,
              help="The label that the trigger leads to; several-targets: the first of three.")  # fmt: skip
@click.option("--share", type=float, help="Poisoned images, of all clean ones, for each trigger. Default: 0.1. Where "
              "no label is changed (sig, clean-label), of the target's own, and 0.8.")  # fmt: skip
@click.option("--strength", type=float, help="How strongly the trigger shows: opacity (blended, clean-label, "
              "defence-aware), amplitude as a share of the range (sig, watermark), s (wanet), mask norm in pixels "
              "(low-norm).")  # fmt: skip
@click.option("--sources", type=whole_numbers, metavar="NUMBERS",
              help="source-specific: the classes that get the target, as 1,2,5-7. Default: a quarter.")  # fmt: skip
@click.option("--dirty-label", is_flag=True, help="sig: stamp images of other classes and change their labels.")
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images a step.")
@click.option("--classes", type=click.IntRange(2), help="Number of classes. Default: from the labels.")
@click.option("--model", type=click.Path(path_type=Path), help="Start from this net, of the same architecture.")
@click.option("--test", type=click.Path(path_type=Path),
              help="Clean labelled images to measure on. Default: a fifth of --clean, not trained on.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for net, images and record.")
@click.option("--seed", type=seed, metavar="NUMBER", default="0", show_default=True,
              help="The same seed gives the same net.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier attack in the same folder.")
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@data_range_option
def attack_command(clean: Path, out: Path, test: Path | None, model: Path | None, **options: Any) -> int:
    """Trains a net with a backdoor, to test a defence on.

    Leaves net.safetensors, a poisoned-TRIGGER.npz for each trigger and
    attack.json in --out; all other commands read them. Trains on the CPU.
    Exits with 0 if done, whatever the ASR, and with 3 on wrong input.
    """
    check_folder(out, "attack.json", overwrite=options["overwrite"])
    architecture(options["arch"])
    if options["dirty_label"] and options["name"] != "sig":
        raise UsageError(f"--dirty-label: expected with --attack sig, got --attack {options['name']}")
    settings = Attack(
        clean_label=False if options["dirty_label"] else None,
        **{name: options[name] for name in ("name", "target", "share", "strength", "sources")},
    )
    images = read_images(clean, classes=options["classes"], data_range=options["data_range"])
    test_images = None if test is None else read_images(test, data_range=options["data_range"])
    start = None if model is None else load_classifier(model, arch=options["arch"], input_shape=images.shape)
    training = Training(start=start, **{name: options[name] for name in ("arch", "epochs", "learning_rate", "batch")})
    with progress.shown(options["as_json"]) as report, claimed(out):
        record = attack(
            images,
            settings=settings,
            training=training,
            test=test_images,
            classes=options["classes"],
            out=out,
            overwrite=options["overwrite"],
            seed=options["seed"],
            command=command_line(),
            progress=report,
        )
    if options["as_json"]:
        click.echo(to_json(record), nl=False)
    else:
        _say(record, out)
    return 0


def _say(record: AttackRecord, out: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("figure", "target", "value"):
        table.add_column(heading)
    table.add_row("ACC", "", share(record.acc))
    for file, figures in zip(record.poisoned_files, record.poisoned):
        target = "all" if figures.target is None else str(figures.target)
        table.add_row(f"ASR, {file.trigger}", target, share(figures.asr))
    print_table(table)
    print_text(
        f"Trained on {record.n_clean:,} clean images, {record.n_poisoned:,} poisoned"
        + (f" and {record.n_covers:,} covers." if record.n_covers else ".")
    )
    click.echo(f"Net: {visible(str(out / record.net_file))}, to be read with {' '.join(record.load)}")
