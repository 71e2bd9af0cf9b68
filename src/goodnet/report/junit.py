"""Records as JUnit XML, which CI servers show as tests: one suite a scan or repair.

What was found is a failure; what could not be told, or was not looked at, is an error, never a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from goodnet.record import RepairRecord, ScanRecord
from goodnet.report import figures, words


@dataclass(frozen=True, kw_only=True)
class _Case:
    """`kind` is `failure` or `error`; None for a pass."""

    name: str
    kind: str | None = None
    type: str = ""
    message: str = ""
    text: str = ""


def render_junit(records: Sequence[ScanRecord | RepairRecord]) -> str:
    """The records as one XML document, a suite each; ends with a newline. Reads and writes nothing."""
    root = ElementTree.Element("testsuites", name="goodnet")
    for record in records:
        _add_suite(root, record)
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _add_suite(root: ElementTree.Element, record: ScanRecord | RepairRecord) -> None:
    kind = "scan" if isinstance(record, ScanRecord) else "repair"
    cases = list(_scan_cases(record) if isinstance(record, ScanRecord) else _repair_cases(record))
    seconds = f"{record.seconds:.3f}" if figures.exists(record.seconds) else "0"
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=figures.visible(f"goodnet {kind} {record.model.name}"),
        tests=str(len(cases)),
        failures=str(sum(case.kind == "failure" for case in cases)),
        errors=str(sum(case.kind == "error" for case in cases)),
        skipped="0",
        time=seconds,
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(record):
        ElementTree.SubElement(properties, "property", name=name, value=figures.visible(value))
    for turn, case in enumerate(cases):
        node = ElementTree.SubElement(
            suite,
            "testcase",
            classname=figures.visible(f"goodnet.{kind}.{record.model.name}"),
            name=case.name,
            time=seconds if turn == 0 else "0",
        )
        if case.kind is not None:
            found = ElementTree.SubElement(node, case.kind, type=case.type, message=figures.visible(case.message))
            found.text = figures.visible(case.text or case.message)


def _scan_cases(record: ScanRecord) -> Iterator[_Case]:
    conflict = words.contradiction(record)
    why = f"{words.consequence(record)} {'; '.join(record.reasons)}"
    says = words.headline(record)
    if conflict is not None:
        yield _Case(
            name="verdict", kind="error", type="contradiction", message=f"Do not rely on this record: {conflict}."
        )
    elif record.verdict == "clean":
        yield _Case(name="verdict")
    else:
        verdict = "failure" if record.verdict == "suspect" else "error"
        yield _Case(name="verdict", kind=verdict, type=record.verdict, message=says, text=why)
    if record.all_to_all is not None:
        said = words.mapping(record.all_to_all)
        kind = "failure" if record.all_to_all.flagged else "error" if record.all_to_all.doubtful else None
        yield _Case(name="all to all", kind=kind, type="all-to-all", message=said)
    rows = {row.label: row for row in record.labels}
    for label in sorted({*record.flagged_labels, *(row.label for row in record.labels if row.flagged)}):
        evidence = words.evidence(rows[label]) if label in rows else "the record has no evidence for it"
        said = f"Label {label} behaves like the target of a backdoor."
        yield _Case(name=f"label {label}", kind="failure", type="backdoored-label", message=said, text=evidence)
    failed, missing = words.undone(record)
    total = record.model.classes
    some = figures.enumeration([str(label) for label in failed])
    yield _Case(name="every label was looked at", kind="error" if missing else None, type="not-looked-at",
                message=f"{missing:,} of {total:,} labels were not looked at")  # fmt: skip
    yield _Case(name="the search ended on every label", kind="error" if failed else None, type="failed",
                message=f"for {len(failed):,} of {total:,} labels the search found no trigger: {some}")  # fmt: skip


def _repair_cases(record: RepairRecord) -> Iterator[_Case]:
    kind = {True: None, False: "failure", None: "error"}[record.accepted]
    says = words.repair_outcome(record).text
    yield _Case(name="repair accepted", kind=kind, type="repair", message=says, text="; ".join(record.reasons))


def _properties(record: ScanRecord | RepairRecord) -> Iterator[tuple[str, str]]:
    yield "goodnet", record.environment.goodnet
    yield "sha256", record.model.sha256
    yield "data", f"{record.data.name} ({record.data.n} images, sha256 {record.data.sha256})"
    yield "method", f"{record.method.name}, seed {record.method.seed}"
    yield "exit code", str(words.exit_code(record))
    if record.environment.command:
        yield "command", words.command_line(record.environment.command)
    if isinstance(record, ScanRecord):
        yield "verdict", record.verdict
        yield "labels", words.counts(record)
        for text in record.not_tested:
            yield "not tested", text
