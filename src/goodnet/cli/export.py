"""`goodnet export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from goodnet.cli.options import model_options, print_json, read_clean, take_model_options
from goodnet.cli.output import print_text
from goodnet.errors import UsageError
from goodnet.export_onnx import save_onnx
from goodnet.report.figures import visible


@click.command("export", short_help="A net or a GoodNet as ONNX, to run without goodnet.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where it goes: FILE.onnx.")
@click.option("--clean", type=click.Path(path_type=Path),
              help="Images to compare the answers on; noise where there are none.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@model_options
def export_command(
    model: Path, output: Path, clean: Path | None, overwrite: bool, as_json: bool, **options: Any
) -> int:
    """Writes MODEL as ONNX: images in [0, 1] in, logits out, class N last.

    How the net wants its input, and what decides on class N, are inside. What
    was written is run by onnxruntime in a process without goodnet and must
    answer alike before it takes its name.
    """
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"-o: expected a name that ends in .onnx, got {output}")
    classifier = take_model_options(options).load(model)
    probe = None if clean is None else read_clean(clean, classifier, None).tensor()
    done = save_onnx(classifier, output, probe=probe, overwrite=overwrite)
    if as_json:
        print_json(asdict(done))
        return 0
    what = "images" if clean else "images of noise"
    print_text(
        f"Answers alike under onnxruntime on {done.probes} {what}; logits differ by at most "
        f"{done.largest_difference:.1g}."
    )
    last = f", class N = {classifier.classes}" if classifier.refuses else ""
    print_text(f"Input: float32 (N, {', '.join(map(str, classifier.input.shape))}) in [0, 1]{last}.")
    click.echo(f"ONNX: {visible(done.file)}")
    return 0
