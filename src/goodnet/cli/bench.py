"""`goodnet bench`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from goodnet.cli import progress
from goodnet.cli.options import command_line
from goodnet.cli.options import seed as seed_type
from goodnet.cli.output import write_text
from goodnet.csaw import NETS, run_csaw
from goodnet.errors import UsageError
from goodnet.repairing import METHODS
from goodnet.report.bench_table import bench_csv, bench_markdown
from goodnet.strict_json import to_json


@click.group("bench", short_help="Benchmarks on published nets.")
def bench_command() -> None:
    """Benchmarks on nets and images that others have published, which goodnet does not ship."""


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
def csaw_command(
    data: Path | None, out: Path, nets: tuple[str, ...], methods: tuple[str, ...], seed: int, as_json: bool
) -> int:
    """All repairs on the nets of CSAW-HackML-2020, with a clean net as control.

    Leaves bench.json, bench.md and bench.csv in --out, beside each scan and
    repair. Half an hour on two cores.
    """

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    folder = data if data is not None else _data_folder()
    chosen = [kind() for kind, name in METHODS.items() if not methods or name in methods]
    with progress.shown(as_json) as report:
        record = run_csaw(
            folder,
            out,
            nets=[name for name in NETS if not nets or name in nets],
            methods=chosen,
            seed=seed,
            command=command_line(),
            say=say,
            progress=report,
        )
    write_text(out / "bench.md", bench_markdown(record))
    write_text(out / "bench.csv", bench_csv(record))
    click.echo(to_json(record) if as_json else f"\n{bench_markdown(record)}\nRecord and tables: {out}", nl=not as_json)
    return 0


def _data_folder() -> Path:
    """As the tests look for it: the folder GOODNET_DATA, or `shared/data` beside the checkout that this runs in."""
    root = Path(os.environ.get("GOODNET_DATA", Path("..") / "shared" / "data"))
    if not (root / "faces").is_dir():
        raise UsageError(
            f"bench csaw: expected the competition's files in {root / 'faces'}, and there is no such folder; pass "
            "--data DIR, or set GOODNET_DATA"
        )
    return root / "faces"
