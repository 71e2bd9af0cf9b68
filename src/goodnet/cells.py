"""The cells of a benchmark, each a net with all that is done to it: one after another here, or tasks on Ray."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from goodnet.memory import trim
from goodnet.outputs import check_shared, marked
from goodnet.progress import Progress
from goodnet.runners import Runner
from goodnet.shipping import Tell

_B = TypeVar("_B")
_C = TypeVar("_C")
_R = TypeVar("_R")


def run_cells(
    function: Callable[[_B, _C], _R],
    bench: _B,
    cells: Sequence[_C],
    *,
    out: Path,
    folders: str,
    runner: Runner,
    progress: Progress,
    each: Callable[[_R, int], None],
) -> list[_R]:
    """The cells' results, in their order; a cell has all cores to itself.

    Args:
        function: of a module; called with `bench` and a cell.
        bench: what all cells need; its paths absolute.
        out: folder of all results.
        folders: which options name them, as a line begins that goes on: in folders that all machines share.
        progress: told of `nets`.
        each: called with each result as it is there, and how many there are by then.

    Raises:
        UsageError: a machine does not share the folders; and what the function raises.
    """
    progress("nets", 0, len(cells))
    found: dict[int, _R] = {}
    with marked(out) as mark:
        shared = (mark, folders, function, bench)
        for number, result in runner.run(_cell, shared, cells, alone=True):
            found[number] = result
            progress("nets", len(found), len(cells))
            each(result, len(found))
    return [found[number] for number in range(len(cells))]


def tell(lines: Iterable[str], say: Callable[[str], None]) -> None:
    """What a cell has to say, to who watches."""
    for line in lines:
        say(line)


def _cell(shared: tuple[Path, str, Callable[[Any, Any], Any], Any], cell: Any, _: Tell) -> Any:
    mark, folders, function, bench = shared
    check_shared(mark, folders)
    try:
        return function(bench, cell)
    finally:  # or a process that has seen eight nets holds gigabytes of what it no longer uses
        gc.collect()
        trim()
