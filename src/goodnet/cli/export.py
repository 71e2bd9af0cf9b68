"""`goodnet export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from goodnet.cli.options import model_options, print_json, read_clean, take_model_options
from goodnet.cli.output import print_text
from goodnet.export.files import check_suffix, export_net
from goodnet.export.probes import COUNT
from goodnet.models.classifier import Classifier
from goodnet.report.figures import visible


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Where it goes: FILE.onnx, .keras, .pt2 or .safetensors.")  # fmt: skip
@click.option("--clean", type=click.Path(path_type=Path),
              help="Images to compare the answers on; noise where there are none.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
@model_options
def export_command(
    model: Path, output: Path, clean: Path | None, overwrite: bool, as_json: bool, **options: Any
) -> int:
    """Writes MODEL for another runtime: images in [0, 1] in, logits out.

    Class N comes last. How the net wants its input, and what decides on class
    N, are inside. ONNX, .keras (stock layers, images channels last) and .pt2
    are run in a process without goodnet and must answer alike before the file
    takes its name; .safetensors is goodnet's own, and needs no --arch.
    """
    check_suffix(output)
    given = take_model_options(options)
    classifier = given.load(model)
    probe = None if clean is None else read_clean(clean, classifier, None).tensor()
    done = export_net(classifier, output, probe=probe, overwrite=overwrite, arch_name=given.arch)
    if as_json:
        print_json(asdict(done))
        return 0
    yours = COUNT if probe is None else len(probe)
    made = f" and {done.probes - yours} made from them on the other side of class N" if done.probes > yours else ""
    print_text(
        f"{done.format} answers alike on {yours} images{' of noise' if probe is None else ''}{made}; logits differ by "
        f"at most {done.largest_difference:.1g}."
    )
    if classifier.refuses:
        refused = "" if probe is None else f", the answer to {_refused(classifier, probe)} of your {yours} images"
        print_text(f"Class N, the last logit, is {classifier.classes}{refused}.")
    print_text(f"Input: {done.input}.")
    click.echo(f"{done.format}: {visible(done.file)}")
    return 0


def _refused(classifier: Classifier, images: Tensor) -> int:
    return int((classifier.predict(images) == classifier.classes).sum())
