"""Cells of a benchmark: in order, and nothing of one is left when the next begins."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from goodnet.cells import run_cells
from goodnet.progress import silent
from goodnet.runners import SERIAL


class Knot:
    """Refers to itself, as nets with hooks do: only the collector ends it."""

    def __init__(self) -> None:
        self.itself = self


KNOTS: list[weakref.ref[Knot]] = []


def cell(bench: str, number: int) -> tuple[str, int, int]:
    alive = sum(knot() is not None for knot in KNOTS)
    KNOTS.append(weakref.ref(Knot()))
    if number < 0:
        raise ValueError(bench)
    return bench, number, alive


def test_nothing_of_a_cell_is_left_when_the_next_begins(tmp_path: Path) -> None:
    KNOTS.clear()
    gc.disable()
    try:
        told: list[int] = []
        found = run_cells(
            cell, "b", [3, 1, 2], out=tmp_path, folders="x", runner=SERIAL, progress=silent,
            each=lambda result, done: told.append(done),
        )  # fmt: skip
        with pytest.raises(ValueError, match="b"):
            run_cells(cell, "b", [-1], out=tmp_path, folders="x", runner=SERIAL, progress=silent, each=lambda *_: None)
        assert [knot() for knot in KNOTS] == [None] * 4
    finally:
        gc.enable()
    assert found == [("b", 3, 0), ("b", 1, 0), ("b", 2, 0)]
    assert told == [1, 2, 3]
