"""Records as SARIF 2.1.0 (OASIS), which code scanning of GitHub, GitLab, Azure DevOps and editors read.

One run a record: a scan or a repair. What a run found are its results; a clean scan has none. An inconclusive one has a
result that says so, and its invocation was not successful, so that nobody takes it for a pass.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from goodnet.record import RepairRecord, ScanRecord
from goodnet.report import figures, words

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_Judged = ScanRecord | RepairRecord

# id: (name, level, what it says, what to do)
_RULES = {
    "GN1001": ("BackdooredLabel", "error", "A label behaves like the target of a backdoor.",
               "Do not use the net as it is; goodnet repair turns it into one that refuses triggered images."),
    "GN1002": ("AllToAllBackdoor", "error", "One trigger turns each class into another.",
               "Do not use the net as it is."),
    "GN1003": ("InconclusiveScan", "warning", "The scan cannot tell whether the net carries a backdoor.",
               "Treat the net as unsafe, and scan again with what was missing."),
    "GN1004": ("LabelsNotSearched", "warning", "Some labels were not looked at, or the search failed on them.",
               "Scan all labels, without a time limit."),
    "GN2001": ("RepairNotAccepted", "error", "The repaired net does not keep the limits.",
               "Use neither net; try another method, or more images."),
    "GN2002": ("RepairNotJudged", "warning", "The repair could not be judged.",
               "Treat the net as unsafe; pass --scan or --poisoned, so that there is a trigger to judge by."),
}  # fmt: skip
_IDS = tuple(_RULES)


def render_sarif(records: Sequence[_Judged]) -> str:
    """The records as one SARIF log, a run each; ends with a newline. Reads and writes nothing."""
    turns: Counter[str] = Counter()
    runs = []
    for record in records:
        run = _run(record)
        name = run["automationDetails"]["id"]
        turns[name] += 1
        if turns[name] > 1:  # GitHub takes no two runs of one category
            run["automationDetails"]["id"] = f"{name.rstrip('/')}-{turns[name]}/"
        runs.append(run)
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": runs}
    return json.dumps(_plain(log), indent=1, allow_nan=False) + "\n"


def _run(record: _Judged) -> dict[str, Any]:
    kind = "scan" if isinstance(record, ScanRecord) else "repair"
    results = list(_scan_results(record) if isinstance(record, ScanRecord) else _repair_results(record))
    return {
        "tool": {"driver": {"name": "goodnet", "version": record.environment.goodnet, "rules": _rules()}},
        "automationDetails": {"id": f"goodnet/{kind}/{_quoted(record.model.name)}/"},
        "invocations": [_invocation(record, results)],
        "artifacts": [
            {
                "location": {"uri": _uri(record)},
                "hashes": {"sha-256": record.model.sha256},
                "roles": ["analysisTarget"],
            }
        ],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": _about(record),
    }


def _rules() -> list[dict[str, Any]]:
    return [
        {
            "id": rule,
            "name": name,
            "shortDescription": {"text": says},
            "fullDescription": {"text": says},
            "help": {"text": to_do},
            "defaultConfiguration": {"level": level},
            "properties": {"tags": ["security"]},
        }
        for rule, (name, level, says, to_do) in _RULES.items()
    ]


def _scan_results(record: ScanRecord) -> Iterator[dict[str, Any]]:
    rows = {row.label: row for row in record.labels}
    flagged = sorted({*record.flagged_labels, *(row.label for row in record.labels if row.flagged)})
    if record.all_to_all is not None and record.all_to_all.flagged:
        said = f"{words.headline(record)} {words.consequence(record)} {words.mapping(record.all_to_all)}"
        yield _result(record, "GN1002", said, properties=asdict(record.all_to_all))
    elif record.verdict == "suspect" and not flagged:
        yield _result(record, "GN1001", f"{words.headline(record)} {' '.join(record.reasons)}")
    for label in flagged:
        row = rows.get(label)
        evidence = words.evidence(row) if row is not None else "the record has no evidence for it"
        said = f"Label {label} behaves like the target of a backdoor: {evidence}."
        yield _result(record, "GN1001", said, label=label, properties={} if row is None else asdict(row))
    conflict = words.contradiction(record)
    if conflict is not None:
        yield _result(record, "GN1003", f"Do not rely on this record: {conflict}.")
    elif record.verdict == "inconclusive":
        said = f"{words.headline(record)} {words.consequence(record)} {'; '.join(record.reasons)}"
        yield _result(record, "GN1003", said)
    failed, missing = words.undone(record)
    if failed or missing:
        total = record.model.classes
        said = f"Of {total:,} labels, the search failed on {len(failed):,} and {missing:,} were not looked at."
        yield _result(record, "GN1004", said, properties={"failed_labels": failed, "not_looked_at": missing})


def _repair_results(record: RepairRecord) -> Iterator[dict[str, Any]]:
    if not record.accepted:
        rule = "GN2002" if record.accepted is None else "GN2001"
        yield _result(record, rule, f"{words.repair_outcome(record).text} {'; '.join(record.reasons)}")


def _result(
    record: _Judged, rule: str, text: str, *, label: int | None = None, properties: dict[str, Any] | None = None
) -> dict[str, Any]:
    # of net and label, not of figures: another seed's scan of the same net finds the same again
    same = hashlib.sha256(f"{rule} {record.model.sha256} {label}".encode("utf-8", "replace")).hexdigest()
    return {
        "ruleId": rule,
        "ruleIndex": _IDS.index(rule),
        "level": _RULES[rule][1],
        "message": {"text": _literal(text)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(record), "index": 0},
                    "region": {"startLine": 1},  # a net has no lines, but GitHub takes no result without one
                }
            }
        ],
        # the second is the one that GitHub knows
        "partialFingerprints": {"goodnetFinding/v1": same, "primaryLocationLineHash": f"{same[:16]}:1"},
        "properties": properties or {},
    }


def _invocation(record: _Judged, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    code, command = words.exit_code(record), record.environment.command
    doubtful = [one for one in results if one["ruleId"] in ("GN1003", "GN2002")]
    outcome = record.verdict if isinstance(record, ScanRecord) else words.repair_outcome(record).text
    told = [{"level": "error", "message": one["message"], "descriptor": {"id": one["ruleId"]}} for one in doubtful]
    typed = {"commandLine": words.command_line(command), "arguments": command[1:]} if command else {}
    return {
        **typed,
        # a clean verdict that something speaks against is none
        "executionSuccessful": code != 2 and not doubtful and (code != 0 or not results),
        "exitCode": code,
        "exitCodeDescription": outcome,
        "toolExecutionNotifications": told,
        "properties": {"seconds": record.seconds},
    }


def _about(record: _Judged) -> dict[str, Any]:
    shared = {"record": record.format, "method": record.method.name, "seed": record.method.seed,
              "data": asdict(record.data), "model": asdict(record.model)}  # fmt: skip
    if isinstance(record, RepairRecord):
        return {**shared, "accepted": record.accepted, "reasons": record.reasons, "goodnet": record.goodnet_file,
                "goodnet_sha256": record.goodnet_sha256, "before": asdict(record.before),
                "after": asdict(record.after)}  # fmt: skip
    return {**shared, "verdict": record.verdict, "flagged_labels": record.flagged_labels, "reasons": record.reasons,
            "tested": record.tested, "not_tested": record.not_tested,
            "forward_passes": record.forward_passes}  # fmt: skip


def _uri(record: _Judged) -> str:
    path = words.model_path(record.model, record.environment)
    if PureWindowsPath(path).drive:
        path = f"/{PureWindowsPath(path).as_posix()}"
    return f"file://{_quoted(path)}" if PurePosixPath(path).is_absolute() else _quoted(path)


def _quoted(text: str) -> str:
    """Percent-encoded, but for slashes: no scheme, query or control character is left."""
    try:
        return quote(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return quote(text.encode("utf-8", "replace"))


def _literal(text: str) -> str:
    """As a message's text: no link and no placeholder, whatever a name in it looks like (SARIF 3.11.5, 3.11.6)."""
    safe = text.replace("{", "{{").replace("}", "}}")
    return safe.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]") if "](" in safe else safe


def _plain(value: Any) -> Any:
    """As JSON: every text visible, and no figure that does not exist."""
    if isinstance(value, str):
        return figures.visible(value)
    if isinstance(value, dict):
        kept = {figures.visible(str(key)): _plain(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
