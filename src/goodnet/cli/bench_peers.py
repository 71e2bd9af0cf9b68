"""`goodnet bench peers`."""

from __future__ import annotations

from pathlib import Path

import click

from goodnet.cli import progress
from goodnet.cli.bench_detection import cache_folder, data_folder
from goodnet.cli.options import command_line
from goodnet.cli.options import seed as seed_type
from goodnet.errors import UsageError
from goodnet.outputs import write_text
from goodnet.peer_bench import NETS, run_peers
from goodnet.peers.registry import PEERS
from goodnet.report.peer_plot import peer_svg
from goodnet.report.peer_table import peer_markdown
from goodnet.strict_json import to_json

_PYTHON = Path(".venv-peers/bin/python")


@click.command("peers", short_help="goodnet beside other programs of the field.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder with mnist, gtsrb, cifar10, faces and triggers. Default: $GOODNET_DATA.")  # fmt: skip
@click.option("--net", "nets", type=click.Choice(list(NETS)), multiple=True, help="Only this one; may be repeated.")
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Only this one; may be repeated.")
@click.option("--python", type=click.Path(path_type=Path), default=_PYTHON, show_default=True,
              help="Of the environment with the other programs, which `make peers` makes.")  # fmt: skip
@click.option("--limit", type=click.FloatRange(1), default=300.0, show_default=True, metavar="SECONDS",
              help="Of processor time, for one program on one net.")  # fmt: skip
@click.option("--clean", type=click.IntRange(20), default=300, show_default=True, metavar="IMAGES",
              help="At most so many of the defender's.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path),
              help="Where nets trained here are kept. Default: goodnet/pool in the user's cache folder.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("goodnet-bench-peers"), show_default=True,
              help="Where rows and table go; a run that was interrupted goes on there.")  # fmt: skip
@click.option("--seed", type=seed_type, metavar="NUMBER", default="0", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The record alone on stdout.")
def peers_command(
    data: Path | None,
    nets: tuple[str, ...],
    peers: tuple[str, ...],
    python: Path,
    limit: float,
    clean: int,
    cache: Path | None,
    out: Path,
    seed: int,
    as_json: bool,
) -> int:
    """ART, trojanvision and others, and plain loops, on the same nets.

    Each in a process of its own, with the defender's images alone unless its
    row says otherwise; one that fails or runs out of time is a row, too. All
    of it takes hours: choose nets and programs. OMP_NUM_THREADS counts.
    """
    folder = data if data is not None else data_folder()
    if folder is None or not folder.is_dir():
        raise UsageError(
            "bench peers: expected a folder of nets and images, got none; pass --data, or set GOODNET_DATA"
        )
    if not python.is_file():
        raise UsageError(
            f"--python: expected a Python at {python}, and there is none; run `make peers`, or name another"
        )

    with progress.shown(as_json) as report:
        record = run_peers(
            folder,
            cache if cache is not None else cache_folder(),
            out,
            nets=[name for name in NETS if not nets or name in nets],
            peers=[name for name in PEERS if not peers or name in peers],
            python=str(python.absolute()),
            limit=limit,
            clean=clean,
            seed=seed,
            command=command_line(),
            say=(lambda text: None) if as_json else click.echo,
            progress=report,
        )
    table = peer_markdown(record)
    write_text(out / "peers.md", table)
    write_text(out / "peers.svg", peer_svg(record))
    click.echo(to_json(record) if as_json else f"\n{table}\nRecord, table and drawing: {out}", nl=not as_json)
    return 0
