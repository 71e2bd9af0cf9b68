"""What a case is, and the canary: a file that a payload leaves behind if it ever runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CANARY = "GOODNET_CANARY"  # of the environment: where a payload that runs writes
PAYLOAD = f"import os; open(os.environ[{CANARY!r}], 'w').write('ran')"
SIDE = 8  # of the images that the small nets take
MLP = ("--arch", "mlp")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile file.

    Attributes:
        name: what it tries.
        kind: its group in the table.
        make: writes it into an empty folder and gives the path to name on the command line.
        message: regular expression that the one line must match; empty where the file is read, and rightly.
        role: `model`; `set`, a set of images; or `picture`, a single one.
        options: of the command line beside it.
        pixels: (C, H, W) uint8 of a picture that is read.
        fire: does what a careless program does with the file; the canary must be there afterwards. None where
            nothing in it could run.
        sandbox_only: only the limits of a process of its own end it.
        slow: takes seconds to build.
    """

    name: str
    kind: str
    make: Callable[[Path], Path]
    message: str
    role: str = "model"
    options: tuple[str, ...] = ()
    pixels: npt.NDArray[np.uint8] | None = None
    fire: Callable[[Path], object] | None = None
    sandbox_only: bool = False
    slow: bool = False


def fired(run: Callable[[], object], canary: Path) -> bool:
    """Whether running leaves the canary; whatever it raises on the way is of no interest."""
    os.environ[CANARY] = str(canary)
    try:
        run()
    except BaseException:
        pass
    finally:
        del os.environ[CANARY]
    return canary.exists()


def state(value: float = 0.01, classes: int = 3, hidden: int = 9) -> dict[str, Tensor]:
    """Weights of an `mlp` for 8 x 8 images."""
    return {
        "fc1.weight": torch.full((hidden, SIDE * SIDE), value),
        "fc1.bias": torch.zeros(hidden),
        "fc2.weight": torch.full((classes, hidden), value),
        "fc2.bias": torch.zeros(classes),
    }


def writes(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    """A `make` of a file's bytes."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content())
        return path

    return make
