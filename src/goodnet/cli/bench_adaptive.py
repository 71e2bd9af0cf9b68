"""`goodnet bench adaptive`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from goodnet.adaptive_bench import DEFAULT_METHODS, METHOD_NAMES, methods_by_name, run_adaptive
from goodnet.adaptive_specs import IMAGES, ROWS, adaptive_specs
from goodnet.cli import progress
from goodnet.cli.bench_detection import cache_folder, data_folder
from goodnet.cli.options import command_line
from goodnet.cli.options import seed as seed_type
from goodnet.cli.running import runner_options, take_runner
from goodnet.outputs import write_text
from goodnet.report.adaptive_table import adaptive_csv, adaptive_markdown
from goodnet.strict_json import to_json


@click.command("adaptive", short_help="Attackers who know the defence, and what survives it.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder with mnist and gtsrb. Default: $GOODNET_DATA.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path),
              help="Where the trained nets are kept. Default: goodnet/pool in the user's cache folder.")  # fmt: skip
@click.option("--images", type=click.Choice(IMAGES), multiple=True, help="Only nets on these; may be repeated.")
@click.option("--attack", "attacks", type=click.Choice(ROWS), multiple=True, metavar="NAME",
              help=f"Only this one; may be repeated. One of {', '.join(ROWS)}.")  # fmt: skip
@click.option("--method", "methods", type=click.Choice(METHOD_NAMES), multiple=True, default=DEFAULT_METHODS,
              show_default=True, help="How to repair; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-adaptive"), show_default=True,
              help="Where scans, repairs and tables go; a run that was interrupted goes on there.")  # fmt: skip
@click.option("--seed", type=seed_type, metavar="NUMBER", default="0", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@runner_options
def adaptive_command(
    data: Path | None,
    cache: Path | None,
    images: tuple[str, ...],
    attacks: tuple[str, ...],
    methods: tuple[str, ...],
    out: Path,
    seed: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Attacks made to get past this defence: each is planted, scanned, repaired.

    Leaves adaptive.json, .md and .csv in --out, beside each scan and repair.
    Nets whose images are not there are left out. Says what survives, and how
    soon a repaired net can be attacked again. With --runner ray, all machines
    have to share the folders.
    """

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    chosen = [
        spec
        for spec in adaptive_specs()
        if (not images or spec.data in images)
        and (not attacks or any(spec.name == f"adaptive-{spec.data}-{row}" for row in attacks))
    ]
    with progress.shown(as_json) as report, take_runner(options) as runner:
        record = run_adaptive(
            cache if cache is not None else cache_folder(),
            out,
            data=data if data is not None else data_folder(),
            nets=chosen,
            methods=methods_by_name(methods),
            seed=seed,
            command=command_line(),
            say=say,
            progress=report,
            runner=runner,
        )
    table = adaptive_markdown(record)
    write_text(out / "adaptive.md", table)
    write_text(out / "adaptive.csv", adaptive_csv(record))
    click.echo(to_json(record) if as_json else f"\n{table}\nRecord and tables: {out}", nl=not as_json)
    return 0
