"""`goodnet scan`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from goodnet.cli import progress
from goodnet.cli.fleet import is_fleet, scan_many
from goodnet.cli.options import (
    command_line,
    data_range_option,
    model_options,
    read_clean,
    run_options,
    size,
    take_model_options,
    whole_numbers,
)
from goodnet.cli.output import note, quiet, write_page
from goodnet.cli.running import runner_options, take_runner
from goodnet.cli.views import Views, view_options
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.errors import UsageError
from goodnet.memory import in_words
from goodnet.models.twin import PRECISIONS
from goodnet.outputs import check_folder, claimed
from goodnet.planning import Plan, plan
from goodnet.record import ScanRecord
from goodnet.report import words
from goodnet.report.figures import visible
from goodnet.report.terminal import next_step, scan_summary
from goodnet.scan import METHODS, USED, Detector, scan
from goodnet.staged import Staged
from goodnet.strict_json import to_json

_SOME = 128  # images that decide the plan's precision


@click.command("scan")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL|DIR|MANIFEST.csv|mlflow:NAME")
@click.option("--clean", type=click.Path(path_type=Path), help="HDF5, folder or npz of clean images.")
@click.option("--method", type=click.Choice(list(METHODS.values())), default="staged", show_default=True,
              help="staged: margins, masks, and what stands out again. gangsweep: a second opinion.")  # fmt: skip
@click.option(
    "--labels", type=whole_numbers, metavar="NUMBERS", help="Only these labels, as 0,5,10-20; never ends in clean."
)
@click.option("--exhaustive", is_flag=True, help="Search every label whole, however many there are.")
@click.option("--false-alarm-rate", type=float, default=0.01, show_default=True,
              help="How often the statistics alone may point at a label of a clean net.")  # fmt: skip
@click.option("--block", type=click.IntRange(1), help="Images a pass and thread; --memory finds it by itself.")
@click.option("--memory", type=size, metavar="SIZE",
              help="For the scan, as 2GiB; blocks are made to fit.  [default: most of what is free]")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
              help="Of the net in searches; found triggers are judged in float32.")  # fmt: skip
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Stop then, inconclusive; with --out the same command goes on later. Of many nets, each: 3600.",
)
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Of many nets, at a time.  [default: as many as cores]"
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what a scan would do and how long it takes, and end.")
@click.option("--no-preflight", is_flag=True, help="Scan even if ACC says that the net is fed the wrong way.")
@runner_options
@view_options
@data_range_option
@model_options
@run_options
def scan_command(model: Path, clean: Path | None, **options: Any) -> int:
    """Says whether MODEL is backdoored, for which labels, and shows the trigger.

    Exits with 0 if clean, 1 if suspect, 2 if inconclusive, 3 on wrong input.
    A folder of nets, a CSV file that names some, or the versions of a model
    in MLflow's registry are scanned one by one; with the code of the worst.
    With --runner ray, all machines have to see those nets and --out.
    """
    if is_fleet(model):
        return scan_many(model, clean, options, _method(options))
    clean = _single(clean, options.pop("jobs"))
    out: Path | None = options["out"]
    check_folder(out, "scan.json", overwrite=options["overwrite"])
    views = Views.of(options, out=out, keep=(model, clean))
    method = _method(options)
    where = take_runner(options)
    classifier = take_model_options(options).load(model)
    images = read_clean(clean, classifier, options["data_range"])
    only_plan = options["only_plan"]

    def before() -> None:
        if only_plan or not (options["as_json"] or quiet()):
            some = images.take(slice(0, _SOME)).tensor()
            planned = plan(
                method,
                classifier,
                options["labels"],
                images=some,
                clean=min(len(images), USED),
                memory=options["memory"],
            )
            _tell_plan(planned, alone=only_plan, as_json=options["as_json"])
        if only_plan:
            raise _OnlyPlanned

    shown = progress.shown(options["as_json"] or only_plan)
    with suppress(_OnlyPlanned), shown as report, claimed(out), _kept(out), where as runner:
        record = scan(
            classifier,
            images,
            method=method,
            seed=options["seed"],
            labels=options["labels"],
            out=out,
            overwrite=options["overwrite"],
            check_input=not options["no_preflight"],
            time_limit=options["time_limit"],
            memory=options["memory"],
            say=_remark,
            before=before,
            command=command_line(),
            progress=report,
            runner=runner,
        )
    if only_plan:
        return 0
    if options["time_limit"] is not None and out is not None and _checkpoints(out):
        _remark(f"out of time; what is done is kept in {out}: the same command with --overwrite goes on there")
    page = write_page(out)
    with views.written_after(record):
        if options["as_json"]:
            click.echo(to_json(record), nl=False)
        else:
            _say(record, out, page)
    return words.exit_code(record)


def _single(clean: Path | None, jobs: int | None) -> Path:
    """The clean images of a scan of one net. Raises UsageError."""
    context = click.get_current_context()
    if clean is None:
        param = next(one for one in context.command.params if one.name == "clean")
        raise click.MissingParameter(ctx=context, param=param)
    if jobs is not None:
        raise UsageError("--jobs: is for many nets; expected a folder of nets, a manifest or a registry's model")
    return clean


def _say(record: ScanRecord, out: Path | None, page: Path | None) -> None:
    click.echo(scan_summary(record))
    if page is not None and out is not None:
        click.echo(f"Report: {visible(str(page))}")
        click.echo(next_step(words.next_steps(record, out)))
    elif out is None:
        click.echo("Pass --out DIR for the report, the triggers and the record.")


def _method(options: dict[str, Any]) -> Detector:
    exhaustive, rate = options["exhaustive"], options["false_alarm_rate"]
    if options["method"] != "gangsweep":
        common = {"false_alarm_rate": rate, "block": options["block"], "precision": options["precision"]}
        if options["method"] == "neural-cleanse":
            return NeuralCleanse(exhaustive=exhaustive, **common)
        masks = replace(Staged().masks, exhaustive=exhaustive, **common)
        return Staged(margins=MaxMargin(**common), masks=masks)
    for option in ("block", "time_limit", "memory", "precision"):
        if options[option] not in (None, "auto"):
            name = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name}: expected with --method staged or neural-cleanse, got --method gangsweep")
    return GangSweep(exhaustive=exhaustive, false_alarm_rate=rate)


class _OnlyPlanned(Exception):
    """The plan was all that was asked for."""


def _tell_plan(planned: Plan, *, alone: bool, as_json: bool) -> None:
    """The plan, on stderr, or as the answer where it was asked for."""
    if as_json:
        click.echo(to_json({"format": "goodnet.plan/1", **asdict(planned)}), nl=False)
        return
    lines = [f"  {s.stage:<14}{s.labels:>7,} labels{s.passes:>12,} images through the net" for s in planned.stages]
    speed = f"{planned.images_per_second:,.0f} images a second in {planned.precision}"
    lines.append(f"  about {_duration(planned.seconds)}, at {speed}")
    if planned.at_most_seconds > planned.seconds:
        one, most = (_duration(value) for value in (planned.suspect_seconds, planned.at_most_seconds))
        lines.append(f"  about {one} if a label stands out and is searched again, at most {most}")
    if planned.memory is not None:
        cut = f"blocks of {planned.block} images in {planned.threads} thread{'s' if planned.threads > 1 else ''}"
        lines.append(f"  about {in_words(planned.memory)} of memory, {cut}")
    text = "\n".join(["Plan:", *lines])
    (click.echo if alone else note)(text)


@contextmanager
def _kept(out: Path | None) -> Iterator[None]:
    """Says, where the scan ends early, that what it has done is not lost."""
    files = 0 if out is None else _checkpoints(out)
    try:
        yield
    except BaseException:
        if out is not None and _checkpoints(out) > files:
            _remark(f"what is done is kept in {out}: the same command goes on there")
        raise


def _checkpoints(out: Path) -> int:
    return sum(1 for _ in out.glob(".checkpoint-*/*.npz"))


def _remark(text: str) -> None:
    note(f"goodnet: {visible(text)}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
