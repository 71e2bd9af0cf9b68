"""Options that commands share, and what they are turned into: nets, images, progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from goodnet.cli.output import note
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import UsageError
from goodnet.memory import in_bytes
from goodnet.models.classifier import Classifier
from goodnet.models.formats import Shape
from goodnet.models.load import load_classifier
from goodnet.report.figures import visible

_F = TypeVar("_F", bound=Callable[..., Any])
_MAX_RANGE = 1 << 20


def numbers(value: str | tuple[float, ...]) -> tuple[float, ...]:
    """`0.5` or `0.48,0.45,0.41` -> tuple of float."""
    if isinstance(value, tuple):
        return value
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected a number, or one a channel as 0.48,0.45,0.41; got {value!r}") from None


def whole_numbers(value: str) -> tuple[int, ...]:
    """`0,5,10-20` -> tuple of int."""
    result: list[int] = []
    try:
        for part in value.split(","):
            low, dash, high = part.partition("-")
            first, last = int(low), int(high if dash else low)
            if not 0 <= last - first <= _MAX_RANGE:
                raise ValueError
            result += range(first, last + 1)
    except ValueError:
        raise click.BadParameter(f"expected whole numbers as 0,5,10-20; got {value!r}") from None
    return tuple(result)


def size(value: str) -> int:
    """`2GiB` or `800MB` -> bytes."""
    try:
        return in_bytes(value)
    except UsageError as error:
        raise click.BadParameter(str(error).removeprefix("memory: ")) from None


def shape(value: str) -> Shape:
    """`3,55,47` -> (C, H, W)."""
    try:
        channels, height, width = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected channels, height and width as 3,55,47; got {value!r}") from None
    return channels, height, width


def seed(value: str) -> int:
    """`7` -> 7, from 0 to 2^63 - 1."""
    if not value.isascii() or not value.isdigit() or int(value) >= 1 << 63:
        raise click.BadParameter(f"expected a whole number from 0 to {(1 << 63) - 1}; got {value!r}")
    return int(value)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to read MODEL; the options of `model_options`."""

    arch: str | None
    classes: int | None
    input_range: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: Shape | None
    device: str
    sandbox: bool | None

    def load(self, path: Path) -> Classifier:
        device = resolve_device(self.device)
        with contextlib.redirect_stdout(sys.stderr):  # of the user's own code; stdout is for records
            return load_classifier(
                path,
                arch=self.arch,
                classes=self.classes,
                input_range=self.input_range,
                mean=self.mean,
                std=self.std,
                input_shape=self.input_shape,
                device=device,
                sandbox=self.sandbox,
            )


def sandbox_option(command: _F) -> _F:
    return click.option(
        "--sandbox/--no-sandbox", default=None, help="Read MODEL in a process of its own, with limits.  [default: "
        "sandbox, unless GOODNET_SANDBOX=off]"
    )(command)  # fmt: skip


def model_options(command: _F) -> _F:
    """Adds the options that `ModelOptions` holds; the command gets them as `model_options`."""
    decorators = [
        click.option("--arch", metavar="NAME|FILE.py:CALLABLE", help="Architecture, where the file holds weights "
                     "alone: deepid, resnet-18, vgg-16, wrn-16-1, vit ... (README lists them), or your own code."),
        click.option("--classes", type=int, help="Number of classes, for your own code."),
        click.option("--input-range", type=click.Choice(["0..1", "0..255"]), default="0..1", show_default=True,
                     help="What the net expects."),
        click.option("--mean", type=numbers, default=(), metavar="NUMBERS",
                     help="Normalisation, one number or one a channel."),
        click.option("--std", type=numbers, default=(), metavar="NUMBERS", help="As --mean."),
        click.option("--input-shape", type=shape, metavar="C,H,W", help="Of an image, where nothing else tells."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        sandbox_option,
    ]  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def data_range_option(command: _F) -> _F:
    return click.option(
        "--data-range", type=click.Choice(["0..1", "0..255"]), help="Of pixels stored as floats; uint8 needs none."
    )(command)


def run_options(command: _F) -> _F:
    """--seed, --out, --overwrite, --json: what every command that makes a record has."""
    decorators = [
        click.option("--seed", type=seed, metavar="NUMBER", default="0", show_default=True,
                     help="The same seed gives the same record."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder for the record, pictures and report."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier result of the same name."),
        click.option("--json", "as_json", is_flag=True, help="The record alone on stdout."),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_model_options(options: dict[str, Any]) -> ModelOptions:
    """Takes the values of `model_options` out of a command's keyword arguments."""
    return ModelOptions(**{name: options.pop(name) for name in ModelOptions.__dataclass_fields__})


def resolve_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a machine with CUDA, found none; pass --device cpu")
    return name


def read_clean(path: Path, classifier: Classifier, data_range: str | None) -> Images:
    """Clean images that fit the net."""
    return read_images(path, classes=classifier.classes, data_range=data_range)


def remark_on_poisoned(sets: Sequence[Images]) -> None:
    """A word of warning, once a command has done its work, where triggered images look like clean ones."""
    for images in sets:
        if images.true_labels is None and images.labels is not None and len(set(images.labels.tolist())) > 1:
            note(
                f"goodnet: take care: {visible(images.name)} has several labels and no true_label; a poisoned set is "
                "labelled with the attacker's target, so if this is a clean set, its ASR means nothing"
            )


def command_line() -> tuple[str, ...]:
    """What the user typed."""
    return ("goodnet", *sys.argv[1:])


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))
