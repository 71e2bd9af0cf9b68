"""--runner and what belongs to it: where a command's work is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import click

from goodnet.cli.output import note
from goodnet.errors import UsageError
from goodnet.report.figures import visible
from goodnet.runners import SERIAL, OnRay, Runner

_F = TypeVar("_F", bound=Callable[..., Any])


def runner_options(command: _F) -> _F:
    """Adds the options that `take_runner` takes."""
    decorators = [
        click.option("--runner", type=click.Choice(["serial", "ray"]), default="serial", show_default=True,
                     help="Where it is computed: in this process, or on Ray (extra goodnet[ray])."),
        click.option("--address", metavar="auto|URL",
                     help="Ray cluster to join: host:port, ray://host:port.  [default: start one here]"),
        click.option("--gpus-per-task", type=click.FloatRange(0, min_open=True), metavar="SHARE",
                     help="Of a GPU, for each task on Ray.  [default: 1 where the net is on a GPU]"),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_runner(options: dict[str, Any], *, cores: int | None = None) -> AbstractContextManager[Runner]:
    """What the options of `runner_options` ask for, which it takes out of a command's keyword arguments.

    Args:
        cores: of a Ray cluster that is started here; None for as many as torch has threads.

    Raises:
        UsageError: an option that needs Ray without it, or Ray is not installed.
    """
    name, address, gpus = (options.pop(key) for key in ("runner", "address", "gpus_per_task"))
    if name == "ray":
        return OnRay(address, gpus_per_task=gpus, cores=cores, say=lambda text: note(f"goodnet: {visible(text)}"))
    for option, value in (("--address", address), ("--gpus-per-task", gpus)):
        if value is not None:
            raise UsageError(f"{option}: expected with --runner ray, got --runner serial; add --runner ray")
    return nullcontext(SERIAL)
