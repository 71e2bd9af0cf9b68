"""Shared fixtures: the real nets and images where present, and deterministic torch."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
# hundreds of tiny nets of our own: a second each for a process is too much; tests of the sandbox ask for it
os.environ.setdefault("GOODNET_SANDBOX", "off")

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from cli_support import Shell


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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """bad.pt, clean.pt and clean.npz, in the current folder."""
    from cli_support import fill

    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
