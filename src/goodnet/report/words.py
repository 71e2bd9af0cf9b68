"""What a record says, in words: the same sentences on the page and in the terminal."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from goodnet.record import (
    ALL_LAYERS,
    AllToAll,
    Environment,
    LabelResult,
    Measured,
    ModelInfo,
    RepairRecord,
    ScanRecord,
    Share,
    Tried,
)
from goodnet.report import figures
from goodnet.stamps import PlainStamp
from goodnet.verdicts import chances

STATUSES = ("searched", "screened", "failed", "skipped")
STATUS_MEANING = {
    "searched": "the whole optimisation ran",
    "screened": "the short first pass alone, drawn at its norm; too large to go on",
    "failed": "no mask reached the demanded ASR",
    "skipped": "not looked at",
}
ANSWERS = {
    "right": "right class",
    "target": "attacker’s target",
    "other": "another class",
    "refused": "refused (class N)",
}
FIGURES = (
    "ACC: clean images answered right. FPR: clean images refused. ASR: triggered images answered with the attacker's "
    "target; RA: with their true class; detection: refused. DER: what ASR has lost less what ACC has, 100 % at best, "
    "50 % for no change. Refused: sent to class N = {classes}. In brackets: 95 % interval and number of images."
)
_LED, _SURE = 12, 3
_INPUT_OPTIONS = ("--arch", "--classes", "--input-range", "--mean", "--std", "--input-shape", "--data-range")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something to do next; `command` holds the lines of a shell command with every name quoted, one option a line."""

    text: str
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A tone (one of the verdicts) and a sentence."""

    tone: str
    text: str


def exit_code(record: ScanRecord | RepairRecord) -> int:
    """The command's exit code: 0 clean or accepted, 1 suspect or not accepted, 2 no verdict, or none to rely on."""
    if isinstance(record, ScanRecord):
        return 2 if contradiction(record) else {"clean": 0, "suspect": 1}.get(record.verdict, 2)
    return {True: 0, False: 1, None: 2}[record.accepted]


def undone(record: ScanRecord) -> tuple[tuple[int, ...], int]:
    """Labels of which the search found no trigger, and how many of the net's labels were not looked at."""
    failed = tuple(row.label for row in record.labels if row.status == "failed")
    done = sum(row.status in ("searched", "screened") for row in record.labels)
    return failed, max(0, record.model.classes - done - len(failed))


def headline(record: ScanRecord) -> str:
    """The verdict as one sentence, without the verdict's own word."""
    flagged = sorted(record.flagged_labels)
    if record.verdict == "inconclusive":
        return "This scan cannot tell whether the net carries a backdoor."
    if record.verdict == "clean":
        return f"None of the {len(record.labels):,} labels looks like the target of a backdoor."
    if record.all_to_all is not None and record.all_to_all.flagged:
        return "One trigger turns each class into another, as an all-to-all backdoor does."
    if not flagged:
        return "The scan found cause for suspicion, but no label to name."
    if len(flagged) == 1:
        return f"Label {flagged[0]} behaves like the target of a backdoor."
    return f"Labels {figures.enumeration([str(label) for label in flagged])} behave like targets of a backdoor."


def consequence(record: ScanRecord) -> str:
    """What would happen to somebody who uses the net."""
    flagged = sorted(record.flagged_labels)
    if record.verdict == "clean":
        return "This speaks for the triggers that were tested, and for no others."
    if record.verdict == "inconclusive":
        return "Do not take this for a clean bill. The reasons below say what was missing."
    if record.all_to_all is not None and record.all_to_all.flagged:
        return "Any image that carries this pattern is answered as another class; which one depends on what it shows."
    if not flagged:
        return "The reasons below say why."
    if len(flagged) == 1:
        return f"Any image that carries this pattern is answered as class\u00a0{flagged[0]}, whatever it shows."
    classes = figures.enumeration([str(label) for label in flagged], word="or")
    return f"Any image that carries one of these patterns is answered as that pattern’s class ({classes})."


def certainty(record: ScanRecord) -> str:
    """How often chance alone would show as much in a clean net; empty where no label has a p-value."""
    known = {row.label: chance for row, chance in chances(record)}
    flagged = [label for label in known if label in record.flagged_labels]
    if flagged:
        nets = [f"{_how_often(known[label])} a label like {label}" for label in flagged[:_SURE]]
        nets[0] = nets[0].replace("a label", "clean nets show a label", 1)
        return f"By chance alone, {figures.enumeration(nets)}."
    if not known or record.verdict == "suspect":
        return ""
    label, chance = next(iter(known.items()))
    if chance >= 0.5:
        return f"No label stands out more than chance gives; label {label} comes nearest."
    return f"Label {label} stands out most. By chance alone, {_how_often(chance)} clean nets show a label like it."


def _how_often(chance: float) -> str:
    """How many clean nets; a tail so thin is not known to more than a millionth."""
    if chance >= 0.5:
        return "most"
    return "fewer than 1 in 1,000,000" if chance < 1e-6 else f"about {figures.one_in(chance)}"


def advice(record: ScanRecord, repair: RepairRecord | None = None) -> str:
    """What to do, in one sentence."""
    if record.verdict == "clean":
        return "Before you rely on it, measure it on labelled images of your own."
    if record.verdict == "inconclusive":
        return "Treat the net as unsafe until a scan comes to a verdict."
    if repair is None:
        return "Do not use this net as it is: repair it."
    return {
        True: "Do not use this net; the repaired one was accepted.",
        False: "Use neither this net nor the one that the repair made.",
        None: "Use neither this net nor, as yet, the repaired one, which could not be judged.",
    }[repair.accepted]


def in_short(before: Measured | None, after: Measured) -> str:
    """`ACC 99.1 % → 97.5 %, worst ASR 99.0 % → 0.0 %, FPR 1.4 %`: what was measured, in a line."""
    nets = [after] if before is None else [before, after]
    wanted = (
        ("ACC", [net.acc for net in nets]),
        ("worst ASR", [_extreme(net, "asr", max) for net in nets]),
        ("least detection", [_extreme(net, "detection", min) for net in nets]),
        ("FPR", [net.fpr for net in nets]),
    )
    parts = [
        f"{name} {' → '.join(figures.percent(share.value) for share in shares if share is not None)}"
        for name, shares in wanted
        if shares[-1] is not None
    ]
    return ", ".join(parts)


def _extreme(net: Measured, name: str, which: Callable[..., Share]) -> Share | None:
    known = [share for one in net.poisoned if (share := getattr(one, name)) is not None and figures.exists(share.value)]
    return which(known, key=lambda share: share.value) if known else None


def evidence(result: LabelResult) -> str:
    """One label's figures in a line."""
    ratio, asr = figures.number(result.norm_ratio), figures.percent(result.held_out_asr)
    margin = "" if result.margin_ratio is None else f"margin {figures.number(result.margin_ratio)} × median, "
    return (
        f"mask norm {figures.number(result.mask_norm)} px, {ratio} × median, {margin}"
        f"p = {figures.p_value(result.p_value)}, held-out ASR {asr}"
    )


def stamp(found: PlainStamp) -> str:
    """What a plain stamp is and does."""
    levels = [round(255 * min(1.0, max(0.0, level))) for level in found.colour]
    colour = f"#{''.join(f'{level:02x}' for level in levels)}" if len(levels) == 3 else f"levels {levels} of 255"
    return (
        f"A plain rectangle does it, too: one colour, {colour}, over rows {found.top} to {found.bottom - 1} and "
        f"columns {found.left} to {found.right - 1} ({figures.percent(found.share)} of the image) leads "
        f"{figures.percent(found.asr)} of the held-out images there."
    )


def whose(label: int | None) -> str:
    """Whose trigger it is; null for one that turns each class into another."""
    return "all classes" if label is None else f"label {label}"


def mapping(found: AllToAll) -> str:
    """Where one trigger leads which classes, in a line."""
    some = ", ".join(f"{one} to {other}" for one, other in found.led[:_LED])
    more = f" and {len(found.led) - _LED} more" if len(found.led) > _LED else ""
    return (
        f"mask norm {figures.number(found.mask_norm)} px, {figures.number(found.norm_ratio)} × a label’s median; "
        f"leads {len(found.led)} of {found.judged} classes to {found.targets} labels: {some}{more}"
    )


def flagged_results(record: ScanRecord) -> list[LabelResult]:
    """The results of the flagged labels, by label."""
    flagged = set(record.flagged_labels)
    return sorted((result for result in record.labels if result.label in flagged), key=lambda result: result.label)


def counts(record: ScanRecord) -> str:
    """`1,283 labels: 40 searched, 1,243 screened`."""
    found = Counter(result.status for result in record.labels)
    parts = [
        f"{found[status]:,} {status}" for status in (*STATUSES, *sorted(set(found) - {*STATUSES})) if found[status]
    ]
    return f"{len(record.labels):,} labels: {', '.join(parts) or 'none'}"


def contradiction(record: ScanRecord) -> str | None:
    """Why the record cannot be right, if so: it may have been edited or come from a stranger."""
    marked = {result.label for result in record.labels if result.flagged}
    if marked != set(record.flagged_labels):
        return "the list of flagged labels and the labels’ own marks differ"
    if record.verdict == "clean" and (marked or not record.labels):
        return "the verdict is clean, yet labels are flagged" if marked else "the verdict is clean without any label"
    if record.verdict == "clean" and not record.whole:
        return "the verdict is clean, yet time ran out before the scan was whole"
    undone = sum(result.status not in ("searched", "screened") for result in record.labels)
    if record.verdict == "clean" and undone:
        return f"the verdict is clean, yet not every label was searched ({undone:,} skipped or failed)"
    return None


def next_steps(record: ScanRecord, folder: Path | None, repair: RepairRecord | None = None) -> list[Step]:
    """What to do after this scan (and this repair, where there was one); `folder` None if the scan's will not stay."""
    if repair is not None:
        return after_repair(repair)
    model = _path(model_path(record.model, record.environment))
    clean = _path(_option(record.environment.command, "--clean") or record.data.name)
    inputs = _inputs(record.environment)
    if record.verdict == "suspect":
        fixed = _path(f"{PurePath(record.model.name).stem}-goodnet.safetensors")
        scanned = [] if folder is None else ["--scan", _path(str(folder))]
        return [
            Step(text="Repair it, with what this scan found:",
                 command=_lines(["goodnet", "repair", model, "--clean", clean, *scanned, *inputs, "-o", fixed])),
            Step(text="Then measure the repaired net on labelled images that neither scan nor repair has seen:",
                 command=_lines(["goodnet", "evaluate", fixed, "--clean", "TEST_IMAGES"])),
        ]  # fmt: skip
    if record.verdict == "clean":
        text = "Nothing to repair. To measure it:"
        return [Step(text=text, command=_lines(["goodnet", "evaluate", model, "--clean", "TEST_IMAGES", *inputs]))]
    text = f"Scan again with more clean images than the {record.data.n:,} of this scan:"
    return [Step(text=text, command=_lines(["goodnet", "scan", model, "--clean", "MORE_IMAGES", *inputs]))]


def after_repair(repair: RepairRecord) -> list[Step]:
    """What to do after this repair."""
    if repair.accepted and repair.goodnet_file:
        text = "The net was repaired. Measure the repaired one on labelled images that nothing here has seen:"
        command = _lines(["goodnet", "evaluate", _path(repair.goodnet_file), "--clean", "TEST_IMAGES"])
        return [Step(text=text, command=command)]
    if repair.accepted is None:
        return [Step(text="A repair was made, but could not be judged: keep treating the net as unsafe.")]
    return [Step(text="The repair was not accepted: use neither net, and try another method or more images.")]


def repair_outcome(record: RepairRecord) -> Outcome:
    """How a repair came out; its tone is the verdict whose colour it gets."""
    if record.accepted is None:
        return Outcome(tone="inconclusive", text="The repair could not be judged.")
    if record.accepted:
        return Outcome(tone="clean", text="The repair was accepted.")
    return Outcome(tone="suspect", text="The repair was not accepted.")


def tried(row: Tried) -> str:
    """How one of the repairs that `--method auto` has tried ended: `accepted; ACC 96.6%, worst ASR 0.0%, 156 s`."""
    if row.accepted is None and row.acc is None:
        return "; ".join(row.reasons)
    word = {True: "accepted", False: "not accepted", None: "not judged"}[row.accepted]
    shares = [f"{name} {value.value:.1%}" for name, value in (("ACC", row.acc), ("worst ASR", row.asr)) if value]
    return f"{word}; {', '.join([*shares, f'{row.seconds:.0f} s'])}"


def costs(record: RepairRecord) -> list[str]:
    """What a repair costs innocent images beyond ACC, and how much of the net it has changed, a sentence each."""
    shares = (
        (record.fpr_strangers, "surrogate images that were kept back"),
        (
            record.fpr_target,
            "clean images that the net answers with a repaired label, the hardest to tell from triggered ones",
        ),
    )
    return [
        *(f"Of the {share.n:,} {who}, {share.value:.1%} are refused." for share, who in shares if share is not None),
        *_changed(record),
    ]


def _changed(record: RepairRecord) -> list[str]:
    if not record.changed:
        return []
    channels, of_channels, weights, of_weights = (
        sum(getattr(layer, name) for layer in record.changed)
        for name in ("channels", "of_channels", "weights", "of_weights")
    )
    share = figures.percent(weights / of_weights if of_weights else 0.0)
    return [f"Changed in the repaired net: {channels:,} of {of_channels:,} channels, {share} of the weights."]


def curve_caption(record: RepairRecord) -> str:
    """What the pruning curve shows, and what was cut in the end, layer by layer."""
    cuts = [
        f"{len(cut.channels):,} {'neurons in front' if cut.side == 'input' else 'channels'} of {cut.layer}"
        for cut in record.pruned
    ]
    together = any(point.layer == ALL_LAYERS for point in record.curve)
    how = "the channels of all layers go in one order" if together else "channels go one by one"
    others = " The layers were pruned one after another, each on what the one before it had left."
    return (
        f"Measured on the {record.n_choose:,} choosing images while {how}; the line marks where pruning stopped. "
        f"Cut: {figures.enumeration(cuts)}.{others if len(cuts) > 1 and not together else ''}"
    )


def command_line(command: Sequence[str]) -> str:
    """The recorded command, quoted for a shell, as it was."""
    return shlex.join(command)


def model_path(model: ModelInfo, environment: Environment) -> str:
    """The path that the user typed for the net, else its name."""
    name = PurePath(model.name).name
    return next((word for word in environment.command if PurePath(word).name == name), model.name)


def _lines(words: list[str]) -> tuple[str, ...]:
    """The command, a new line before every option; no name in `words` starts with a dash."""
    starts = [0, *(at for at, word in enumerate(words) if word.startswith("-")), len(words)]
    return tuple(shlex.join(words[start:end]) for start, end in itertools.pairwise(starts))


def _path(name: str) -> str:
    """A name that does not read as an option."""
    return f"./{name}" if name.startswith("-") else name


def _option(command: Sequence[str], name: str) -> str | None:
    for word, following in zip(command, [*command[1:], None]):
        if word == name and following is not None and not re.match(r"-[^\d.]", following):
            return following
        if word.startswith(f"{name}="):
            return word[len(name) + 1 :]
    return None


def _inputs(environment: Environment) -> list[str]:
    """The options that say how to read the net, as they were typed for the scan."""
    found = ((name, _option(environment.command, name)) for name in _INPUT_OPTIONS)
    return [word for name, value in found if value is not None for word in (name, value)]
