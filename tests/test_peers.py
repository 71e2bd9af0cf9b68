"""The benchmark of other programs, with programs of our own that do what programs do: answer, crash, hang, babble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli_support import TARGET, Shell
from goodnet import peer_bench
from goodnet.cli import bench_peers
from goodnet.measure import answer, measure
from goodnet.peer_bench import Case, run_peers
from goodnet.peer_record import ANSWERED, AS_RELEASED, FAILED, OUT_OF_TIME, PATCHED, PeerRow
from goodnet.peers.process import run_child
from goodnet.peers.registry import PEERS, Peer
from goodnet.peers.task import Said, Task, read_said, read_task, write_said, write_task
from goodnet.repair_subjects import Subject
from goodnet.report.peer_table import peer_markdown
from test_repair_bench import subject

_PROGRAM = """
    import json, os, sys, time
    from pathlib import Path
    import numpy as np
    folder = Path(sys.argv[-2])
    task = json.loads((folder / "task.json").read_text())
    name, classes = task["peer"], task["classes"]
    (folder / "begun.json").write_text('{"version": "1.2"}')
    (folder / "runs").write_text(((folder / "runs").read_text() if (folder / "runs").exists() else "") + "x")
    with np.load(folder / "asked.npz") as asked:
        count = len(asked["data"])

    def say(verdict=None, flagged=None, note="", guards=(), error="", pointed_at=None, **answers):
        arrays = {f"net: {key}": value for key, value in answers.items()}
        if pointed_at is not None:
            arrays["pointed at"] = pointed_at
        np.savez(folder / "answers.npz", **arrays)
        (folder / "said.json").write_text(json.dumps({"format": "goodnet.peer-said/1", "verdict": verdict, "note": note,
                                                      "flagged": flagged, "guards": list(guards), "error": error}))

    if name == "good":
        answers = np.load(Path(__file__).parent / "answers.npy")
        say("suspect", [3], "as told", ["guard"], net=answers, guard=np.where(answers == 3, classes, answers))
    elif name == "crash":
        print("about to")
        sys.stderr.write("Segfault of <b>sorts</b> | here\\n")
        sys.stderr.flush()
        os._exit(7)
    elif name == "killed":
        os.kill(os.getpid(), 9)
    elif name == "slow":
        (folder / "progress.json").write_text('{"stage": "labels", "done": 2, "total": 10}')
        while True:
            pass
    elif name == "halfway":
        say("suspect", [3], "no repair yet")
        while True:
            pass
    elif name == "asleep":
        time.sleep(600)
    elif name == "error":
        say(error="ValueError: <script>")
    elif name == "short":
        say(net=np.zeros(3, np.int64))
    elif name == "label":
        say("suspect", [77])
    elif name == "refuses":
        say(net=np.full(count, classes))
    elif name == "word":
        say("evil")
    elif name == "noise":
        (folder / "said.json").write_bytes(b"\\x00{]")
    elif name == "patched":
        say("clean", []) if task["patched"] else say(error="ImportError: gone")
    elif name == "filter":
        with np.load(folder / "clean.npz") as clean, np.load(folder / "mixed.npz") as mixed:
            say(pointed_at=np.arange(len(mixed["data"])) >= len(clean["data"]) - 12)
    elif name != "silent":
        raise AssertionError(name)
"""
_NAMES = ("good", "crash", "killed", "slow", "error", "short", "label", "refuses", "word", "noise", "silent", "patched",
          "filter")  # fmt: skip


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands for the peers' Python: it runs the program above. The net is the one of known answers."""
    if os.name == "nt":
        pytest.skip("a script stands for Python here")
    (tmp_path / "program.py").write_text(textwrap.dedent(_PROGRAM))
    one = subject(tmp_path)
    np.save(tmp_path / "answers.npy", answer(one.net, Case(subject=one, test=one.test, poisoned=one.poisoned).asked))
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "program.py"}" "$@"\n')
    script.chmod(0o755)
    peers = {name: Peer(name=name, adapter="none", package="", what=f"it is {name}",
                        sees="sees poison" if name == "filter" else "", patch="a patch" if name == "patched" else "")
             for name in (*_NAMES, "asleep", "halfway")}  # fmt: skip

    def ours(*_: object) -> Iterator[Subject]:
        yield subject(tmp_path)

    monkeypatch.setattr(peer_bench, "subjects", ours)
    monkeypatch.setattr(peer_bench, "PEERS", peers)
    return str(script)


def rows_of(tmp_path: Path, python: str, *names: str, limit: float = 60.0, out: str = "out") -> list[PeerRow]:
    record = run_peers(tmp_path, tmp_path, tmp_path / out, nets=["ours"], peers=names, python=python, limit=limit)
    return list(record.rows)


def test_every_way_to_end_is_a_row_with_its_reason_and_none_stops_the_others(tmp_path: Path, python: str) -> None:
    rows = {row.peer: row for row in rows_of(tmp_path, python, *(name for name in _NAMES if name != "slow"))
            if row.state == AS_RELEASED}  # fmt: skip
    reasons = {name: row.reason for name, row in rows.items() if row.outcome == FAILED}
    assert reasons == {
        "crash": "ended with exit code 7: Segfault of <b>sorts</b> | here",
        "killed": "ended by signal 9",
        "error": "ValueError: <script>",
        "short": "no valid answer: net: expected 220 whole numbers, got int64 (3,)",
        "label": "no valid answer: it flags (77,), and the net has 10 classes",
        "refuses": "no valid answer: net: answers from 10 to 10, and the net has 10 classes",
        "word": "no valid answer: its verdict is 'evil', which is none of clean, suspect, inconclusive",
        "noise": reasons["noise"],
        "silent": reasons["silent"],
        "patched": "ImportError: gone",
    }
    assert reasons["noise"].startswith("no valid answer: said.json: expected a goodnet record (JSON)")
    assert reasons["silent"].startswith("no valid answer: said.json: expected a goodnet record, but it cannot be read")
    assert {row.version for row in rows.values()} == {"1.2"}
    assert all(row.seconds > 0 for row in rows.values())


def test_answers_are_judged_as_a_net_in_this_process_is(tmp_path: Path, python: str) -> None:
    (row,) = rows_of(tmp_path, python, "good")
    ours = subject(tmp_path)
    expected = measure(ours.net, ours.test, [ours.poisoned["pixel"]])
    as_it_came, guarded = row.figures
    assert (row.outcome, row.verdict, row.flagged, row.note) == (ANSWERED, "suspect", (TARGET,), "as told")
    assert (as_it_came.name, as_it_came.trigger) == ("net", "pixel")
    assert (as_it_came.acc, as_it_came.asr, as_it_came.ra) == (
        expected.acc, expected.poisoned[0].asr, expected.poisoned[0].ra)  # fmt: skip
    assert (as_it_came.detection, as_it_came.fpr) == (None, None)
    shown = answer(ours.net, ours.test)
    assert guarded.detection is not None
    assert guarded.detection.value == 1.0
    assert guarded.asr is not None
    assert guarded.asr.value == 0.0
    assert guarded.fpr is not None
    assert guarded.fpr.value == pytest.approx(float(np.mean(shown == TARGET)))


def test_a_filter_of_training_data_is_judged_on_poison_that_is_among_the_clean_images(
    tmp_path: Path, python: str
) -> None:
    """It points at the last 12 clean images and at all of the poison."""
    (row,) = rows_of(tmp_path, python, "filter")
    clean = subject(tmp_path).clean
    assert row.found is not None
    assert row.falsely is not None
    assert (row.found.value, row.found.n) == (1.0, len(clean) // 9)
    assert (row.falsely.value, row.falsely.n) == (pytest.approx(12 / len(clean)), len(clean))


@pytest.mark.slow
def test_at_the_limit_it_is_ended_and_what_all_labels_would_take_is_told(tmp_path: Path, python: str) -> None:
    (row,) = rows_of(tmp_path, python, "slow", limit=2.0)
    if sys.platform.startswith("linux"):  # of a process that ends within a moment it is not known
        assert row.peak_mib
        assert row.peak_mib > 5
    assert (row.outcome, row.done, row.total) == (OUT_OF_TIME, 2, 10)
    assert 1.9 < row.seconds < 10.0  # processor time is counted in ticks, and ended at the second look
    assert row.whole_seconds == pytest.approx(row.seconds * 5)


@pytest.mark.slow
def test_what_it_has_said_by_then_is_kept(tmp_path: Path, python: str) -> None:
    (row,) = rows_of(tmp_path, python, "halfway", limit=1.0)
    assert (row.outcome, row.verdict, row.flagged, row.note) == (OUT_OF_TIME, "suspect", (3,), "no repair yet")
    record = run_peers(tmp_path, tmp_path, tmp_path / "out", nets=["ours"], peers=["halfway"], python=python, limit=1.0)
    assert record.rows == (row,)
    assert "| halfway | suspect; then out of time (no repair yet) | 3 |" in peer_markdown(record)


@pytest.mark.slow
def test_one_that_sleeps_is_ended_by_the_clock(tmp_path: Path, python: str) -> None:
    started = time.monotonic()
    (row,) = rows_of(tmp_path, python, "asleep", limit=0.5)
    assert row.outcome == OUT_OF_TIME
    assert row.whole_seconds is None
    assert time.monotonic() - started < 60


def test_both_states_of_a_program_that_was_repaired_are_shown(tmp_path: Path, python: str) -> None:
    rows = rows_of(tmp_path, python, "patched")
    assert [(row.state, row.outcome, row.verdict) for row in rows] == [
        (AS_RELEASED, FAILED, None), (PATCHED, ANSWERED, "clean")]  # fmt: skip


def test_an_interrupted_run_goes_on_and_what_failed_is_tried_again(tmp_path: Path, python: str) -> None:
    rows_of(tmp_path, python, "good", "error")
    rows_of(tmp_path, python, "good", "error")

    def runs(name: str) -> int:
        return len((tmp_path / "out" / "ours" / f"{name}, as released" / "runs").read_text())

    assert (runs("good"), runs("error")) == (1, 2)
    rows_of(tmp_path, python, "good", limit=70.0)
    assert runs("good") == 2  # other settings
    (tmp_path / "out" / "ours" / "good, as released" / "row.json").write_text("{half")
    rows_of(tmp_path, python, "good", limit=70.0)
    assert runs("good") == 3


def test_the_table_says_all_of_it_and_nothing_of_a_program_becomes_markup(tmp_path: Path, python: str) -> None:
    names = ("good", "crash", "patched", "filter")
    record = run_peers(tmp_path, tmp_path, tmp_path / "out", nets=["ours"], peers=names, python=python, limit=60.0)
    text = peer_markdown(record)
    assert "| good | 1 of 1 | 1 of 1 | – | 0 | 0 |" in text
    assert "| crash | – | – | – | 0 | 1 | – |" in text
    assert "| patched, after a small repair | 0 of 1 | 0 of 1 | – | 0 | 0 |" in text
    assert "| good | suspect (as told) | 3 | net | pixel |" in text
    assert "* crash: `ended with exit code 7: Segfault of <b>sorts</b> | here`" in text
    assert "points at 100.0 (77–100) of the poisoned" in text
    assert "* **patched** (1.2): it is patched. The small repair: a patch." in text
    assert json.loads((tmp_path / "out" / "peers.json").read_text())["format"] == "goodnet.bench-peers/1"


def test_a_net_comes_out_of_its_folder_as_it_went_in(tmp_path: Path) -> None:
    ours = subject(tmp_path)
    case = Case(subject=ours, test=ours.test, poisoned=ours.poisoned)
    task = Task(net=ours.net, clean=ours.clean, surrogate=None, asked=case.asked, mixed=None, seed=3, patched=True)
    write_task(tmp_path, task, "plain-neural-cleanse")
    name, read = read_task(tmp_path)
    assert (name, read.seed, read.patched, read.surrogate) == ("plain-neural-cleanse", 3, True, None)
    assert read.asked.labels is None
    assert read.clean.sha256() == ours.clean.sha256()
    assert (answer(read.net, case.asked) == answer(ours.net, case.asked)).all()
    assert (read.answers(read.module) == answer(ours.net, case.asked)).all()
    write_said(tmp_path, Said(verdict="clean", flagged=()))
    said = read_said(tmp_path, task)
    assert isinstance(said, Said)
    assert (said.verdict, said.flagged) == ("clean", ())


def test_the_child_itself_runs_a_program_and_tells_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-pruning of a net without a convolution."""

    def ours(*_: object) -> Iterator[Subject]:
        yield subject(tmp_path)

    monkeypatch.setattr(peer_bench, "subjects", ours)
    (pruned,) = rows_of(tmp_path, sys.executable, "plain-fine-pruning")
    assert pruned.reason == "ModelError: fine-pruning: expected a net with a convolution, and it has none"


@pytest.mark.slow
def test_the_plain_search_finds_the_only_trigger_which_is_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours(*_: object) -> Iterator[Subject]:
        yield subject(tmp_path)

    monkeypatch.setattr(peer_bench, "subjects", ours)
    (found,) = rows_of(tmp_path, sys.executable, "plain-neural-cleanse")
    assert (found.outcome, found.done, found.total) == (ANSWERED, 10, 10)
    assert found.flagged is not None
    assert TARGET in found.flagged
    assert [one.name for one in found.figures] == ["unlearning"]


@pytest.mark.slow
def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    ours = subject(tmp_path)
    case = Case(subject=ours, test=ours.test, poisoned=ours.poisoned)
    task = Task(net=ours.net, clean=ours.clean, surrogate=None, asked=case.asked, mixed=None, seed=0, patched=False)
    write_task(tmp_path, task, "plain-neural-cleanse")
    code = (
        "import os, subprocess, sys; command = [sys.executable, '-m', 'goodnet.peers.child', sys.argv[1]]; "
        "print(subprocess.Popen([*command, str(os.getpid())], start_new_session=True, stdout=2).pid)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    assert not (tmp_path / "said.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_all_that_a_process_has_started_is_ended_with_it(tmp_path: Path) -> None:
    if not hasattr(os, "killpg"):
        pytest.skip("no groups of processes here")
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(child.pid))\n"
        "while True: pass\n"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "parent.py"}" "$3"\n')
    script.chmod(0o755)
    assert run_child(str(script), tmp_path, 2.0).out_of_time
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


def test_the_command_says_what_is_missing(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    said = shell("bench", "peers", "--data", tmp_path, "--python", tmp_path / "none")
    assert said.code == 3
    assert "run `make peers`" in said.err
    monkeypatch.setattr(bench_peers, "data_folder", lambda: None)
    said = shell("bench", "peers", "--python", sys.executable)
    assert said.code == 3
    assert "--data" in said.err


def test_the_command_prints_the_table_and_leaves_it(
    tmp_path: Path, python: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("bench", "peers", "--data", tmp_path, "--python", python, "--net", "cifar10-badnets", "--peer",
                 "goodnet", "--out", tmp_path / "out", "--cache", tmp_path)  # fmt: skip
    good = peer_bench.PEERS["good"]
    monkeypatch.setattr(peer_bench, "PEERS", {"goodnet": good})
    said = shell(*arguments)
    assert said.code == 0
    assert "# goodnet beside others" in said.out
    assert (tmp_path / "out" / "peers.md").read_text() in said.out
    drawn = ElementTree.parse(tmp_path / "out" / "peers.svg").getroot()
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    (row,) = json.loads((tmp_path / "out" / "peers.json").read_text())["rows"]
    kinds = list(dict.fromkeys(figures["name"] for figures in row["figures"]))
    assert [text for text in texts if text and text.startswith("good: ")] == [f"good: {kind}" for kind in kinds]
    titles = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert f"ASR {100 * row['figures'][0]['asr']['value']:.1f} %" in titles
    said = shell(*arguments, "--json")
    assert json.loads(said.out)["rows"][0]["verdict"] == "suspect"


def test_every_program_has_an_adapter_and_words() -> None:
    folder = Path(peer_bench.__file__).parent / "peers"
    for peer in PEERS.values():
        assert "def run(task: Task, name: str) -> Said:" in (folder / f"{peer.adapter}.py").read_text()
        assert peer.what
