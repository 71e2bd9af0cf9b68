"""SARIF and JUnit: valid by the published schema and another's parser, and never a pass where there is no verdict."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import jsonschema
import pytest
from junitparser import Error, Failure, JUnitXml

from cli_support import PRUNING, TARGET, Shell, fill, repair, scan
from goodnet import record as rec
from goodnet.cli import run
from goodnet.report.junit import render_junit
from goodnet.report.sarif import render_sarif
from goodnet.strict_json import write_record
from report_records import HOSTILE, SHA, backdoor, environment, hostile_parts, label, model
from report_records import evaluation as evaluation_record
from report_records import repair as repair_record
from report_records import scan as scan_record

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parent / "data" / "sarif-2.1.0.json").read_text()),
    format_checker=jsonschema.FormatChecker(),
)
CLEAN = scan_record(verdict="clean", flagged_labels=(), labels=tuple(label(n) for n in range(5)))
UNSURE = replace(CLEAN, verdict="inconclusive", labels=tuple(label(n) for n in range(3)), reasons=("too few",))
EVERYWHERE = rec.AllToAll(mask_norm=3.0, norm_ratio=0.1, flipped=None, judged=5, led=((0, 1),), targets=5, flagged=True)


def sarif(*records: Any) -> list[Any]:
    log = json.loads(render_sarif(records), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    SCHEMA.validate(log)
    return list(log["runs"])


def junit(*records: Any) -> list[Any]:
    return list(JUnitXml.fromstring(render_junit(records).encode()))


def rules(run: Any) -> list[str]:
    named = {turn: rule["id"] for turn, rule in enumerate(run["tool"]["driver"]["rules"])}
    assert all(named[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    return [result["ruleId"] for result in run["results"]]


def outcomes(suite: Any) -> dict[str, str]:
    return {case.name: "".join(type(one).__name__ for one in case.result) or "passed" for case in suite}


def test_the_schema_refuses_what_is_no_sarif() -> None:
    for wrong in ({"version": "2.1.0"}, {"version": "2.0.0", "runs": []}, {"version": "2.1.0", "runs": [{}]}):
        assert not SCHEMA.is_valid(wrong)


def test_a_flagged_label_is_a_result_with_its_evidence() -> None:
    (run,) = sarif(scan_record())
    assert rules(run) == ["GN1001"]
    (result,) = run["results"]
    assert result["level"] == "error"
    assert result["message"]["text"].startswith("Label 2 behaves like the target of a backdoor: mask norm 41.3 px")
    found = result["properties"]
    assert (found["p_value"], found["mask_norm"], found["held_out_asr"]) == (2.1e-9, 41.3, 0.983)
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    artifact = run["artifacts"][place["index"]]
    assert place["uri"] == artifact["location"]["uri"] == "nets/net.h5"
    assert artifact["hashes"] == {"sha-256": SHA}
    invocation = run["invocations"][0]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (1, True)
    assert invocation["arguments"][0] == "scan"
    assert "'my data/clean.h5'" in invocation["commandLine"]
    assert invocation["properties"] == {"seconds": 200.0}


def test_only_a_clean_scan_has_no_result() -> None:
    (run,) = sarif(CLEAN)
    assert (run["results"], run["invocations"][0]["executionSuccessful"], run["invocations"][0]["exitCode"]) == (
        [],
        True,
        0,
    )
    doubtful = {
        "inconclusive": UNSURE,
        "edited": replace(CLEAN, verdict="clean", labels=(backdoor(2), *CLEAN.labels[:2], *CLEAN.labels[3:])),
        "cut short": replace(CLEAN, labels=CLEAN.labels[:4]),
        "failed": replace(CLEAN, labels=(*CLEAN.labels[:4], label(4, status="failed"))),
        "empty": replace(CLEAN, labels=()),
    }
    for name, record in doubtful.items():
        (run,) = sarif(record)
        assert run["results"], name
        assert run["invocations"][0]["executionSuccessful"] is False, name
        assert any(outcome != "passed" for outcome in outcomes(junit(record)[0]).values()), name
    assert rules(sarif(UNSURE)[0]) == ["GN1003", "GN1004"]
    assert sarif(UNSURE)[0]["invocations"][0]["exitCode"] == 2
    assert "too few" in sarif(UNSURE)[0]["results"][0]["message"]["text"]


def test_a_suspect_scan_always_has_a_result() -> None:
    bare = replace(CLEAN, verdict="suspect")
    assert rules(sarif(bare)[0]) == ["GN1001"]
    assert rules(sarif(replace(bare, all_to_all=EVERYWHERE))[0]) == ["GN1002"]
    assert rules(sarif(replace(scan_record(), labels=()))[0])[0] == "GN1001"  # flagged, and no evidence left


def test_a_repair_that_is_not_accepted_is_a_result() -> None:
    found = {True: ([], 0, True), False: (["GN2001"], 1, True), None: (["GN2002"], 2, False)}
    for accepted, expected in found.items():
        (run,) = sarif(repair_record(accepted=accepted))
        invocation = run["invocations"][0]
        assert (rules(run), invocation["exitCode"], invocation["executionSuccessful"]) == expected


def test_fingerprints_are_of_net_and_label() -> None:
    def prints(record: Any) -> list[Any]:
        return [result["partialFingerprints"] for result in sarif(record)[0]["results"]]

    seeded = replace(scan_record(), seconds=1.0, labels=(*CLEAN.labels[:2], replace(backdoor(2), mask_norm=40.0)))
    assert prints(seeded)[0] == prints(scan_record())[0]
    two = scan_record(flagged_labels=(1, 2), labels=(label(0), backdoor(1), backdoor(2), label(3), label(4)))
    assert prints(two)[0] != prints(two)[1] == prints(scan_record())[0]
    other = scan_record(model=replace(model(), sha256="00" * 32))
    assert prints(other) != prints(scan_record())


def test_no_two_runs_have_one_category() -> None:
    names = [run["automationDetails"]["id"] for run in sarif(CLEAN, CLEAN, repair_record(), scan_record())]
    assert len(set(names)) == 4
    assert all(name.endswith("/") for name in names)  # GitHub: what stands before the last slash is the category


@pytest.mark.parametrize(
    ("typed", "uri"),
    [
        ("nets/my net.h5", "nets/my%20net.h5"),
        ("/nets/net#1.h5", "file:///nets/net%231.h5"),
        ("C:\\nets\\net.h5", "file:///C%3A/nets/net.h5"),
        ("javascript:alert(1).h5", "javascript%3Aalert%281%29.h5"),
        ("nets/\udcff\n.h5", "nets/%FF%0A.h5"),
        ("nets/\ud800.h5", "nets/%3F.h5"),
    ],
)
def test_the_path_is_a_uri(typed: str, uri: str) -> None:
    name = typed if "\\" in typed else typed.rpartition("/")[2]
    record = scan_record(model=model(name), environment=environment("goodnet", "scan", typed))
    (run,) = sarif(record)
    assert run["artifacts"][0]["location"]["uri"] == uri
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_hostile_names_stay_text() -> None:
    parts = hostile_parts()
    link = "[all is well](http://evil.example) {0} \x00\x1b[2J\ud800\ufffe"
    scanned = replace(parts["scan"], reasons=(link,), verdict="inconclusive")
    text = render_sarif([scanned, parts["repair"], replace(scanned, seconds=float("nan"))])
    assert text.isascii()
    runs = sarif(scanned, parts["repair"])
    said = next(one["message"]["text"] for one in runs[0]["results"] if "all is well" in one["message"]["text"])
    assert "\\[all is well\\](http" in said
    assert "{{0}}" in said
    assert said.isprintable()
    assert "\ufffd" in said
    assert unquote(runs[0]["artifacts"][0]["location"]["uri"]) == HOSTILE
    xml = render_junit([scanned, parts["repair"], replace(scanned, seconds=float("nan"))])
    assert not [character for character in xml if character != "\n" and not character.isprintable()]
    suites = list(JUnitXml.fromstring(xml.encode()))
    assert "<script>alert(1)</script>" in suites[0].name
    assert "\ufffd" in suites[0].name  # where the control character was
    assert ElementTree.fromstring(xml.encode()).find("script") is None


def test_junit_tells_failures_from_errors() -> None:
    (suspect,) = junit(scan_record())
    assert outcomes(suspect) == {
        "verdict": "Failure",
        "label 2": "Failure",
        "every label was looked at": "passed",
        "the search ended on every label": "passed",
    }
    assert (suspect.tests, suspect.failures, suspect.errors, suspect.time) == (4, 2, 0, 200.0)
    assert set(outcomes(junit(CLEAN)[0]).values()) == {"passed"}
    (unsure,) = junit(UNSURE)
    assert outcomes(unsure)["verdict"] == outcomes(unsure)["every label was looked at"] == "Error"
    assert (unsure.failures, unsure.errors) == (0, 2)
    (failed,) = junit(replace(UNSURE, labels=(*CLEAN.labels[:4], label(4, status="failed"))))
    case = next(case for case in failed if case.name == "the search ended on every label")
    assert isinstance(case.result[0], Error)
    assert "for 1 of 5 labels the search found no trigger: 4" in case.result[0].message
    assert outcomes(junit(replace(scan_record(), all_to_all=EVERYWHERE))[0])["all to all"] == "Failure"
    results = [next(iter(junit(repair_record(accepted=accepted))[0])).result for accepted in (True, False, None)]
    assert [[type(one) for one in result] for result in results] == [[], [Failure], [Error]]


@pytest.fixture(scope="module")
def template(short_scans: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bad.pt, clean.pt, clean.npz, and a scan of bad.pt, with its views, in scanned."""
    folder = tmp_path_factory.mktemp("nets")
    fill(folder)
    command = ["scan", folder / "bad.pt", "--arch", "mlp", "--clean", folder / "clean.npz", "--out", folder / "scanned",
               "--sarif", folder / "scanned/goodnet.sarif", "--junit", folder / "scanned/junit.xml"]  # fmt: skip
    assert run([str(word) for word in command]) == 1
    return folder


def test_scan_and_report_write_the_same(place: Path, shell: Shell) -> None:
    (found,) = json.loads(Path("scanned/goodnet.sarif").read_text())["runs"]
    assert found["results"][0]["properties"]["label"] == TARGET
    done = shell("report", "scanned", "--sarif", "again.sarif", "--junit", "again.xml")
    assert (done.code, done.err) == (0, "")
    assert Path("again.sarif").read_bytes() == Path("scanned/goodnet.sarif").read_bytes()
    assert Path("again.xml").read_bytes() == Path("scanned/junit.xml").read_bytes()
    SCHEMA.validate(json.loads(Path("again.sarif").read_text()))


def test_repair_has_a_view_of_the_repair(place: Path, shell: Shell) -> None:
    done = repair(shell, "--scan", "scanned", "--out", "repaired", "--sarif", "r.sarif", "--junit", "repaired/r.xml")
    assert done.code == 0
    (found,) = json.loads(Path("r.sarif").read_text())["runs"]
    assert (found["results"], found["properties"]["record"]) == ([], "goodnet.repair/1")
    assert outcomes(next(iter(JUnitXml.fromfile("repaired/r.xml")))) == {"repair accepted": "passed"}


def test_nothing_of_a_users_is_replaced(place: Path, shell: Shell) -> None:
    Path("old.sarif").write_text("old")
    lines = {
        ("--sarif", "old.sarif"): "--sarif: old.sarif is there already; name another file, or pass --overwrite",
        ("--junit", "no/such/x.xml"): "--junit: the folder no/such is not there; make it first",
        ("--sarif", "a", "--junit", "./a"): "--junit: expected another file than that of --sarif, got the same",
        ("--sarif", "bad.pt", "--overwrite"): "--sarif: expected a file of its own, got bad.pt, which is needed",
        ("--junit", "clean.npz", "--overwrite"): "--junit: expected a file of its own, got clean.npz, which is needed",
        ("--junit", "new/scan.json", "--out", "new"): "--junit: expected a file of its own, got new/scan.json, which "
        "is needed",
        ("--junit", "scanned"): "--junit: expected a file name, got the folder scanned",
    }
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for options, line in lines.items():
        done = scan(shell, "bad.pt", *options)
        assert (done.code, done.out, done.err) == (3, "", f"goodnet: {line}\n")
    done = repair(shell, "-o", "good.safetensors", "--sarif", "good.safetensors", how=PRUNING)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert shell("report", "scanned", "--sarif", "old.sarif").code == 3
    assert shell("report", "scanned", "--sarif", "old.sarif", "--overwrite").code == 0
    assert json.loads(Path("old.sarif").read_text())["version"] == "2.1.0"


def test_a_view_that_cannot_be_written_does_not_pass(
    place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = scan(shell, "clean.pt", "--sarif", "clean.sarif")
    assert done.code == 3
    assert done.out.startswith("CLEAN")
    assert done.err.splitlines()[-1] == "goodnet: clean.sarif: No space left on device; check the path and free space"
    assert not Path("clean.sarif").exists()


def test_evaluations_alone_have_no_view(tmp_path: Path, shell: Shell) -> None:
    write_record(evaluation_record(), tmp_path / "evaluate.json")
    done = shell("report", tmp_path, "--junit", tmp_path / "x.xml")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "expected a scan or a repair for --sarif and --junit, found evaluations alone" in done.err
    assert shell("report", tmp_path).code == 0
