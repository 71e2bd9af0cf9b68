"""The adaptive benchmark on tiny drawn faces: it goes on where it stopped, and its tables say what the record says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cli_support import Shell
from goodnet import adaptive_bench, detection_pool
from goodnet.adaptive_bench import METHOD_NAMES, methods_by_name, reference_of, run_adaptive
from goodnet.adaptive_record import AdaptiveRecord, AdaptiveRow, Again, Figures, read_adaptive, read_row
from goodnet.adaptive_specs import IMAGES, ROWS, adaptive_specs
from goodnet.attacks.low_norm import lowest
from goodnet.attacks.planting import planting
from goodnet.attacks.reattack import Reattack
from goodnet.auto import Auto
from goodnet.cli import bench_adaptive
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection_pool import CLEAN_IMAGES, needs
from goodnet.detection_specs import FACES, JUDGING, PoolNet, specs
from goodnet.errors import DataError, UsageError
from goodnet.record import DataInfo, Environment, MethodInfo, Share
from goodnet.repair.fine_pruning import FinePruning
from goodnet.repair.retrain import Retraining
from goodnet.repair.unlearning import Unlearning
from goodnet.report.adaptive_table import adaptive_csv, adaptive_markdown, survives
from goodnet.strict_json import write_record
from goodnet.triggers.inversion import Schedule
from runner_blocks import ByPost

SHARE = Share(value=0.9, low=0.85, high=0.95, n=100)
LOW = replace(SHARE, value=0.04, low=0.0, high=0.08)
INFO = DataInfo(name="clean", sha256="0" * 64, n=300, labelled=True)
ROW = AdaptiveRow(
    net="adaptive-mnist-patch",
    kind="mnist cnn",
    attack="patch",
    trigger_norm=None,
    target=3,
    planted=True,
    before=Figures(acc=SHARE, asr=SHARE, ra=LOW),
    verdict="suspect",
    flagged_labels=(3,),
    target_flagged=True,
    target_ratio=0.125,
    method="nc-unlearn",
    repaired=True,
    accepted=True,
    after=Figures(acc=SHARE, asr=LOW, ra=LOW, detection=SHARE, fpr=LOW),
    again=Again(curve=(0.0, 0.6), steps_to_half=1),
    again_clean=Again(curve=(0.0, 0.1), steps_to_half=None),
    train=replace(INFO, n=6000),
    clean=INFO,
    scan_seconds=4.0,
    repair_seconds=9.0,
    note="",
)
MISSED = replace(
    ROW, net="b", flagged_labels=(), target_flagged=False, verdict="clean", repaired=False, accepted=None,
    after=ROW.before, again=None, note="nothing | flagged",
)  # fmt: skip
CLEAN = replace(
    MISSED, net="c", attack="", target=None, target_flagged=None, target_ratio=None, again_clean=None,
    before=Figures(acc=SHARE), after=Figures(acc=SHARE),
)  # fmt: skip
WEAK = replace(MISSED, net="d", planted=False)
RECORD = AdaptiveRecord(
    rows=(ROW, MISSED, CLEAN, WEAK),
    left_out=("e: needs images",),
    scan=MethodInfo(name="staged", passed={}, resolved={}, seed=0),
    methods=(MethodInfo(name="nc-unlearn", passed={}, resolved={}, seed=0),),
    reattack={"steps": 100},
    survives_over=0.1,
    seconds=61.0,
    environment=Environment(command=(), goodnet="0", torch="0", python="0", device="cpu", threads=1),
)


def test_every_attack_is_there_and_the_defender_has_5_percent() -> None:
    nets = adaptive_specs()
    assert len({net.name for net in nets}) == len({net.seed for net in nets}) == len(nets) == len(ROWS) * len(IMAGES)
    assert not {net.seed for net in nets} & {net.seed for net in specs()}
    assert all(CLEAN_IMAGES / net.most == 0.05 for net in nets)
    assert {net.attack for net in nets} >= {None, "patch", "low-norm", "blended", "wanet", "clean-label",
                                            "pruning-aware", "defence-aware"}  # fmt: skip
    assert sum(net.attack_options.get("share") == 0.01 for net in nets) == len(IMAGES)
    for net in nets:
        shape = (1, 28, 28) if net.data == "mnist" else (3, 32, 32)
        if net.attack is not None:
            planting(net.attack, shape=shape, classes=net.classes, target=net.target, **net.attack_options)
    patch = next(net for net in nets if net.attack == "patch")
    assert reference_of(patch, ()).attack is None
    assert reference_of(patch, ()).kind == patch.kind
    alone = replace(patch, options={"classes": 10, "hidden": 3})
    assert reference_of(alone, ()) == replace(alone, name=f"{alone.name}-clean", attack=None, target=0)


def test_what_survives_is_a_planted_backdoor_over_the_limit() -> None:
    assert [survives(row, 0.1) for row in RECORD.rows] == [False, True, False, False]
    assert survives(ROW, 0.03)


def test_the_tables_are_views_of_the_record(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path / "adaptive.json")
    assert read_adaptive(tmp_path / "adaptive.json") == RECORD
    text = adaptive_markdown(RECORD)
    survivors = text.split("## Scans")[0]
    assert "- b, nc-unlearn: ASR 90.0 (85–95), its target not flagged; not repaired" in survivors
    assert "- d: the attack did not take" in survivors
    assert "adaptive-mnist-patch" not in survivors
    assert "| adaptive-mnist-patch | yes | 90.0 (85–95) | 4.0 (0–8) |" in text
    assert "| 1 | over 100 | 9 |" in text
    assert "| c | not repaired |" in text
    assert "- e: needs images" in text
    assert "300 beside 6,000 trained on (mnist cnn)" in text
    rows = list(csv.DictReader(io.StringIO(adaptive_csv(RECORD))))
    assert [row["net"] for row in rows] == ["adaptive-mnist-patch", "b", "c", "d"]
    first = rows[0]
    assert (first["flagged"], first["target_flagged"], first["steps"], first["steps_clean"]) == ("3", "True", "1", "")
    assert [float(first[f"after_asr{end}"]) for end in ("", "_low", "_high", "_n")] == [0.04, 0.0, 0.08, 100]
    assert rows[2]["before_asr"] == rows[2]["target"] == ""
    nothing = adaptive_markdown(replace(RECORD, rows=(ROW, CLEAN)))
    assert "Nothing." in nothing.split("## Scans")[0]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[PoolNet]:
    monkeypatch.setattr(detection_pool, "_FACES_EACH", 20)
    monkeypatch.setattr(detection_pool, "CLEAN_IMAGES", 40)
    monkeypatch.setattr(adaptive_bench, "lowest", partial(lowest, ladder=(1.0, 4.0)))
    clean = PoolNet(name="toy", part=JUDGING, data=FACES, arch="deepid", options={"classes": 4}, seed=3, epochs=8)
    bad = replace(clean, name="toy-low", attack="low-norm", seed=4)
    return [clean, bad, replace(clean, name="absent", data="gtsrb", arch="small-vgg")]


SHORT = {"detector": NeuralCleanse(search=Schedule(steps=6, batch=4)), "again": Reattack(steps=2)}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the nets that are repaired from here on."""
    done: list[str] = []
    real: Callable[..., object] = adaptive_bench.repair

    def counting(classifier: object, *args: object, **options: object) -> object:
        done.append(classifier.name)  # type: ignore[attr-defined]
        return real(classifier, *args, **options)

    monkeypatch.setattr(adaptive_bench, "repair", counting)
    return done


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, toy: list[PoolNet], monkeypatch: pytest.MonkeyPatch) -> None:
    repaired, said = counted(monkeypatch), []
    cache, out = tmp_path / "cache", tmp_path / "out"
    methods = [FinePruning(epochs=1), Unlearning(epochs=1)]
    record = run_adaptive(cache, out, nets=toy, methods=methods, say=said.append, **SHORT)  # type: ignore[arg-type]
    assert [(row.attack, row.method) for row in record.rows] == [
        ("", "fine-pruning"), ("", "nc-unlearn"), ("low-norm", "fine-pruning"), ("low-norm", "nc-unlearn"),
    ]  # fmt: skip
    assert [text.split(":")[0] for text in record.left_out] == ["absent"]
    assert len(said) == 4
    assert read_adaptive(out / "adaptive.json") == record
    assert record.scan.name == "neural-cleanse"
    assert record.reattack["steps"] == 2
    for row in record.rows:
        if not row.repaired:
            assert row.method == "nc-unlearn", row.note
            assert row.flagged_labels == ()
            assert (row.after, row.again, row.note != "") == (row.before, None, True)
        assert (out / row.net / "scan.json").is_file()
        assert read_row(out / row.net / f"{row.method}.json").row == row
    clean, low = record.rows[0], record.rows[2]
    assert (clean.again, clean.again_clean, clean.target, clean.before.asr) == (None, None, None, None)
    assert low.again is not None
    assert low.again_clean is not None
    assert len(low.again.curve) == 3
    assert low.trigger_norm == 4.0  # a few faces teach no trigger: the ladder's end
    assert not low.planted

    nothing = len(repaired)
    again = run_adaptive(cache, out, nets=toy, methods=methods, runner=ByPost(), **SHORT)  # type: ignore[arg-type]
    assert again.environment == record.environment
    assert (again.rows, len(repaired)) == (record.rows, nothing)
    path = out / low.net / "fine-pruning.json"
    path.write_text(json.dumps({"format": "goodnet.adaptive-row/1"}))  # cut short
    run_adaptive(cache, out, nets=toy, methods=methods, **SHORT)  # type: ignore[arg-type]
    assert repaired[nothing:] == [low.net]
    path.write_text("{}")
    with pytest.raises(DataError, match="format"):
        read_row(path)
    run_adaptive(cache, out, nets=toy[:1], methods=methods[:1], seed=1, **SHORT)  # type: ignore[arg-type]
    assert repaired[nothing + 1 :] == ["toy"]


@pytest.mark.slow
def test_the_low_norm_attacker_does_not_look_at_the_test_images(
    tmp_path: Path, toy: list[PoolNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    spec = toy[1]
    given = detection_pool.pool_sets(replace(spec, attack_options={"strength": 4.0}), None)
    assert given.plan is not None
    own = next(iter(given.plan.test(given.train).values())).sha256()

    def last_alone(net: object, images: object) -> float:
        seen.append(images.sha256())  # type: ignore[attr-defined]
        return 0.96 if len(seen) == 2 else 0.0

    monkeypatch.setattr(adaptive_bench, "share_right", last_alone)
    record = run_adaptive(
        tmp_path / "cache", tmp_path / "out", nets=[spec], methods=[FinePruning(epochs=1)], **SHORT  # type: ignore[arg-type]
    )  # fmt: skip
    assert record.rows[0].trigger_norm == 4.0
    assert len(seen) == 2
    assert seen[1] == own


def test_methods_that_need_poison_and_names_that_there_are_not_are_refused(tmp_path: Path, toy: list[PoolNet]) -> None:
    assert "retrain" not in METHOD_NAMES
    assert [type(method) for method in methods_by_name(["nc-unlearn", "auto"])] == [Auto, Unlearning]
    with pytest.raises(UsageError, match="'retrain'"):
        methods_by_name(["retrain"])
    with pytest.raises(UsageError, match="expected methods"):
        run_adaptive(tmp_path, tmp_path, nets=toy, methods=[Retraining()])
    with pytest.raises(UsageError, match="absent: needs"):
        run_adaptive(tmp_path, tmp_path, nets=toy[2:])


@pytest.mark.slow
def test_the_command_leaves_record_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: list[PoolNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def tiny(cache: Path, out: Path, **options: object) -> AdaptiveRecord:
        given.update(options)
        methods = [FinePruning(epochs=1)]
        return run_adaptive(cache, out, nets=toy[:1], methods=methods, **SHORT)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_adaptive, "run_adaptive", tiny)
    shell = Shell(capsys)
    result = shell("bench", "adaptive", "--images", "mnist", "--attack", "patch", "--attack", "clean", "--method",
                   "nc-prune", "--cache", tmp_path / "cache", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["rows"][0]["net"] == "toy"
    assert [net.name for net in given["nets"]] == ["adaptive-mnist-clean", "adaptive-mnist-patch"]  # type: ignore[attr-defined]
    assert given["methods"] == methods_by_name(["nc-prune"])
    assert "| toy |" in (tmp_path / "out" / "adaptive.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "adaptive.csv").read_text(encoding="utf-8").count("\n") == 2
    result = shell("bench", "adaptive", "--attack", "hat", "--out", tmp_path / "new")
    assert result.code == 3
    assert not (tmp_path / "new").exists()


@pytest.mark.thorough
def test_digits_with_and_without_a_patch(shared_data: Path, tmp_path: Path) -> None:
    chosen = [net for net in adaptive_specs() if net.data == "mnist" and net.name.endswith(("-clean", "-patch"))]
    assert not any(needs(net, shared_data) for net in chosen)
    clean, patch = run_adaptive(tmp_path / "cache", tmp_path / "out", data=shared_data, nets=chosen).rows
    assert not clean.flagged_labels
    assert clean.before.acc is not None
    assert clean.before.acc.value > 0.93
    assert patch.planted
    assert patch.target_flagged
    assert patch.repaired
    assert patch.after.asr is not None
    assert patch.after.asr.value < 0.2
    assert patch.clean.n / patch.train.n == 0.05
