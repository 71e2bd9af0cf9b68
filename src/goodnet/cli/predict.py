"""`goodnet predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from goodnet.cli.options import model_options, take_model_options
from goodnet.data.readers import read_one_image
from goodnet.models.load import file_sha256
from goodnet.report.figures import visible
from goodnet.strict_json import to_json


@click.command("predict")
@click.argument("goodnet", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="A list of objects on stdout.")
@model_options
def predict_command(goodnet: Path, images: tuple[Path, ...], as_json: bool, **options: Any) -> int:
    """Prints the class of each IMAGE (PNG or JPEG of the net's size).

    Class N, one more than the net's last class, means: refused as triggered. The
    score is by how many logits class N wins (above 0) or loses (below); a plain
    net has none. A GoodNet knows its own architecture and input: the options
    on these are for plain nets.
    """
    classifier = take_model_options(options).load(goodnet)
    pictures = [read_one_image(path, classifier.input.shape).tensor() for path in images]
    answers: list[dict[str, Any]] = []
    lines = []
    with torch.no_grad():
        for path, picture in zip(images, pictures):
            logits = classifier.logits(picture.to(classifier.device))[0].cpu()
            found = int(logits.argmax())
            score = float(logits[-1] - logits[:-1].max()) if classifier.refuses else None
            triggered = classifier.refuses and found == classifier.classes
            answer = {"path": str(path), "class": found, "triggered": triggered, "score": score}
            answers.append({**answer, "sha256": file_sha256(path), "net_sha256": classifier.sha256})
            note = f"triggered (class N = {found}), " if triggered else ""
            lines.append(f"{visible(str(path))}: {found}" + ("" if score is None else f"  {note}score {score:+.3g}"))
    click.echo(to_json(answers) if as_json else "\n".join(lines), nl=not as_json)
    return 0
