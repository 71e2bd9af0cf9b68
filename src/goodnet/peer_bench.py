"""goodnet beside other programs of the field: the same nets, the same images, one process each, one judge.

Each program gets the net and the defender's clean images, at its authors' defaults, and answers the test and the
triggered images with whatever it made of the net; what it sees beyond that stands with it. Here, where the true labels
are, its answers are judged. One that crashes, runs out of time or talks nonsense is a row that says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from goodnet.about import data_info, machine, model_info
from goodnet.data.images import Images
from goodnet.detection_pool import build, pool_sets
from goodnet.detection_specs import JUDGING, specs
from goodnet.errors import DataError, UsageError
from goodnet.measure import answer, of_answers, present, share
from goodnet.peer_record import (
    ANSWERED,
    AS_RELEASED,
    FAILED,
    OUT_OF_TIME,
    PATCHED,
    PeerCell,
    PeerFigures,
    PeerNet,
    PeerRecord,
    PeerRow,
    PeerWords,
    read_cell,
)
from goodnet.peers.process import Ended, run_child
from goodnet.peers.registry import PEERS, Peer
from goodnet.peers.task import Said, Task, read_begun, read_progress, read_said, write_task
from goodnet.progress import Progress, silent
from goodnet.repair_subjects import NETS as OTHERS
from goodnet.repair_subjects import NOTE_JPEG, Subject, subjects
from goodnet.strict_json import write_record

# Trained here in a minute or two, as for the detection benchmark: kind and attack.
_OURS: dict[str, tuple[str, str | None]] = {
    "mnist-patch": ("mnist cnn", "patch"),
    "mnist-watermark": ("mnist cnn", "watermark"),
    "mnist-clean": ("mnist cnn", None),
    "gtsrb-clean": ("gtsrb small-vgg", None),
    "cifar10-clean": ("cifar10 small-vgg", None),
}
NETS = (*OTHERS, *_OURS)
MOST = 1000
"""Clean images, and triggered ones of each kind, that answers are asked for: some programs take seconds an image."""
_POISON = 9  # clean images for each poisoned one in a training set


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A net with the images of its judge. `asked` are `test` and all of `poisoned`, in this order."""

    subject: Subject
    test: Images
    poisoned: Mapping[str, Images]

    @property
    def asked(self) -> Images:
        return Images(pixels=_pixels((self.test, *self.poisoned.values())), name="asked")

    @property
    def mixed(self) -> Images:
        """The defender's images with triggered ones of the first trigger among them, which no defender of ours sees."""
        clean = replace(self.subject.clean, groups=None)
        sets = list(self.poisoned.values())
        if not sets or not self.subject.true_targets:
            return clean
        attacked = sets[0].take(sets[0].true_labels != sets[0].labels) if sets[0].true_labels is not None else sets[0]
        poison = attacked.take(slice(0, len(clean) // _POISON))
        assert clean.labels is not None
        assert poison.labels is not None
        labels = np.concatenate([clean.labels, poison.labels])
        return Images(pixels=_pixels((clean, poison)), labels=labels, name="mixed")


def _pixels(sets: Sequence[Images]) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """All of them in one array; float32 in [0, 1] where any is."""
    if all(images.pixels.dtype == np.uint8 for images in sets):
        return np.concatenate([images.pixels for images in sets])
    return np.concatenate([np.ascontiguousarray(images.tensor().numpy()) for images in sets])


def run_peers(
    data: Path,
    cache: Path,
    out: Path,
    *,
    nets: Sequence[str] = NETS,
    peers: Sequence[str] = tuple(PEERS),
    python: str,
    clean: int = 300,
    limit: float = 300.0,
    seed: int = 0,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> PeerRecord:
    """Runs each program on each net and leaves `peers.json` in `out`; rows that are there already are not made again.

    Those that failed are: an environment that lacked a package may have it now.

    Args:
        data: folder with faces, gtsrb, cifar10 and triggers.
        cache: where the clean controls are kept that are trained here.
        clean: at most so many images for the defender; 300 are what most programs get through within the limit.
        python: of the environment that has the programs' packages, and goodnet.
        limit: seconds of processor time for one program on one net.

    Raises:
        UsageError: files are missing in `data`, or no net or program is asked for.
    """
    if not nets or not peers:
        raise UsageError("bench peers: expected at least one net and one program")
    started = time.perf_counter()
    rows: list[PeerRow] = []
    described: list[PeerNet] = []
    total = len(nets) * sum(1 + bool(PEERS[name].patch) for name in peers)
    for case in _cases(data, cache, nets, clean, seed, progress):
        described.append(_described(case))
        for peer, patched in ((PEERS[name], patched) for name in peers for patched in (False, True)):
            if patched and not peer.patch:
                continue
            rows.append(_row(case, peer, patched, out, python, limit, seed))
            progress("programs on nets", len(rows), total)
            say(_line(rows[-1]))
    record = PeerRecord(
        nets=tuple(described),
        peers=tuple(PeerWords(name=one.name, what=one.what, sees=one.sees, patch=one.patch)
                    for one in map(PEERS.__getitem__, peers)),
        rows=tuple(rows),
        limit=limit,
        seed=seed,
        seconds=time.perf_counter() - started,
        environment=machine("cpu", command),
    )  # fmt: skip
    write_record(record, out / "peers.json")
    return record


def _cases(data: Path, cache: Path, nets: Sequence[str], most: int, seed: int, progress: Progress) -> Iterator[Case]:
    ours = [_ours(data, cache, name, progress) for name in nets if name in _OURS]
    for subject in (*subjects(data, [name for name in nets if name in OTHERS], seed), *ours):
        random = np.random.default_rng(seed)
        clean = _some(subject.clean, random, most)
        test = _some(subject.test, random, MOST)
        poisoned = {name: _some(present(images), random, MOST) for name, images in subject.poisoned.items()}
        yield Case(subject=replace(subject, clean=clean), test=test, poisoned=poisoned)


def _some(images: Images, random: np.random.Generator, most: int) -> Images:
    return images.take(np.sort(random.permutation(len(images))[:most]))


def _ours(data: Path, cache: Path, name: str, progress: Progress) -> Subject:
    """A net of the detection benchmark, with its own defender's images."""
    kind, attack = _OURS[name]
    spec = next(one for one in specs() if (one.kind, one.part, one.attack) == (kind, JUDGING, attack))
    pooled, sets = build(spec, cache, data, progress=progress), pool_sets(spec, data)
    note = f"trained here ({spec.name})" + (f"; {NOTE_JPEG}" if spec.data == "cifar10" else "")
    return Subject(
        name=name, net=pooled.classifier, clean=pooled.clean, test=sets.test, poisoned=sets.poisoned,
        true_targets=sets.targets, note=note,
    )  # fmt: skip


def _described(case: Case) -> PeerNet:
    subject = case.subject
    return PeerNet(
        name=subject.name,
        targets=subject.true_targets,
        model=model_info(subject.net),
        clean=data_info(subject.clean),
        test=data_info(case.test),
        before=judged(case, "none", answer(subject.net, case.asked), guarded=False),
        note=subject.note,
    )


def judged(case: Case, name: str, answers: npt.NDArray[np.int64], *, guarded: bool = True) -> tuple[PeerFigures, ...]:
    """What answers (N,) to `case.asked` are worth: a row a trigger, or one without where the net has none."""
    refused = case.subject.net.classes
    ends = np.cumsum([len(case.test), *(len(images) for images in case.poisoned.values())])
    clean, *parts = np.split(answers, ends[:-1])
    acc = share(clean == case.test.labels)
    fpr = share(clean == refused) if guarded else None
    if not parts or not case.subject.true_targets:
        none = PeerFigures(name=name, trigger="", acc=acc, asr=None, ra=None, detection=None, fpr=fpr)
        return (none,)
    rows = []
    for (trigger, images), part in zip(case.poisoned.items(), parts):
        figures = of_answers(images, part, refused if guarded else None)
        rows.append(PeerFigures(name=name, trigger=trigger, acc=acc, asr=figures.asr, ra=figures.ra,
                                detection=figures.detection, fpr=fpr))  # fmt: skip
    return tuple(rows)


def _row(case: Case, peer: Peer, patched: bool, out: Path, python: str, limit: float, seed: int) -> PeerRow:
    """The row that is there, or a new one."""
    state = PATCHED if patched else AS_RELEASED
    folder = out / case.subject.name / f"{peer.name}, {state}"
    key = _key(case, limit, seed)
    try:
        kept = read_cell(folder / "row.json")
        if kept.key == key and kept.row.outcome != FAILED:
            return kept.row
    except DataError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(
        net=case.subject.net, clean=case.subject.clean, surrogate=case.subject.surrogate, asked=case.asked,
        mixed=case.mixed if peer.sees else None, seed=seed, patched=patched,
    )  # fmt: skip
    write_task(folder, task, peer.name)
    ended = run_child(python, folder, limit)
    row = _outcome(case, peer, folder, task, ended, PeerRow(
        net=case.subject.name, peer=peer.name, version=read_begun(folder), state=state, outcome=FAILED,
        seconds=ended.seconds, peak_mib=ended.peak_mib,
    ))  # fmt: skip
    write_record(PeerCell(key=key, row=row), folder / "row.json")
    return row


def _outcome(case: Case, peer: Peer, folder: Path, task: Task, ended: Ended, row: PeerRow) -> PeerRow:
    """`row` with what became of it."""
    told = read_progress(folder)
    if told is not None:
        row = replace(row, done=told[0], total=told[1])
    if ended.out_of_time:
        rate = ended.seconds * told[1] / told[0] if told is not None and told[0] else None
        return _so_far(folder, task, replace(row, outcome=OUT_OF_TIME, whole_seconds=rate))
    if ended.broke:
        return replace(row, reason=ended.broke)
    try:
        said = read_said(folder, task)
    except DataError as error:
        return replace(row, reason=f"no valid answer: {str(error).replace(f'{folder}/', '')}")
    return replace(row, reason=said) if isinstance(said, str) else _answered(case, said, row)


def _so_far(folder: Path, task: Task, row: PeerRow) -> PeerRow:
    """`row` with the verdict that the program had come to before it was ended, if it had."""
    try:
        said = read_said(folder, task)
    except DataError:
        return row
    if isinstance(said, str):
        return row
    return replace(row, verdict=said.verdict, flagged=said.flagged, note=said.note, whole_seconds=None)


def _answered(case: Case, said: Said, row: PeerRow) -> PeerRow:
    figures = [judged(case, name, answers.astype(np.int64), guarded=name in said.guards)
               for name, answers in said.answers.items()]  # fmt: skip
    found = falsely = None
    if said.pointed_at is not None:
        poison = np.arange(len(said.pointed_at)) >= len(case.subject.clean)
        found, falsely = share(said.pointed_at[poison]), share(said.pointed_at[~poison])
    return replace(
        row, outcome=ANSWERED, verdict=said.verdict, flagged=said.flagged, note=said.note,
        figures=tuple(one for some in figures for one in some), found=found, falsely=falsely,
    )  # fmt: skip


def _key(case: Case, limit: float, seed: int) -> str:
    """Hash of all that a row depends on, but for the program's own version."""
    plain = [case.subject.net.sha256, case.subject.clean.sha256(), case.asked.sha256(), limit, seed,
             metadata.version("goodnet")]  # fmt: skip
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _line(row: PeerRow) -> str:
    patched = "" if row.state == AS_RELEASED else f", {row.state}"
    said = row.reason or row.verdict or ""
    return f"{row.net}: {row.peer}{patched}: {row.outcome} {said[:100]} ({row.seconds:.0f} s)"
