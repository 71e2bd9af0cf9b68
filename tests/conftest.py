"""Shared fixtures: the real nets and images where present, and deterministic torch."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
# hundreds of tiny nets of our own: a second each for a process is too much; tests of the sandbox ask for it
os.environ.setdefault("GOODNET_SANDBOX", "off")

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real nets and images; tests that need it skip, saying so, where it is not."""
    root = Path(os.environ.get("GOODNET_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / "faces").is_dir():
        pytest.skip(f"real nets and images not found at {root}; set GOODNET_DATA to their folder")
    return root


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
