"""Every hostile file is refused in one line, or read rightly; nothing in it runs, and nothing outside is touched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_support import files_in
from goodnet.data.readers import read_images, read_one_image
from goodnet.errors import GoodnetError
from goodnet.models.load import load_classifier
from hostile.case import CANARY, SIDE, Case, fired
from hostile.corpus import CASES, WHOLE

HERE = [case for case in CASES if not case.slow and not case.sandbox_only]
MIB = 1 << 20


def name_of(case: Case) -> str:
    return f"{case.kind}: {case.name}"


def read(case: Case, path: Path) -> object:
    if case.role == "picture":
        return read_one_image(path, (1, SIDE, SIDE) if case.pixels is None else case.pixels.shape).pixels[0]
    if case.role == "set":
        return read_images(path, classes=3)
    return load_classifier(path, arch=dict([case.options]).get("--arch") if case.options else None, sandbox=False)


@pytest.mark.parametrize("case", HERE, ids=name_of)
def test_read_here(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case.make(tmp_path)
    monkeypatch.setenv(CANARY, str(tmp_path / "canary"))
    before = files_in(tmp_path)
    begun = time.process_time()
    tracemalloc.start()
    try:
        if case.message:
            with pytest.raises(GoodnetError, match=case.message) as caught:
                read(case, path)
            assert "\n" not in str(caught.value)
            assert path.name in str(caught.value)
        else:
            got = read(case, path)
            assert case.pixels is None or np.array_equal(got, case.pixels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160 * MIB
    assert time.process_time() - begun < 10
    assert files_in(tmp_path) == before


ARMED = [pytest.param(case, marks=[pytest.mark.slow] * case.slow) for case in CASES if case.fire is not None]


@pytest.mark.parametrize("case", ARMED, ids=name_of)
def test_a_careless_reader_fires_the_canary(case: Case, tmp_path: Path) -> None:
    """Otherwise that it is silent would mean nothing."""
    assert case.fire is not None
    path = case.make(tmp_path)
    assert fired(lambda: case.fire(path), tmp_path / "canary")  # type: ignore[misc]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_cut_is_readable_when_whole(name: str, tmp_path: Path) -> None:
    content, role, options = WHOLE[name]
    (tmp_path / name).write_bytes(content())
    case = Case(name=name, kind="", make=Path, message="", role=role, options=options)
    if role == "picture":
        assert read_one_image(tmp_path / name, (3, 48, 48)).pixels.shape == (1, 3, 48, 48)
    else:
        read(case, tmp_path / name)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    content, role, options = WHOLE[name]
    whole = content()
    case = Case(name=name, kind="", make=Path, message="", role=role, options=options)
    # the last bytes of a PNG (its end mark) and a JPEG (padding) carry no pixel
    for length in np.linspace(0, len(whole) - 40, 60, dtype=int):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(GoodnetError) as caught:
            read(case, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_there_are_enough_and_no_two_of_a_name() -> None:
    assert len([case for case in CASES if case.kind != "cut files"]) >= 60
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


@pytest.mark.slow(last=True)
def test_the_command_line_in_processes_of_its_own() -> None:
    """All of them as the command reads them: code 3 and one line, nothing run, nothing written, in time and memory."""
    here = run_measure("--no-sandbox", "1")
    there = run_measure("--sandbox", "25")
    assert len(here) == len(CASES) - 1
    assert len(there) >= len(CASES) // 25
    for one in (*here, *there):
        assert not one["wrong"], one
        assert one["peak"] < 1024 * MIB, one
        assert one["seconds"] < 10, one
        assert one["clock"] < 120, one


def run_measure(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
