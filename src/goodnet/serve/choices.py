"""What a form says of a net and its images -> `Choices`, checked as the command line checks its options."""

from __future__ import annotations

from collections.abc import Mapping

from goodnet.errors import UsageError
from goodnet.models.arch import ARCHITECTURES
from goodnet.models.formats import SCALES, LoadOptions, check_shape
from goodnet.serve.jobs import Choices


def choices_of(fields: Mapping[str, str]) -> Choices:
    """Reads the fields of the form.

    Raises:
        UsageError: one of them is out of its range.
    """
    arch, data_range = fields.get("arch", ""), fields.get("data_range", "")
    if arch and arch not in ARCHITECTURES:  # never a FILE.py:CALLABLE, which would be run
        raise UsageError(f"--arch: expected one of goodnet's architectures, got {arch[:40]!r}")
    if data_range and data_range not in SCALES:
        raise UsageError(f"--data-range: expected {' or '.join(SCALES)}, got {data_range[:40]!r}")
    shape = tuple(map(int, _numbers(fields, "input_shape", whole=True)))
    if shape:
        if len(shape) != 3:
            raise UsageError("--input-shape: expected channels, height and width as 3,55,47")
        check_shape((shape[0], shape[1], shape[2]))
    choices = Choices(
        arch=arch,
        input_range=fields.get("input_range") or Choices().input_range,
        mean=_numbers(fields, "mean"),
        std=_numbers(fields, "std"),
        input_shape=shape,
        data_range=data_range,
    )
    LoadOptions(input_range=choices.input_range, mean=choices.mean, std=choices.std)
    return choices


def _numbers(fields: Mapping[str, str], name: str, *, whole: bool = False) -> tuple[float, ...]:
    """`0.5`, or one a channel as `0.48,0.45,0.41`; nothing for an empty field."""
    text = fields.get(name, "").strip()
    if not text:
        return ()
    try:
        return tuple(int(part) if whole else float(part) for part in text.split(",")[:4])
    except ValueError:
        example = "3,55,47" if whole else "0.5 or 0.48,0.45,0.41"
        raise UsageError(f"--{name.replace('_', '-')}: expected numbers as {example}, got {text[:40]!r}") from None
