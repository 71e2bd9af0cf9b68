"""Options that commands share, and what they are turned into: nets, images, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier

_F = TypeVar("_F", bound=Callable[..., Any])


class Numbers(click.ParamType[tuple[float, ...]]):
    """`0.5` or `0.48,0.45,0.41` -> tuple of float."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected a number, or one a channel as 0.48,0.45,0.41; got {value!r}", param, ctx)


class WholeNumbers(click.ParamType[tuple[int, ...]]):
    """`3,55,47` or `0,5,10-20` -> tuple of int."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        result: list[int] = []
        try:
            for part in str(value).split(","):
                low, dash, high = part.partition("-")
                first, last = int(low), int(high if dash else low)
                if last - first > 1 << 20:
                    raise ValueError
                result += range(first, last + 1)
        except ValueError:
            self.fail(f"expected whole numbers as 0,5,10-20; got {value!r}", param, ctx)
        return tuple(result)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to read MODEL; the options of `model_options`."""

    arch: str | None
    classes: int | None
    input_range: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, ...] | None
    device: str

    def load(self, path: Path) -> Classifier:
        shape = self.input_shape
        if shape is not None and len(shape) != 3:
            raise UsageError(f"--input-shape: expected C,H,W, got {','.join(map(str, shape))}")
        return load_classifier(
            path,
            arch=self.arch,
            classes=self.classes,
            input_range=self.input_range,
            mean=self.mean,
            std=self.std,
            input_shape=None if shape is None else (shape[0], shape[1], shape[2]),
            device=resolve_device(self.device),
        )


def model_options(command: _F) -> _F:
    """Adds the options that `ModelOptions` holds; the command gets them as `model_options`."""
    decorators = [
        click.option("--arch", metavar="NAME|FILE.py:CALLABLE", help="Architecture, where the file holds weights "
                     "alone: deepid, small-vgg, wrn-16-1, cnn, mlp, or your own code."),
        click.option("--classes", type=int, help="Number of classes, for your own code."),
        click.option("--input-range", type=click.Choice(["0..1", "0..255"]), default="0..1", show_default=True,
                     help="What the net expects."),
        click.option("--mean", type=Numbers(), default=(), help="Normalisation, one number or one a channel."),
        click.option("--std", type=Numbers(), default=(), help="As --mean."),
        click.option("--input-shape", type=WholeNumbers(), metavar="C,H,W", help="Where nothing else tells."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
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
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
        click.option("--out", type=click.Path(path_type=Path), help="Folder for the record, pictures and report."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier result of the same name."),
        click.option("--json", "as_json", is_flag=True, help="The record alone on stdout."),
    ]
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


def command_line() -> tuple[str, ...]:
    """What the user typed."""
    return ("goodnet", *sys.argv[1:])


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))
