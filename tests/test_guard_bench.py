"""What the guard benchmark measures of one guard, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import torch

from goodnet.about import environment
from goodnet.guard_bench import _measured
from goodnet.guard_record import GuardRecord
from goodnet.measure import measure
from goodnet.models import surgery
from goodnet.models.goodnet_make import goodnet_from
from goodnet.report.guard_table import guard_markdown
from test_repair_bench import subject


def test_a_guard_is_measured_by_its_scores_and_by_its_own_threshold(tmp_path: Path) -> None:
    """The twin does without the hidden unit of the backdoor, so triggered images alone are disputed."""
    one = subject(tmp_path)
    good = surgery.clone(one.net)
    with torch.no_grad():
        last = good.net.get_submodule(surgery.output_layer(good))
        last.weight[:, -1] = 0.0  # type: ignore[index, operator]
    made = goodnet_from(one.net, good)
    (row,) = _measured(one, "disagreement", made)
    figures = measure(made, one.test, [one.poisoned["pixel"]])
    assert row.auc > 0.99
    assert row.detection.value > 0.95
    assert row.detection_at is not None
    assert row.detection_at > 0.95
    assert row.fpr == figures.fpr
    assert row.times > 0
    (blind,) = _measured(one, "blind", goodnet_from(one.net, surgery.clone(one.net)))
    assert (blind.auc, blind.detection.value, blind.detection_at) == (0.5, 0.0, 0.0)
    record = GuardRecord(rows=(row, blind), seed=0, seconds=1.0, environment=environment(one.net, ()))
    text = guard_markdown(record)
    assert "## ours: pixel" in text
    assert "| blind | 0.5000 | 0.0 |" in text
