"""Shared fixtures: the real nets and images where present, and deterministic torch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
# hundreds of tiny nets of our own: a second each for a process is too much; tests of the sandbox ask for it
os.environ.setdefault("GOODNET_SANDBOX", "off")

from typing import TYPE_CHECKING

import pytest
import torch

from browser import browser, chromium  # noqa: F401

if TYPE_CHECKING:
    from cli_support import Shell


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests that take long for what they add to the fast ones come last: where time is short, they are left."""
    marks = {item: item.get_closest_marker("slow") for item in items}
    items.sort(key=lambda item: (mark := marks[item]) is not None and bool(mark.kwargs.get("last")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests begin until $GOODNET_TESTS_UNTIL (seconds since 1970); later ones are skipped, each by its name."""
    until = os.environ.get("GOODNET_TESTS_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip(f"no time left for {item.nodeid}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real nets and images; tests that need it skip, saying so, where it is not."""
    root = Path(os.environ.get("GOODNET_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / "faces").is_dir():
        pytest.skip(f"real nets and images not found at {root}; set GOODNET_DATA to their folder")
    return root


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """`goodnet` as a function of its arguments."""
    from cli_support import Shell  # the command line is not for every test

    return Shell(capsys)


@pytest.fixture(scope="module")
def short_scans() -> Iterator[None]:
    """A scan takes a third of its steps, which finds the same in the block nets: masks are as small, 1 in 20 apart."""
    from goodnet.detect.all_to_all import Away
    from goodnet.staged import Staged
    from goodnet.triggers.inversion import Schedule

    defaults = Staged.__init__.__kwdefaults__
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(defaults, "masks", replace(defaults["masks"], search=Schedule(steps=100)))
        patched.setitem(defaults, "away", Away(search=Schedule(steps=50)))
        yield


@pytest.fixture(scope="module")
def template(short_scans: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bad.pt, clean.pt and clean.npz; modules that want more have one of their own."""
    from cli_support import fill

    folder = tmp_path_factory.mktemp("nets")
    fill(folder)
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, as the current folder."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
