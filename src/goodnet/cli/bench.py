"""`goodnet bench`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from goodnet.cli import progress
from goodnet.cli.bench_adaptive import adaptive_command
from goodnet.cli.bench_detection import detection_command
from goodnet.cli.bench_peers import peers_command
from goodnet.cli.options import command_line, whole_numbers
from goodnet.cli.options import seed as seed_type
from goodnet.cli.running import runner_options, take_runner
from goodnet.csaw import NETS, run_csaw
from goodnet.errors import UsageError
from goodnet.guard_bench import run_guards
from goodnet.outputs import write_text
from goodnet.predict_bench import run_predict
from goodnet.repair_bench import run_repairs
from goodnet.repair_subjects import NETS as REPAIR_NETS
from goodnet.repairing import METHODS
from goodnet.report.bench_table import bench_csv, bench_markdown
from goodnet.report.guard_table import guard_markdown
from goodnet.report.speed_table import predict_markdown, speed_markdown
from goodnet.speed import run_speed
from goodnet.strict_json import to_json, write_record


@click.group("bench")
def bench_command() -> None:
    """Benchmarks on images, and some on nets, that others have published, which goodnet does not ship."""


bench_command.add_command(detection_command)
bench_command.add_command(adaptive_command)
bench_command.add_command(peers_command)


@bench_command.command("csaw", short_help="Every repair on the nets of CSAW-HackML-2020.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder of the competition's files, nets in `nets`. Default: $GOODNET_DATA/faces.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-csaw"), show_default=True,
              help="Where scans, repairs and tables go; a run that was interrupted goes on there.")  # fmt: skip
@click.option("--net", "nets", type=click.Choice(list(NETS)), multiple=True, help="Only this one; may be repeated.")
@click.option("--method", "methods", type=click.Choice(list(METHODS.values())), multiple=True,
              help="Only this one; may be repeated.")  # fmt: skip
@click.option("--seed", type=seed_type, metavar="NUMBER", default="0", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@runner_options
def csaw_command(
    data: Path | None,
    out: Path,
    nets: tuple[str, ...],
    methods: tuple[str, ...],
    seed: int,
    as_json: bool,
    **options: Any,
) -> int:
    """All repairs on the nets of CSAW-HackML-2020, with a clean net as control.

    Leaves bench.json, bench.md and bench.csv in --out, beside each scan and
    repair. Half an hour on two cores. With --runner ray, all machines have to
    share the folders.
    """

    folder = data if data is not None else _data_folder()
    chosen = [kind() for kind, name in METHODS.items() if not methods or name in methods]
    with progress.shown(as_json) as report, take_runner(options) as runner:
        record = run_csaw(
            folder,
            out,
            nets=[name for name in NETS if not nets or name in nets],
            methods=chosen,
            seed=seed,
            command=command_line(),
            say=_say(as_json),
            progress=report,
            runner=runner,
        )
    write_text(out / "bench.md", bench_markdown(record))
    write_text(out / "bench.csv", bench_csv(record))
    click.echo(to_json(record) if as_json else f"\n{bench_markdown(record)}\nRecord and tables: {out}", nl=not as_json)
    return 0


@bench_command.command("repair", short_help="repair --method auto on nets of others.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder with faces, gtsrb, cifar10 and triggers. Default: $GOODNET_DATA.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-repair"), show_default=True,
              help="Where scans, GoodNets and tables go; scans that are there are not made again.")  # fmt: skip
@click.option("--net", "nets", type=click.Choice(list(REPAIR_NETS)), multiple=True,
              help="Only this one; may be repeated.")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(1), default=300.0, show_default=True, metavar="SECONDS",
              help="For each repair.")  # fmt: skip
@click.option("--seeds", type=whole_numbers, metavar="NUMBERS", default="0", show_default=True,
              help="Of splits, scans and repairs; with several, means and extremes are shown.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@runner_options
def repair_command(
    data: Path | None,
    out: Path,
    nets: tuple[str, ...],
    time_limit: float,
    seeds: tuple[int, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Scans and repairs eight nets with the defaults, and measures the GoodNets.

    On test images, poisoned sets, and strangers that nothing was fitted to.
    Three quarters of an hour on two cores. With --runner ray, all machines
    have to share the folders.
    """

    folder = data if data is not None else _data_folder().parent
    with progress.shown(as_json) as report, take_runner(options) as runner:
        record = run_repairs(
            folder,
            out,
            nets=[name for name in REPAIR_NETS if not nets or name in nets],
            seeds=seeds,
            time_limit=time_limit,
            command=command_line(),
            say=_say(as_json),
            progress=report,
            runner=runner,
        )
    write_text(out / "repair-bench.md", bench_markdown(record))
    write_text(out / "repair-bench.csv", bench_csv(record))
    click.echo(to_json(record) if as_json else f"\n{bench_markdown(record)}\nRecord and tables: {out}", nl=not as_json)
    return 0


@bench_command.command("guards", short_help="Each guard on nets of others: AUC, detection, cost.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder with faces, gtsrb, cifar10 and triggers. Default: $GOODNET_DATA.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-repair"), show_default=True,
              help="Of bench repair: its scans and GoodNets are used, what is missing is made.")  # fmt: skip
@click.option("--net", "nets", type=click.Choice(list(REPAIR_NETS)), multiple=True,
              help="Only this one; may be repeated.")  # fmt: skip
@click.option("--seed", type=seed_type, metavar="NUMBER", default="0", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@runner_options
def guards_command(
    data: Path | None, out: Path, nets: tuple[str, ...], seed: int, as_json: bool, **options: Any
) -> int:
    """Every guard in front of the same net and the same repaired twin.

    On test images, poisoned sets, and strangers that nothing was fitted to.
    Half an hour on two cores after bench repair. With --runner ray, all
    machines have to share the folders.
    """

    folder = data if data is not None else _data_folder().parent
    with progress.shown(as_json) as report, take_runner(options) as runner:
        record = run_guards(
            folder,
            out,
            nets=[name for name in REPAIR_NETS if not nets or name in nets],
            seed=seed,
            command=command_line(),
            say=_say(as_json),
            progress=report,
            runner=runner,
        )
    write_text(out / "guard-bench.md", guard_markdown(record))
    click.echo(to_json(record) if as_json else f"\n{guard_markdown(record)}\nRecord and table: {out}", nl=not as_json)
    return 0


@bench_command.command("predict", short_help="How much longer a GoodNet takes to answer than the net.")
@click.option("--batches", type=whole_numbers, default="1,256", show_default=True, metavar="NUMBERS",
              help="Images at a time.")  # fmt: skip
@click.option("--turns", type=click.IntRange(1), default=30, show_default=True, help="Of each; the fastest counts.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-predict"), show_default=True,
              help="Where record and table go.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
def predict_command(batches: tuple[int, ...], turns: int, out: Path, as_json: bool) -> int:
    """Milliseconds an image, of each kind of GoodNet against a net of 1283 classes.

    Ratios in one run on one machine. Half a minute on two cores.
    """
    with progress.shown(as_json) as report:
        record = run_predict(batches=batches, turns=turns, command=command_line(), progress=report)
    write_record(record, _made(out) / "predict-speed.json")
    write_text(out / "predict-speed.md", predict_markdown(record))
    text = f"\n{predict_markdown(record)}\nRecord and table: {out}"
    click.echo(to_json(record) if as_json else text, nl=not as_json)
    return 0


@bench_command.command("scan", short_help="How fast a scan is, against the plain loop and the machine.")
@click.option("--labels", type=whole_numbers, default="256,1283,5000", show_default=True, metavar="NUMBERS",
              help="Sizes of the nets to scan.")  # fmt: skip
@click.option("--plain-labels", type=click.IntRange(1), default=8, show_default=True,
              help="Labels that the plain loop is measured on.")  # fmt: skip
@click.option("--plain-steps", type=click.IntRange(1), default=300, show_default=True, help="Its steps a label.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-scan"), show_default=True,
              help="Where record and table go.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
def speed_command(labels: tuple[int, ...], plain_labels: int, plain_steps: int, out: Path, as_json: bool) -> int:
    """Seconds, memory and images a second of scans, on nets with widened heads.

    Ratios in one run on one machine: leave it alone meanwhile. Ten minutes on
    two cores.
    """

    with progress.shown(as_json) as report:
        record = run_speed(
            labels=labels,
            plain_labels=plain_labels,
            plain_steps=plain_steps,
            command=command_line(),
            say=_say(as_json),
            progress=report,
        )
    write_record(record, _made(out) / "scan-speed.json")
    write_text(out / "scan-speed.md", speed_markdown(record))
    click.echo(to_json(record) if as_json else f"\n{speed_markdown(record)}\nRecord and table: {out}", nl=not as_json)
    return 0


def _say(as_json: bool) -> Callable[[str], None]:
    """What says a line about how far things are: nothing under --json."""
    return (lambda text: None) if as_json else click.echo


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _data_folder() -> Path:
    """As the tests look for it: the folder GOODNET_DATA, or `shared/data` beside the checkout that this runs in."""
    root = Path(os.environ.get("GOODNET_DATA", Path("..") / "shared" / "data"))
    if not (root / "faces").is_dir():
        raise UsageError(
            f"bench csaw: expected the competition's files in {root / 'faces'}, and there is no such folder; pass "
            "--data DIR, or set GOODNET_DATA"
        )
    return root / "faces"
