"""The speed benchmark at the smallest: it measures what it says, and its table and command show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cli_support import Shell
from goodnet import speed
from goodnet.speed import flops_forward


def test_flops_are_counted_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 5, 7))
    by_hand = 2 * (4 * 3 * 9 * 4 * 5 + 4 * 4 * 5 * 7)
    assert flops_forward(net, torch.rand(1, 3, 6, 7)) == by_hand


@pytest.mark.thorough  # a minute and a half
def test_the_command_measures_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "BLOCKS", (16, 32))  # the benchmark itself takes minutes
    monkeypatch.setattr(speed, "_EACH", 4)
    monkeypatch.setattr(speed, "has_bfloat16", lambda device: False)
    arguments = ["bench", "scan", "--labels", "12", "--plain-labels", "1", "--plain-steps", "4", "--out", tmp_path]
    done = Shell(capsys)(*arguments)
    assert done.code == 0
    record = json.loads((tmp_path / "scan-speed.json").read_text())
    assert record["format"] == "goodnet.bench-scan/1"
    assert {row["block"] for row in record["engine"]} == {16, 32}
    assert record["scans"][0]["labels"] == 12
    assert record["times_faster"] == pytest.approx(record["plain_seconds"] / record["scans"][0]["seconds"])
    assert "times less" in done.out
