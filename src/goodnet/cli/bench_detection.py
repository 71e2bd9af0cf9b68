"""`goodnet bench detection`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from goodnet.cli import progress
from goodnet.cli.options import command_line
from goodnet.cli.options import seed as seed_type
from goodnet.cli.running import runner_options, take_runner
from goodnet.detection_bench import run_detection
from goodnet.detection_specs import BLIND_SPOTS, PARTS, PoolNet, specs
from goodnet.errors import UsageError
from goodnet.outputs import write_text
from goodnet.report.detection_plot import detection_svg
from goodnet.report.detection_table import detection_markdown
from goodnet.strict_json import to_json


@click.command("detection", short_help="Scans of many small nets, clean and backdoored.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder with mnist, gtsrb, cifar10 and faces. Default: $GOODNET_DATA.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path),
              help="Where the trained nets are kept. Default: goodnet/pool in the user's cache folder.")  # fmt: skip
@click.option("--part", type=click.Choice([*PARTS, "all"]), default="judging", show_default=True,
              help="Nets for setting what a scan decides by, or for judging it.")  # fmt: skip
@click.option("--only", metavar="NAME,...", help="Only nets whose names hold one of these.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-detection"), show_default=True,
              help="Where scans and tables go; a run that was interrupted goes on there.")  # fmt: skip
@click.option("--seed", type=seed_type, metavar="NUMBER", default="0", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
@runner_options
def detection_command(
    data: Path | None,
    cache: Path | None,
    part: str,
    only: str | None,
    out: Path,
    seed: int,
    as_json: bool,
    **options: Any,
) -> int:
    """How often a scan is right, over nets that are trained here.

    Trains the nets that the cache has not, scans all, and leaves
    detection.json, .md and .svg in --out, beside each scan. Nets whose
    images are not there are left out; those on drawn faces need none.
    With --runner ray, all machines have to share the folders.
    """

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    with progress.shown(as_json) as report, take_runner(options) as runner:
        record = run_detection(
            cache if cache is not None else cache_folder(),
            out,
            data=data if data is not None else data_folder(),
            nets=_chosen(part, only),
            seed=seed,
            command=command_line(),
            say=say,
            progress=report,
            runner=runner,
        )
    table = detection_markdown(record)
    write_text(out / "detection.md", table)
    write_text(out / "detection.svg", detection_svg(record, BLIND_SPOTS))
    click.echo(to_json(record) if as_json else f"\n{table}\nRecord and tables: {out}", nl=not as_json)
    return 0


def _chosen(part: str, only: str | None) -> list[PoolNet]:
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    nets = [spec for spec in specs() if part in (spec.part, "all")]
    unknown = [name for name in names if not any(name in spec.name for spec in nets)]
    if unknown:
        raise UsageError(f"--only: expected names of nets such as {nets[0].name}, got {unknown[0]!r}; change it")
    return [spec for spec in nets if not names or any(name in spec.name for name in names)]


def data_folder() -> Path | None:
    """As the tests look for it: the folder GOODNET_DATA, or `shared/data` beside the checkout that this runs in."""
    root = Path(os.environ.get("GOODNET_DATA", Path("..") / "shared" / "data"))
    return root if root.is_dir() else None


def cache_folder() -> Path:
    """The platform's folder for what can be made again."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "goodnet" / "pool"
