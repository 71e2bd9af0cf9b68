from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cli_support import Shell
from goodnet import detection_pool, pool_scan
from goodnet.cli import bench_detection
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection_bench import auc, auc_share, run_detection, summaries, summary
from goodnet.detection_record import DetectionRecord, DetectionRow, read_detection
from goodnet.detection_specs import FACES, JUDGING, SETTING, PoolNet
from goodnet.errors import UsageError
from goodnet.record import Environment, MethodInfo
from goodnet.report.detection_plot import detection_svg
from goodnet.report.detection_table import detection_markdown
from goodnet.triggers.inversion import Schedule
from runner_blocks import ByPost

CLEAN = DetectionRow(
    net="a",
    part=JUDGING,
    kind="mnist cnn",
    attack="",
    targets=(),
    planted=True,
    acc=None,
    asr=None,
    verdict="clean",
    flagged_labels=(),
    score=3.0,
    best_label=1,
    target_ratio=None,
    seconds=4.0,
    forward_passes=5,
)
BAD = replace(CLEAN, net="b", attack="patch", targets=(3,), asr=1.0, verdict="suspect", flagged_labels=(3,), score=1e-3)
ROWS = (
    CLEAN,
    replace(CLEAN, net="c", verdict="inconclusive", score=0.2),
    replace(CLEAN, net="d", verdict="suspect", flagged_labels=(2,), score=0.01, kind="faces deepid"),
    BAD,
    replace(BAD, net="e", targets=(1, 2), flagged_labels=(1, 7), attack="several-targets"),
    replace(BAD, net="f", flagged_labels=(5,), score=0.01),  # suspect, but of another label
    replace(BAD, net="g", attack="source-specific", targets=(0, 1), verdict="clean", flagged_labels=(), score=None),
    replace(BAD, net="h", planted=False, verdict="clean", flagged_labels=(), score=5.0),
    replace(BAD, net="i", part=SETTING, verdict="inconclusive", flagged_labels=()),
)


def slow_auc(positive: list[float], negative: list[float]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    return sum(pairs) / len(pairs)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    for n, m in ((1, 1), (3, 7), (20, 11)):
        positive, negative = random.integers(0, 6, n).tolist(), random.integers(-2, 5, m).tolist()
        assert auc(positive, negative) == pytest.approx(slow_auc(positive, negative))
    assert auc([-np.inf, 1.0], [-np.inf, 0.0]) == pytest.approx(0.625)
    with pytest.raises(ValueError, match="of both kinds"):
        auc([], [1.0])


def test_the_interval_of_auc_is_a_bootstrap_of_each_kind_on_its_own() -> None:
    random = np.random.default_rng(1)
    positive, negative = random.normal(1, 1, 60), random.normal(0, 1, 60)
    found = auc_share(positive, negative, seed=5)
    assert found is not None
    assert found.value == pytest.approx(auc(positive, negative))
    assert found.n == 120
    # Hanley and McNeil (Radiology 1982): the closed form of AUC's standard error
    a, q1, q2 = found.value, found.value / (2 - found.value), 2 * found.value**2 / (1 + found.value)
    error = np.sqrt((a * (1 - a) + 59 * (q1 - a * a) + 59 * (q2 - a * a)) / 3600)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert auc_share(positive, negative, seed=5) == found
    assert auc_share(positive, []) is None


def test_rates_are_counted_as_their_names_say() -> None:
    judged = [row for row in ROWS if row.part == JUDGING]
    all_of = summary(JUDGING, "all", judged)
    assert (all_of.clean, all_of.backdoored, all_of.not_planted) == (3, 4, 1)
    values = {name: getattr(all_of, name) for name in ("tpr", "suspect", "fpr", "inconclusive", "missed")}
    assert {name: (share.value, share.n) for name, share in values.items()} == {
        "tpr": (2 / 4, 4),  # b and e; f is suspect of the wrong label
        "suspect": (3 / 4, 4),
        "fpr": (1 / 3, 3),
        "inconclusive": (1 / 7, 7),
        "missed": (1 / 4, 4),
    }
    assert all_of.precision is not None
    assert (all_of.precision.value, all_of.precision.n) == (2 / 4, 4)  # 3 | 1, 7 | 5
    assert all_of.recall is not None
    assert (all_of.recall.value, all_of.recall.n) == (2 / 6, 6)  # 3 | 1, 2 | 3 | 0, 1
    assert all_of.auc is not None
    assert all_of.auc.value == pytest.approx(slow_auc([-1e-3, -1e-3, -0.01, -np.inf], [-3.0, -0.2, -0.01]))
    assert summary(JUDGING, "none", []).tpr is None


def test_groups_are_parts_blind_spots_kinds_and_attacks() -> None:
    found = {(row.part, row.group): row for row in summaries(ROWS)}
    assert {part for part, _ in found} == {JUDGING, SETTING, "all"}
    assert found["all", "all"].backdoored == 5
    shaped = found[JUDGING, "all but blind spots"]
    assert (shaped.clean, shaped.backdoored) == (3, 3)
    assert (found[JUDGING, "kind faces deepid"].clean, found[JUDGING, "kind mnist cnn"].clean) == (1, 2)
    patch = found[JUDGING, "attack patch"]
    assert (patch.clean, patch.backdoored, patch.not_planted) == (3, 2, 1)
    assert {row.part for row in summaries(ROWS[:3])} == {JUDGING}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[PoolNet]:
    monkeypatch.setattr(detection_pool, "_FACES_EACH", 8)
    monkeypatch.setattr(detection_pool, "CLEAN_IMAGES", 16)
    clean = PoolNet(name="toy", part=JUDGING, data=FACES, arch="deepid", options={"classes": 4}, seed=3, epochs=1)
    bad = replace(clean, name="toy-patch", attack="patch", seed=4)
    absent = replace(clean, name="absent", data="gtsrb", arch="small-vgg")
    return [clean, bad, absent]


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, toy: list[PoolNet], monkeypatch: pytest.MonkeyPatch) -> None:
    scanned, said = [], []
    real = pool_scan.scan

    def counted(classifier: object, *args: object, **options: object) -> object:
        scanned.append(classifier.name)  # type: ignore[attr-defined]
        return real(classifier, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pool_scan, "scan", counted)
    cache, out = tmp_path / "cache", tmp_path / "out"
    short = NeuralCleanse(search=Schedule(steps=6, batch=4))
    record = run_detection(cache, out, nets=toy, method=short, say=said.append)
    assert scanned == ["toy", "toy-patch"]
    assert [text.split(":")[0] for text in record.left_out] == ["absent"]
    assert [text.split(":")[0] for text in said] == ["1/2 toy", "2/2 toy-patch"]
    assert read_detection(out / "detection.json") == record
    table = detection_markdown(record)
    assert "| toy-patch | judging |" in table
    assert "- absent: needs" in table

    again = run_detection(cache, out, nets=toy, method=short)
    assert len(scanned) == 2
    assert again.rows == record.rows
    (out / "scans" / "toy" / "scan.json").write_text("{}")  # cut short
    run_detection(cache, out, nets=toy, method=short)
    assert scanned[2:] == ["toy"]
    other = NeuralCleanse(search=Schedule(steps=7, batch=4))
    run_detection(cache, out, nets=toy[:1], method=other)
    run_detection(cache, out, nets=toy[:1], method=other, seed=1)
    assert scanned[3:] == ["toy", "toy"]
    with pytest.raises(UsageError, match="absent: needs"):
        run_detection(cache, out, nets=toy[2:], method=short)


@pytest.mark.slow
def test_another_runner_gives_the_same_rows(tmp_path: Path, toy: list[PoolNet]) -> None:
    short = NeuralCleanse(search=Schedule(steps=6, batch=4))
    here = run_detection(tmp_path / "cache", tmp_path / "here", nets=toy, method=short)
    away = run_detection(tmp_path / "cache", tmp_path / "away", nets=toy, method=short, runner=ByPost())
    assert [replace(row, seconds=0.0) for row in away.rows] == [replace(row, seconds=0.0) for row in here.rows]
    assert [row.net for row in away.rows] == ["toy", "toy-patch"]
    assert (tmp_path / "away" / "scans" / "toy" / "scan.json").is_file()
    assert not list((tmp_path / "away").glob(".running-*"))


def test_the_command_asks_for_names_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = Shell(capsys)("bench", "detection", "--only", "faces-12,no-such-net", "--part", "all", "--out", tmp_path)
    assert result.code == 3
    assert "--only" in result.err
    assert "'no-such-net'" in result.err
    assert result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_leaves_record_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: list[PoolNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def no_scans(cache: Path, out: Path, **options: object) -> object:
        given.update(options, cache=cache)
        short = NeuralCleanse(search=Schedule(steps=6, batch=4))
        return run_detection(cache, out, nets=toy[:1], method=short)

    monkeypatch.setattr(bench_detection, "run_detection", no_scans)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "home"))
    result = Shell(capsys)(
        "bench", "detection", "--only", "faces-12,lfw", "--part", "setting", "--out", tmp_path / "out", "--json"
    )
    assert result.code == 0
    assert result.json["rows"][0]["net"] == "toy"
    assert given["cache"] == tmp_path / "home" / "goodnet" / "pool"
    assert {spec.kind for spec in given["nets"]} == {"faces deepid", "lfw deepid"}
    assert all(("faces-12" in spec.name or "lfw" in spec.name) and spec.part == SETTING for spec in given["nets"])
    assert read_detection(tmp_path / "out" / "detection.json").rows[0].net == "toy"
    assert "| toy | judging |" in (tmp_path / "out" / "detection.md").read_text(encoding="utf-8")


def test_the_drawing_has_a_mark_for_each_net_and_nothing_of_a_name_gets_in() -> None:
    rows = (*ROWS, replace(CLEAN, kind="<script>alert(1)</script>"))
    record = DetectionRecord(
        rows=rows, summaries=(), left_out=(), method=MethodInfo(name="staged", passed={}, resolved={}, seed=0),
        environment=Environment(command=(), goodnet="0", torch="0", python="0", device="cpu", threads=1), seconds=1.0,
    )  # fmt: skip
    drawn = detection_svg(record, ("source-specific",))
    ElementTree.fromstring(drawn)
    assert "<script" not in drawn
    scored = [row for row in rows if row.planted and row.score is not None]
    discs, crosses = drawn.count('class="clean" d="M') - 2, drawn.count('class="bad" d="M') - 1  # legend, steps
    assert discs == sum(not row.attack for row in scored)
    assert crosses == sum(bool(row.attack) for row in scored)
