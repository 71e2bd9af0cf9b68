"""`goodnet serve`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from goodnet.cli.output import note
from goodnet.errors import UsageError

_PORT = 8642
_NEEDS = ("fastapi", "uvicorn", "python_multipart")


@click.command("serve")
@click.option("--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True,
              help="Of 127.0.0.1; 0 for any that is free.")  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Keep jobs here for the next time. Default: a temporary folder, removed at the end.")  # fmt: skip
@click.option("--max-model", type=click.IntRange(1, 4096), default=2048, show_default=True, metavar="MB",
              help="No larger net is taken.")  # fmt: skip
@click.option("--max-data", type=click.IntRange(1, 1 << 20), default=2048, show_default=True, metavar="MB",
              help="No larger file of images is taken.")  # fmt: skip
def serve_command(port: int, folder: Path | None, max_model: int, max_data: int) -> int:
    """Serves a page on this machine: drop a net and clean images, watch the
    scan, read the report, repair, take the GoodNet, try pictures.

    Prints a link that is good for one browser. Ends with Ctrl-C.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve: expected the package {missing[0]}, which is not here: pip install 'goodnet[serve]'")
    from goodnet.serve.routes import Limits
    from goodnet.serve.server import serve

    def show(link: str) -> None:
        click.echo(f"Open {link}")

    note("goodnet serve: a page on this machine alone; Ctrl-C ends it" + ("" if folder else " and removes its files"))
    serve(folder, port=port, limits=Limits(model_mb=max_model, data_mb=max_data), show=show)
    return 0
