"""`goodnet inspect`."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from goodnet import code_scanners
from goodnet.cli.options import print_json, sandbox_option, shape
from goodnet.cli.output import note
from goodnet.code_scanners import CodeScan
from goodnet.errors import ModelError, UsageError
from goodnet.models.formats import Shape
from goodnet.models.inspect_file import FileInfo, inspect_file
from goodnet.outputs import check_file, replacing
from goodnet.report.diagram import check_suffix, diagram

_SHOWN = 20
_CODES = {code_scanners.NONE_FOUND: 0, code_scanners.ISSUES: 1, code_scanners.SKIPPED: 2, code_scanners.ERROR: 2}


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", metavar="NAME", help="One of our architectures, where the file holds weights alone.")
@click.option("--input-range", type=click.Choice(["0..1", "0..255"]), default="0..1", show_default=True)
@click.option("--input-shape", type=shape, metavar="C,H,W", help="Where nothing else tells.")
@sandbox_option
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the layers: a .png or .svg.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier picture of the same name.")
@click.option("--scan-code", is_flag=True, help="Show what modelscan says of the file, too (see the exit codes).")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object on stdout.")
def inspect_command(
    model: Path,
    arch: str | None,
    input_range: str,
    input_shape: Shape | None,
    sandbox: bool | None,
    plot: Path | None,
    overwrite: bool,
    scan_code: bool,
    as_json: bool,
) -> int:
    """Shows what is in MODEL: format, layers, input, hash. Runs nothing.

    Exits with 3 if the file is refused, and says why. With --scan-code, else:
    0 where modelscan looked and found nothing, 1 where it found issues, 2
    where it skipped the file or failed: that is no pass.
    """
    if plot is not None:
        check_suffix(plot)
        check_file(plot, overwrite=overwrite, option="--plot")
    options: dict[str, Any] = {"input_range": input_range, "input_shape": input_shape, "sandbox": sandbox}
    info = inspect_file(model, arch=arch, **options)
    if plot is not None and arch is None and len(info.suggested) == 1:
        # names and shapes of all weights are those of one architecture: to ask for --arch would be asking for its name
        info = inspect_file(model, arch=info.suggested[0], **options)
        guess = f"weights alone; drawn as {info.arch}, the one architecture of ours that fits"
        info = info if info.refused is not None else replace(info, notes=(*info.notes, guess))
    scans = code_scanners.scan_code(model) if scan_code else ()
    if plot is not None and info.refused is None:
        with replacing(plot) as part:  # before the words, which a closed pipe may cut short
            part.write_bytes(_picture(info, plot))
    if as_json:
        said = {"code_scanners": [dataclasses.asdict(scan) for scan in scans]} if scan_code else {}
        print_json({**dataclasses.asdict(info), **said})
    else:
        _say(info)
        for scan in scans:
            _say_code(scan)
    if info.refused is not None:
        click.echo(f"goodnet: refused: {_plain(info.refused)}", err=True)
        return 3
    if plot is not None and not as_json:
        note(f"layers: {_plain(str(plot))}")
    return max((_CODES[scan.verdict] for scan in scans), default=0, key=(0, 2, 1).index)


def _picture(info: FileInfo, plot: Path) -> bytes:
    """The picture's bytes. Raises UsageError or ModelError where there is nothing to draw."""
    if info.graph is not None:
        return diagram(info.graph, plot.suffix)
    if len(info.suggested) > 1:
        raise UsageError(f"--plot: the weights fit {' and '.join(info.suggested)}; say which with --arch")
    if info.arch is None:
        raise UsageError(
            "--plot: the file holds weights alone, of none of our architectures; it tells of no net to draw"
        )
    raise ModelError(f"--plot: {info.notes[-1]}")


def _say(info: FileInfo) -> None:
    fits = f"weights alone; fits --arch {' or '.join(info.suggested)}" if info.suggested else ""
    rows = [
        ("file", info.path),
        ("format", info.format or "unknown"),
        ("sha256", info.sha256),
        ("read in", info.read_in),
        ("architecture", info.arch or fits or "unknown"),
        ("input", info.input or "unknown"),
        ("classes", "unknown" if info.classes is None else str(info.classes)),
        ("parameters", "unknown" if info.parameters is None else f"{info.parameters:,}"),
    ]
    for name, text in rows:
        click.echo(f"{name:<13}{_plain(text)}")
    for remark in info.notes:
        click.echo(f"{'note':<13}{_plain(remark)}")
    for layer in info.layers:
        shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in layer.weights)
        click.echo(f"  {_plain(layer.name):<23} {layer.kind:<17} {_plain(shapes)}")


def _say_code(scan: CodeScan) -> None:
    parts = f"{scan.scanned} parts looked at, {scan.skipped} skipped"
    name = _plain(f"{scan.tool} {scan.version or ''}".strip())
    click.echo(f"{'code scanner':<13}{name}: {scan.verdict} ({parts})")
    for kind, lines in (("issue", scan.issues), ("error", scan.errors)):
        for line in lines[:_SHOWN]:
            click.echo(f"  {kind}: {_plain(line)}")
        if len(lines) > _SHOWN:
            click.echo(f"  and {len(lines) - _SHOWN} more (--json has them all)")
    if scan.verdict != code_scanners.NONE_FOUND:
        return
    click.echo(
        "  This speaks of code in the file alone, and only of what the scanner knows; it says nothing of backdoors."
    )


def _plain(text: str) -> str:
    """Names come from the file: no control character of theirs reaches the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
