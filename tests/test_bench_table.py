from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from goodnet.bench_record import BenchRecord, BenchRow, BenchScan, Published, read_bench
from goodnet.errors import DataError
from goodnet.record import DataInfo, Environment, Share
from goodnet.report.bench_table import bench_csv, bench_markdown
from goodnet.strict_json import write_record

SHARE = Share(value=0.95, low=0.888, high=0.978, n=100)
ROW = BenchRow(
    net="sunglasses",
    method="nc-prune",
    trigger="sunglasses",
    target=0,
    accepted=False,
    acc=SHARE,
    asr=Share(value=0.5, low=0.4, high=0.6, n=99),
    ra=Share(value=0.04, low=0.02, high=0.1, n=100),
    ra_ceiling=0.05,
    detection=None,
    fpr=Share(value=0.01, low=0.002, high=0.05, n=100),
    fpr_strangers=None,
    fpr_target=Share(value=1.0, low=0.7, high=1.0, n=9),
    seconds=12.345,
    note="half of | the poison",
)
RECORD = BenchRecord(
    name="csaw",
    rows=(replace(ROW, method="none", accepted=None, note=""), ROW, replace(ROW, net="multi", target=None)),
    scans=(BenchScan(net="sunglasses", verdict="suspect", flagged_labels=(0, 7), targets=(0,), seconds=200.0),),
    published=(Published(net="sunglasses", who="others", acc=92.8, asr=9.5),),
    data=(DataInfo(name="clean.h5", sha256="0" * 64, n=115, labelled=True),),
    seconds=61.0,
    environment=Environment(command=("goodnet",), goodnet="0.1", torch="2", python="3", device="cpu", threads=2),
)


def test_the_record_is_read_again_as_it_was(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == RECORD
    text = (tmp_path / "bench.json").read_text().replace("goodnet.bench/1", "goodnet.scan/1")
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(DataError, match="of format"):
        read_bench(tmp_path / "bench.json")


def test_csv_holds_every_figure_and_nothing_for_none() -> None:
    rows = list(csv.DictReader(io.StringIO(bench_csv(RECORD))))
    assert len(rows) == 3
    row = rows[1]
    assert (row["net"], row["method"], row["accepted"], row["target"]) == ("sunglasses", "nc-prune", "False", "0")
    assert [float(row[f"acc{end}"]) for end in ("", "_low", "_high", "_n")] == [0.95, 0.888, 0.978, 100]
    assert row["detection"] == row["detection_n"] == ""
    assert float(row["fpr_target"]) == 1
    assert row["note"] == "half of | the poison"
    assert (rows[0]["accepted"], rows[2]["target"]) == ("", "")


def test_markdown_has_a_table_a_net_with_as_many_cells_in_each_line() -> None:
    text = bench_markdown(RECORD)
    assert "## sunglasses" in text
    assert "## multi" in text
    assert "95.0 (89–98)" in text
    assert "4.0 (2–10) of 5" in text  # RA beside what a clean net still recognises
    assert "* others: 92.8 / 9.5" in text
    assert "[1] half of | the poison" in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
        assert set(block[1]) == {"|", "-"}
    assert "| suspect | 0, 7 | 0 | 200 |" in text


def test_several_seeds_are_shown_by_their_mean_and_extremes() -> None:
    def one(seed: int, asr: float, method: str, accepted: bool | None) -> BenchRow:
        share = Share(value=asr, low=0.0, high=1.0, n=100)
        return replace(ROW, asr=share, method=method, accepted=accepted, seed=seed, note="")

    rows = (
        one(0, 0.0, "auto: unlearn, watch", True),
        one(1, 0.03, "auto: unlearn, watch", True),
        one(2, 0.12, "auto: watch", False),
        *(one(seed, 1.0, "none", None) for seed in range(3)),
    )
    text = bench_markdown(replace(RECORD, rows=rows))
    first, second = (line for line in text.splitlines() if "auto:" in line or line.startswith("| none"))
    assert first.startswith("| auto: unlearn, watch (2); auto: watch (1) | 2 of 3 | sunglasses → 0 |")
    assert "| 5.0 (0.0 to 12.0) |" in first
    assert "| 4.0 (4.0 to 4.0) of 5 |" in first
    assert second.startswith("| none | – |")
    assert "| 100.0 (100.0 to 100.0) |" in second
    assert "means over 3 seeds" in text
    assert [row["seed"] for row in csv.DictReader(io.StringIO(bench_csv(replace(RECORD, rows=rows))))] == [*"012012"]
