"""The record of `goodnet bench peers` as Markdown: first how often each program was right, then each net."""

from __future__ import annotations

from collections.abc import Sequence

from goodnet.peer_record import ANSWERED, AS_RELEASED, OUT_OF_TIME, PeerFigures, PeerNet, PeerRecord, PeerRow
from goodnet.report.bench_table import markdown_table, share_text
from goodnet.report.figures import DASH, duration, enumeration, visible

_HEAD = ("program", "verdict", "flagged", "what is left of it", "trigger", "ACC", "ASR", "RA", "detection", "FPR",
         "seconds", "MiB")  # fmt: skip


def peer_markdown(record: PeerRecord) -> str:
    """A summary, a table a net, and what each program is."""
    parts = ["# goodnet beside others", "", _summary(record), ""]
    for net in record.nets:
        rows = [row for row in record.rows if row.net == net.name]
        parts += [f"## {net.name}", "", _told(net), "", _net(net, rows), ""]
        failed = [f"* {program_name(row)}: {_as_code(row.reason)}" for row in rows if row.reason]
        if failed:
            parts += ["Why it failed:", "", *failed, ""]
    environment = record.environment
    parts += ["## The programs", "", *(_words(record)), ""]
    parts.append(
        "Shares in percent with 95 % Wilson intervals, on images that nothing was fitted to. Seconds: of "
        f"processor time, imports included, at most {record.limit:.0f}. {environment.threads} threads, torch "
        f"{environment.torch}, goodnet {environment.goodnet}, seed {record.seed}.\n"
    )
    return "\n".join(parts)


def _summary(record: PeerRecord) -> str:
    """A row a program and state: verdicts on backdoored nets, and on clean ones."""
    bad = {net.name for net in record.nets if net.targets}
    targets = {net.name: set(net.targets) for net in record.nets}
    body = []
    for peer, state in dict.fromkeys((row.peer, row.state) for row in record.rows):
        rows = [row for row in record.rows if (row.peer, row.state) == (peer, state)]
        judged = [row for row in rows if row.verdict is not None]
        hits = [targets[row.net] <= set(row.flagged or ()) for row in judged if row.net in bad]
        exact = [targets[row.net] == set(row.flagged or ()) for row in judged if row.net in bad]
        alarms = [row.verdict == "suspect" for row in judged if row.net not in bad]
        answered = [row.seconds for row in rows if row.outcome == ANSWERED]
        body.append((
            program_name(rows[0]), _of(hits), _of(exact), _of(alarms),
            str(sum(row.outcome == OUT_OF_TIME for row in rows)),
            str(sum(row.outcome not in (ANSWERED, OUT_OF_TIME) for row in rows)),
            f"{min(answered):.0f} to {max(answered):.0f}" if answered else DASH,
        ))  # fmt: skip
    head = ("program", "targets flagged", "and nothing else", "false alarms on clean nets", "out of time", "failed",
            "seconds")  # fmt: skip
    return markdown_table(head, body)


def _of(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}" if hits else DASH


def _told(net: PeerNet) -> str:
    what = f"targets {enumeration([str(one) for one in net.targets])}" if net.targets else "a clean net"
    note = f" ({net.note})" if net.note else ""
    return visible(
        f"{net.model.arch}, {net.model.classes:,} classes, {what}; the defender has {net.clean.n:,} images{note}."
    )


def _net(net: PeerNet, rows: Sequence[PeerRow]) -> str:
    body = [("the net as it came", DASH, DASH, *_figures(one), DASH, DASH) for one in net.before]
    for row in rows:
        body += _row(row)
    return markdown_table(_HEAD, body)


def _row(row: PeerRow) -> list[tuple[str, ...]]:
    """A line for each net and trigger; the first has what is said of all."""
    said = (program_name(row), *_verdict(row))
    cost = (f"{row.seconds:.0f}", DASH if row.peak_mib is None else f"{row.peak_mib:,.0f}")
    if row.outcome == ANSWERED and row.falsely is not None:
        return [(*said, f"points at {_points(row)}", "", *[DASH] * 5, *cost)]
    if not row.figures:
        return [(*said, DASH, "", *[DASH] * 5, *cost)]
    first, *others = row.figures
    return [(*said, *_figures(first), *cost), *(("", "", "", *_figures(one), "", "") for one in others)]


def _as_code(text: str) -> str:
    """Another program's words, so that none of them is taken for markup."""
    plain = visible(text).replace("`", "'")
    return f"`{plain}`"


def _points(row: PeerRow) -> str:
    """`100.0 (77–100) of the poisoned and 10.0 (6–17) of the clean images`; a clean net has no poison."""
    poison = "" if row.found is None else f"{share_text(row.found)} of the poisoned and "
    return f"{poison}{share_text(row.falsely)} of the clean images"


def _verdict(row: PeerRow) -> tuple[str, str]:
    flagged = DASH if row.flagged is None else enumeration([str(label) for label in row.flagged])
    if row.outcome == OUT_OF_TIME and row.verdict is not None:
        return f"{row.verdict}; then out of time ({row.note})", flagged
    if row.outcome == OUT_OF_TIME:
        far = f", {row.done} of {row.total:,}" if row.done is not None and row.total is not None else ""
        whole = f"; all would take {duration(row.whole_seconds)}" if row.whole_seconds is not None else ""
        return f"out of time{far}{whole}", DASH
    if row.outcome != ANSWERED:
        return row.outcome, DASH
    note = f" ({row.note})" if row.note else ""
    return f"{row.verdict or 'gives none'}{note}", flagged


def _figures(one: PeerFigures) -> tuple[str, ...]:
    shares = (one.acc, one.asr, one.ra, one.detection, one.fpr)
    return (one.name, one.trigger, *map(share_text, shares))


def program_name(row: PeerRow) -> str:
    """With its state, where that is not `as released`."""
    return row.peer if row.state == AS_RELEASED else f"{row.peer}, {row.state}"


def _words(record: PeerRecord) -> list[str]:
    lines = []
    for peer in record.peers:
        version = next((row.version for row in record.rows if row.peer == peer.name and row.version), "")
        line = f"* **{peer.name}**{f' ({version})' if version else ''}: {peer.what}."
        line += f" It {peer.sees}." if peer.sees else ""
        line += f" The small repair: {peer.patch}." if peer.patch else ""
        lines.append(visible(line))
    return lines
