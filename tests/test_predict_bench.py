from __future__ import annotations

import time

import pytest

from goodnet.errors import UsageError
from goodnet.predict_bench import fastest, run_predict
from goodnet.report.speed_table import predict_markdown
from goodnet.strict_json import to_json


@pytest.mark.slow
def test_every_kind_of_goodnet_is_timed_at_every_batch_size() -> None:
    record = run_predict(batches=(1, 2), turns=1)
    assert {row.batch for row in record.rows} == {1, 2}
    assert len(record.rows) == 2 * 6
    for row in record.rows:
        assert row.milliseconds > 0
        assert row.ratio == 1 if row.kind == "the net itself" else row.ratio > 0
    assert predict_markdown(record).count("\n| ") == 1 + 12
    assert "goodnet.bench-predict/1" in to_json(record)


def test_thefastest_turn_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    lengths = {"a": iter([0.1, 5.0, 3.0, 4.0]), "b": iter([9.0, 9.0, 7.0, 8.0])}

    def work(name: str) -> None:
        nonlocal now
        now += next(lengths[name])

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert fastest({"a": lambda: work("a"), "b": lambda: work("b")}, 3, 1) == {"a": 3.0, "b": 7.0}


@pytest.mark.parametrize("wrong", [{"batches": ()}, {"batches": (0,)}, {"turns": 0}])
def test_nothing_to_time(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="bench predict: expected"):
        run_predict(**wrong)  # type: ignore[arg-type]
