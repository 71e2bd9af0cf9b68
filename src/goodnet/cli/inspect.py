"""`goodnet inspect`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from goodnet.cli.options import print_json, shape
from goodnet.models.formats import Shape
from goodnet.models.inspect_file import FileInfo, inspect_file


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", metavar="NAME", help="One of our architectures, where the file holds weights alone.")
@click.option("--input-range", type=click.Choice(["0..1", "0..255"]), default="0..1", show_default=True)
@click.option("--input-shape", type=shape, metavar="C,H,W", help="Where nothing else tells.")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object on stdout.")
def inspect_command(model: Path, arch: str | None, input_range: str, input_shape: Shape | None, as_json: bool) -> int:
    """Shows what is in MODEL: format, layers, input, hash. Runs nothing.

    Exits with 3 if the file is refused, and says why.
    """
    info = inspect_file(model, arch=arch, input_range=input_range, input_shape=input_shape)
    if as_json:
        print_json(dataclasses.asdict(info))
    else:
        _say(info)
    if info.refused is not None:
        click.echo(f"goodnet: refused: {_plain(info.refused)}", err=True)
        return 3
    return 0


def _say(info: FileInfo) -> None:
    fits = f"weights alone; fits --arch {' or '.join(info.suggested)}" if info.suggested else ""
    rows = [
        ("file", info.path),
        ("format", info.format or "unknown"),
        ("sha256", info.sha256),
        ("architecture", info.arch or fits or "unknown"),
        ("input", info.input or "unknown"),
        ("classes", "unknown" if info.classes is None else str(info.classes)),
        ("parameters", "unknown" if info.parameters is None else f"{info.parameters:,}"),
    ]
    for name, text in rows:
        click.echo(f"{name:<13}{_plain(text)}")
    for note in info.notes:
        click.echo(f"{'note':<13}{_plain(note)}")
    for layer in info.layers:
        shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in layer.weights)
        click.echo(f"  {_plain(layer.name):<24}{layer.kind:<18}{_plain(shapes)}")


def _plain(text: str) -> str:
    """Names come from the file: no control character of theirs reaches the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
