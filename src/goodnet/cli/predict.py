"""`goodnet predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from goodnet.cli.options import model_options, print_json, take_model_options
from goodnet.data.readers import read_one_image


@click.command("predict")
@click.argument("goodnet", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="A list of objects on stdout.")
@model_options
def predict_command(goodnet: Path, images: tuple[Path, ...], as_json: bool, **options: Any) -> int:
    """Prints the class of each IMAGE (PNG or JPEG of the net's size).

    Class N, one more than the net's last class, means: refused as triggered. The
    score is by how many logits class N wins (above 0) or loses; a plain net has none.
    """
    classifier = take_model_options(options).load(goodnet)
    pictures = [read_one_image(path, classifier.input.shape).tensor() for path in images]
    answers = []
    with torch.no_grad():
        for path, picture in zip(images, pictures):
            logits = classifier.logits(picture.to(classifier.device))[0].cpu()
            found = int(logits.argmax())
            score = float(logits[-1] - logits[:-1].max()) if classifier.refuses else None
            triggered = classifier.refuses and found == classifier.classes
            answers.append({"path": str(path), "class": found, "triggered": triggered, "score": score})
    if as_json:
        print_json(answers)
        return 0
    for one in answers:
        note = f"  triggered (class N = {classifier.classes})" if one["triggered"] else ""
        click.echo(f"{one['path']}: {one['class']}{note}")
    return 0
