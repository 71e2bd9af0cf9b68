"""Functions of blocks that a worker can import, and a runner that sends all of it through pickles, without Ray."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goodnet.errors import DataError
from goodnet.shipping import Pieces, Tell, on_worker, versions


def powers(base: torch.Tensor, block: range, tell: Tell) -> tuple[list[float], int]:
    """Sums of powers of a tensor, and how many threads torch has; tells of each."""
    found = []
    for exponent in block:
        found.append(float((base**exponent).sum()))
        tell(1)
    return found, torch.get_num_threads()


def fails(message: str, block: int, tell: Tell) -> int:
    """Raises an error of goodnet's for block 1."""
    if block == 1:
        raise DataError(message)
    return block


def waits(folder: Path, block: int, tell: Tell) -> int:
    """Leaves a file that says that it has begun, then waits for one that says that it may end."""
    (folder / f"begun-{block}").touch()
    while not (folder / "end").exists():
        time.sleep(0.01)
        tell(0)
    return block


class ByPost:
    """As `OnRay`, in this process: everything goes to and fro as pickles. `nets` are those that were sent."""

    here = False

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}

    def run(
        self,
        function: Callable[[Any, Any, Tell], Any],
        shared: Any,
        blocks: Sequence[Any],
        *,
        tell: Tell = lambda moved: None,
        alone: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        pieces = Pieces()
        key = pieces.add(shared)
        self.sent |= pieces.found
        raw = [np.frombuffer(piece, np.uint8) for piece in pieces.found.values()]
        header = (versions(), 1, key, list(pieces.found))
        threads = torch.get_num_threads()
        for i in reversed(range(len(blocks))):  # any order will do
            other, _, answer = on_worker(header, pickle.dumps((function, blocks[i])), *raw)
            torch.set_num_threads(threads)
            assert not other
            result, moved = pickle.loads(answer)
            tell(moved)
            yield i, result

    def nets(self) -> int:
        """How many different nets were sent."""
        return sum(b"Classifier\x94\x93" in raw[:100] for raw in self.sent.values())
