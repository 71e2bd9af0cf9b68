"""Many nets in one command: found, ordered, each in a process of its own, taken over by the next run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fleet_support
from cli_support import TARGET, Shell, block_net, files_in, fill, hears_ctrl_c, save_net, without
from fleet_support import KILLER, fleet, net_job, row
from goodnet.errors import UsageError
from goodnet.fleet import machine, processes, run
from goodnet.fleet.nets import Net, is_one_net, nets_in
from goodnet.fleet.processes import Outcome, run_each
from goodnet.fleet.worker import LOOK, SCAN, Job
from goodnet.fleet_record import EXIT_CODES, SEVERITY, FleetRecord, exit_code, read_fleet
from goodnet.models.formats import LoadOptions
from goodnet.report.fleet_words import table
from goodnet.strict_json import to_json, write_record
from hostile.case import CANARY, fired
from hostile.pickles import Evil

HOSTILE_NAME = "<script>alert(1)\x1b[31m<b>.pt"
ROW_KEYS = {
    "name", "status", "exit_code", "model", "clean", "reason", "flagged_labels", "model_sha256", "data_sha256", "key",
    "estimated_seconds", "turn", "seconds", "whole", "time_limit", "record", "report",
}  # fmt: skip
FLEET_KEYS = {
    "format", "finished", "exit_code", "counts", "nets", "passed_over", "source", "jobs", "seconds", "environment",
}  # fmt: skip
ARGUMENTS = ("--arch", "mlp", "--clean", "clean.npz", "--block", "160", "--jobs", "2")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nets, two whole and the others not, that was scanned into `out`."""
    from goodnet.cli import run as command

    folder = tmp_path_factory.mktemp("fleet")
    fill(folder)
    nets = folder / "nets"
    (nets / "below").mkdir(parents=True)
    (nets / ".git").mkdir()
    (folder / "clean.pt").rename(nets / "clean.pt")
    (folder / "bad.pt").rename(nets / "below" / HOSTILE_NAME)
    torch.save(Evil(), nets / "evil.pkl")
    (nets / "cut.pt").write_bytes((nets / "clean.pt").read_bytes()[:900])
    os.mkfifo(nets / "endless.h5")
    (nets / "notes.txt").write_text("not a net")
    (nets / "outside.pt").symlink_to(folder.parent)
    canary = folder / "canary"
    os.environ[CANARY] = str(canary)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert command(["scan", "nets", *ARGUMENTS, "--out", "out", "-q"]) == 1
    finally:
        os.chdir(before)
        del os.environ[CANARY]
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, for tests that change it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns("*.h5"))
    os.mkfifo(tmp_path / "nets" / "endless.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((folder / "summary.json").read_text())["nets"]}


def test_every_file_has_its_own_row_and_harms_no_other(template: Path) -> None:
    rows = rows_of(template / "out")
    hostile = f"below/{HOSTILE_NAME}"
    refused = dict.fromkeys(("cut.pt", "endless.h5", "evil.pkl"), ("refused", 3))
    expected = {hostile: ("suspect", 1), "clean.pt": ("clean", 0), **refused}
    assert {name: (one["status"], one["exit_code"]) for name, one in rows.items()} == expected
    assert rows[hostile]["flagged_labels"] == [TARGET]
    assert "run code" in rows["evil.pkl"]["reason"]
    assert "a pipe or a device" in rows["endless.h5"]["reason"]
    assert str(template) not in rows["evil.pkl"]["reason"] + rows["endless.h5"]["reason"]
    assert not (template / "canary").exists()
    assert fired(lambda: torch.load(template / "nets" / "evil.pkl", weights_only=False), template / "fired")


def test_what_is_no_net_is_named(template: Path) -> None:
    passed = json.loads((template / "out" / "summary.json").read_text())["passed_over"]
    assert {one["name"]: one["why"] for one in passed} == {
        ".git": "a hidden folder",
        "notes.txt": "not named like a net",
        "outside.pt": "a link that leads out of the folder",
    }


def test_the_summary_has_its_keys_and_reads_back(template: Path) -> None:
    path = template / "out" / "summary.json"
    raw = json.loads(path.read_text())
    assert set(raw) == FLEET_KEYS
    assert raw["format"] == "goodnet.fleet/1"
    assert all(set(one) == ROW_KEYS for one in raw["nets"])
    record = read_fleet(path)
    assert to_json(record) == path.read_text()
    assert (record.finished, record.exit_code) == (True, 1)
    assert record.counts == {"suspect": 1, "crashed": 0, "refused": 3, "inconclusive": 0, "waiting": 0, "clean": 1}
    for one in record.nets:
        if one.record is not None:
            scanned = json.loads((template / "out" / one.record).read_text())
            assert (scanned["verdict"], scanned["model"]["sha256"]) == (one.status, one.model_sha256)
            assert scanned["environment"]["command"][:2] == ["goodnet", "scan"]
            assert "--arch" in scanned["environment"]["command"]
            assert one.report is not None
            assert (template / "out" / one.report).is_file()


def test_folders_are_safe_whatever_the_names(template: Path) -> None:
    folders = {path.name for path in (template / "out" / "nets").iterdir()}
    assert all(name.replace("-", "").replace(".", "").replace("_", "").isalnum() for name in folders)
    nasty = [
        "a",
        "A",
        "../a",
        "a/b",
        "a_b",
        ".a",
        "-a",
        "",
        "\udcff",
        "\n",
        "x" * 300,
        "é",
        "e\u0301",
        "a b",
        "a\u202eb",
    ]
    made = {net_named(name).folder for name in nasty}
    assert len({name.lower() for name in made}) == len(nasty)
    for name in made:
        assert name.isascii()
        assert name[0] not in ".-"
        assert len(name) < 80
        assert not set(name) & set("/\\:<>|*?\"' ")


def net_named(name: str) -> Net:
    return Net(name=name, path=None, clean=Path("c"), load=LoadOptions())


def test_the_next_run_scans_nothing_again(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(place / "out")

    def started(*arguments: object) -> None:
        raise AssertionError("a net was scanned again")

    monkeypatch.setattr(processes, "_start", started)
    done = shell("scan", "nets", *ARGUMENTS, "--out", "out", "--json")
    assert done.code == 1
    moved = ("model", "clean")
    assert without(done.json["nets"], moved) == without(list(before.values()), moved)
    assert {one["clean"] for one in done.json["nets"]} == {str(place / "clean.npz")}
    assert (place / "out" / "summary.json").read_text() == done.out
    done = shell("scan", "nets", *ARGUMENTS, "--out", "out")
    assert "going on where an earlier run stopped: 4 nets are done" in done.err  # the pipe has no bytes to know it by
    assert shell("scan", "nets", *ARGUMENTS, "--out", "out", "--quiet").err == ""


def test_only_what_has_changed_is_scanned_again(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    save_net(place / "nets" / "clean.pt", block_net(TARGET))
    (place / "nets" / "cut.pt").unlink()
    earlier = rows_of(place / "out")
    record = place / "out" / earlier[f"below/{HOSTILE_NAME}"]["record"]
    record.unlink()  # somebody has removed a result: it is made again
    asked = started_nets(monkeypatch)
    done = shell("scan", "nets", *ARGUMENTS, "--out", "out", "--json")
    rows = {one["name"]: one for one in done.json["nets"]}
    assert set(asked) == {"clean.pt", f"below/{HOSTILE_NAME}"}
    assert (rows["clean.pt"]["status"], rows["clean.pt"]["flagged_labels"]) == ("suspect", [TARGET])
    assert rows["evil.pkl"]["seconds"] == earlier["evil.pkl"]["seconds"]
    assert "cut.pt" not in rows
    assert record.is_file()


def started_nets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    start = processes._start

    def noted(context: Any, one: Job, log: Path) -> Any:
        names.append(one.net.name)
        return start(context, one, log)

    monkeypatch.setattr(processes, "_start", noted)
    return names


@pytest.mark.parametrize(
    "more", [("--seed", "1"), ("--labels", "0-8"), ("--method", "neural-cleanse"), ("--overwrite",)]
)
def test_other_settings_take_nothing_over(
    place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    ended_at_once(monkeypatch, lambda one: Outcome(error="not today"))
    done = shell("scan", "nets", *ARGUMENTS, "--out", "out", *more, "--json")
    assert done.code == 3
    assert {one["status"] for one in done.json["nets"]} == {"refused"}
    assert not list((place / "out" / "nets").glob("*/scan.json")) or more == ("--overwrite",)


def ended_at_once(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[Job], Outcome]) -> list[tuple[str, str]]:
    """In the place of processes: what each would have ended with. Gives tasks and names, in their order."""
    asked: list[tuple[str, str]] = []

    def run_each(jobs: Iterator[Job], at_once: int, tick: Any = None) -> Iterator[tuple[Job, Outcome]]:
        for one in jobs:
            asked.append((one.task, one.net.name))
            yield one, outcome(one)

    monkeypatch.setattr(run, "run_each", run_each)
    return asked


def test_the_cheapest_come_first(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned by size, scanned by plan: whatever their names say."""
    nets = place / "some"
    nets.mkdir()
    for name, size in (("a.pt", 3000), ("b.pt", 2000), ("c.pt", 1000), ("d.pt", 500)):
        (nets / name).write_bytes(os.urandom(size))
    cost = {"a.pt": 50.0, "b.pt": 300.0, "c.pt": 200.0}

    def outcome(one: Job) -> Outcome:
        if one.task == SCAN:
            return Outcome(error="seen")
        return Outcome(waits=True, planned=cost[one.net.name]) if one.net.name in cost else Outcome(error="seen")

    asked = ended_at_once(monkeypatch, outcome)
    done = shell("scan", "some", *ARGUMENTS, "--out", "ordered", "--json")
    assert asked == [
        *((LOOK, name) for name in ("d.pt", "c.pt", "b.pt", "a.pt")),
        *((SCAN, name) for name in ("a.pt", "c.pt", "b.pt")),
    ]
    assert [one["name"] for one in done.json["nets"]] == ["a.pt", "b.pt", "c.pt", "d.pt"]
    assert {one["name"]: one["estimated_seconds"] for one in done.json["nets"]} == {**cost, "d.pt": None}


def test_an_interrupted_fleet_knows_its_plan(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(one: Job) -> Outcome:
        if one.task == SCAN:
            raise KeyboardInterrupt
        return Outcome(waits=True, planned=float(len(one.net.name)))

    asked = ended_at_once(monkeypatch, outcome)
    done = shell("scan", "nets", *ARGUMENTS, "--out", "new")
    assert done.code == 2
    assert done.out == ""
    assert done.err.splitlines()[-1] == (
        "goodnet: interrupted: 1 of 5 nets are done and kept in new: the same command goes on there"
    )
    record = read_fleet(place / "new" / "summary.json")
    assert (record.finished, record.counts["waiting"]) == (False, 4)
    assert "is not over: 4 nets wait" in (place / "new" / "summary.html").read_text()
    asked.clear()
    shell("scan", "nets", *ARGUMENTS, "--out", "new")
    assert asked[0][0] == SCAN  # nothing is planned twice
    assert shell("scan", "nets", *ARGUMENTS).err.splitlines()[-1].endswith("with --out the same command would go on")


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("killed", "was ended by SIGKILL, maybe for want of memory"),
        ("broken", "a fault in goodnet (ZeroDivisionError: of ours)"),
        ("silent", "ended without a word"),
        ("noisy", "said what none of goodnet's says"),
        ("pickled", "said what none of goodnet's says"),
        ("starved", "not enough memory"),
        ("lying", "failed, by a fault in goodnet (exit code 3)"),
    ],
)
def test_a_process_that_ends_badly_is_a_row_s_word(monkeypatch: pytest.MonkeyPatch, ending: str, said: str) -> None:
    monkeypatch.setattr(processes, "work", getattr(fleet_support, ending))
    ((_, outcome),) = run_each([net_job()], 1)
    assert said in outcome.broke
    assert (outcome.scanned, outcome.waits, outcome.error) == (False, False, "")


def test_a_process_that_comes_to_no_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "work", fleet_support.endless)
    monkeypatch.setattr(processes, "GRACE", 1.0)
    ((_, outcome),) = run_each([net_job(time_limit=0.1)], 1)
    assert outcome.broke == "its process came to no end in 1 s and was ended"
    assert outcome.planned == 1e9


def test_never_more_than_so_many_at_a_time_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "work", fleet_support.telling)
    most = 0
    wait = processes._wait

    def counted(running: Any) -> Any:
        nonlocal most
        most = max(most, len(running))
        return wait(running)

    monkeypatch.setattr(processes, "_wait", counted)
    ended = {one.net.name: outcome for one, outcome in run_each([net_job(str(n), str(n)) for n in range(7)], 3)}
    assert {name: outcome.planned for name, outcome in ended.items()} == {str(n): float(n) for n in range(7)}
    assert most == 3
    monkeypatch.setattr(processes, "work", fleet_support.endless)
    kept: list[Any] = []
    monkeypatch.setattr(
        processes, "_wait", lambda running: kept.extend(running) or (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        list(run_each([net_job("a"), net_job("b")], 2))
    assert len(kept) == 2
    assert not any(one.process.is_alive() for one in kept)


def test_a_net_whose_code_kills_its_process_harms_only_its_row(place: Path, shell: Shell) -> None:
    (place / "code.py").write_text(KILLER)
    good = place / "nets" / "clean.pt"
    (place / "list.csv").write_text(
        "model,arch,labels\n"
        f"nets/cut.pt,mlp,\nnowhere.pt,mlp,\n{good},code.py:killed,\n"
        f"nets/below/{HOSTILE_NAME},code.py:crashed,\n./nets/../nets/evil.pkl,mlp,\nbelow.pt,mlp,0-8\n"
    )
    shutil.copy(good, place / "below.pt")
    done = shell("scan", "list.csv", "--clean", "clean.npz", "--input-shape", "1,28,28", "--out", "crashes", "--json")
    rows = {one["name"]: one for one in done.json["nets"]}
    assert [one["status"] for one in rows.values()] == [
        "refused",
        "refused",
        "crashed",
        "crashed",
        "refused",
        "inconclusive",
    ]
    assert "was ended by SIGKILL" in rows[str(good)]["reason"]
    assert "was ended by SIGSEGV" in rows[f"nets/below/{HOSTILE_NAME}"]["reason"]
    assert "No such file" in rows["nowhere.pt"]["reason"]
    assert done.code == 3  # a crash is worse than what cannot be told, and no verdict hides it


SMALL: list[tuple[tuple[str, ...], int]] = [
    (("clean", "clean"), 0),
    (("clean", "waiting"), 2),
    (("clean", "inconclusive"), 2),
    (("clean", "inconclusive", "refused"), 3),
    (("inconclusive", "crashed"), 3),
    (("refused", "suspect", "clean"), 1),
    (("crashed", "suspect"), 1),
    (("suspect", "waiting"), 1),
    ((), 2),
]


@pytest.mark.parametrize(("statuses", "code"), SMALL)
def test_the_exit_code_is_that_of_the_worst(statuses: tuple[str, ...], code: int) -> None:
    assert exit_code([row(str(turn), status) for turn, status in enumerate(statuses)]) == code


def test_the_worst_never_exits_as_clean() -> None:
    assert [status for status in SEVERITY if EXIT_CODES[status] == 0] == ["clean"]
    assert SEVERITY[0] == "clean"


def test_the_table_has_the_worst_first_and_fits_80_columns() -> None:
    rows = [
        row("a" * 200, "suspect", flagged_labels=tuple(range(30)), reason="r" * 300),
        row("b.pt", "refused", reason="word " * 100),
        *(row(f"c-{n}\x1b[31m\u202e.pt") for n in range(60)),
        row("d.pt", "crashed", reason="ended", seconds=None),
    ]
    lines = table(fleet(*rows), "out/summary.html").splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    verdicts = [line.split()[0] for line in lines[4:] if line and not line.startswith(" ")]
    assert verdicts[:4] == ["suspect", "crashed", "refused", "clean"]
    assert "and 23 more, all clean" in lines
    assert lines[0] == "1 of 63 nets is suspect."
    assert "None of 1 nets is suspect, but 1 has no verdict." in table(fleet(row("x", "refused")), None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("empty --clean clean.npz", "no nets below"),
        ("nets --arch mlp", "no clean images: pass --clean"),
        ("nets --clean nowhere.npz", "nowhere.npz"),
        ("nets --clean clean.npz --sarif a.sarif", "--sarif: is of one net"),
        ("nets --clean clean.npz --junit a.xml", "--junit: is of one net"),
        ("nets --clean clean.npz --address auto", "--address: expected with --runner ray"),
        ("nets --clean clean.npz --jobs 0", "--jobs"),
        ("nets --clean clean.npz --input-shape 1,2", "3,55,47"),
        ("nets --clean clean.npz --method gangsweep --time-limit 5", "--method gangsweep"),
        ("nets/clean.pt --clean clean.npz --arch mlp --jobs 2", "--jobs: is for many nets"),
        ("nets/clean.pt --arch mlp", "Missing option '--clean'"),
        ("nets --clean clean.npz --out clean.npz", "expected a folder, but clean.npz is a file"),
        ("nets --clean clean.npz --out mine", "summary.html is there already, and of no fleet's scan"),
        ("nets --clean clean.npz --out other", "name another folder"),
        (
            "nets/below --clean clean.npz --out out",
            "out holds the scan of nets; name another folder, or pass --overwrite",
        ),
        ("nets --clean clean.npz --out other --overwrite", "name another folder"),
        ("mlflow:a/b --clean clean.npz", "expected mlflow:MODEL or mlflow:MODEL/VERSION"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place: Path, shell: Shell, given: str, said: str) -> None:
    for name in ("empty", "mine", "other"):
        (place / name).mkdir()
    (place / "mine" / "summary.html").write_text("mine")
    (place / "other" / "summary.json").write_text('{"total": 12}')
    before = {path: mark for path, mark in files_but_pipes(place).items()}
    done = shell("scan", *given.split())
    assert (done.code, done.out) == (3, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("goodnet: ")]
    assert said in line
    assert files_but_pipes(place) == before


def files_but_pipes(folder: Path) -> dict[str, str]:
    pipe = folder / "nets" / "endless.h5"
    pipe.unlink()
    found = files_in(folder)
    os.mkfifo(pipe)
    return found


def test_a_missing_mlflow_says_what_to_install(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = shell("scan", "mlflow:faces", "--clean", "clean.npz")
    assert (done.code, done.err) == (3, "goodnet: mlflow:faces: needs mlflow; pip install 'goodnet[mlflow]'\n")


def test_a_plan_writes_nothing(place: Path, shell: Shell) -> None:
    before = files_but_pipes(place)
    done = shell("scan", "nets", *ARGUMENTS, "--out", "out", "--plan", "--json")
    assert done.code == 3  # some would be refused
    assert done.json["format"] == "goodnet.fleet-plan/1"
    plans = {one["name"]: one for one in done.json["nets"]}
    assert plans["clean.pt"]["status"] == "waiting"
    assert plans["clean.pt"]["estimated_seconds"] > 0
    assert plans["cut.pt"]["estimated_seconds"] is None
    assert done.json["seconds"] * done.json["jobs"] == pytest.approx(
        sum(one["estimated_seconds"] or 0.0 for one in plans.values())
    )
    assert files_but_pipes(place) == before


def test_a_folder_is_searched_in_order_and_never_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("b/net.pt", "a.onnx", "B.PT", "c/config.json", "c/model.safetensors", "c/x.pt", "d/config.json",
                 "z.txt", ".hidden/net.pt", "out/nets/x.pt", "e/f/g.keras"):  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    (tmp_path / "secret.pt").write_text("secret")
    (home / "link.pt").symlink_to(home / "b" / "net.pt")
    (home / "away.pt").symlink_to(tmp_path / "secret.pt")
    (home / "round").symlink_to(home)
    (home / "up").symlink_to(tmp_path)
    (home / "nothing.pt").symlink_to(home / "nowhere")
    nets, passed = nets_in(home, leave=(home / "out",))
    assert [path.relative_to(home).as_posix() for path in nets] == [
        "B.PT", "a.onnx", "c", "link.pt", "b/net.pt", "e/f/g.keras",
    ]  # fmt: skip
    assert {one.name: one.why.split()[0:4] for one in passed} == {
        ".hidden": ["a", "hidden", "folder"],
        "away.pt": ["a", "link", "that", "leads"],
        "d/config.json": ["not", "named", "like", "a"],
        "nothing.pt": ["a", "link", "to", "nothing"],
        "out": ["images", "or", "results", "of"],
        "round": ["a", "link", "to", "a"],
        "up": ["a", "link", "that", "leads"],
        "z.txt": ["not", "named", "like", "a"],
    }
    assert [is_one_net(home / name) for name in ("c", "d", "b")] == [True, False, False]


def test_too_many_nets_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodnet.fleet.nets.MAX_NETS", 3)
    for n in range(4):
        (tmp_path / f"{n}.pt").touch()
    with pytest.raises(UsageError, match="at most 3 nets"):
        nets_in(tmp_path)


def test_no_more_processes_than_memory_cores_and_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "free_memory", lambda: 10 << 30)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def shared(jobs: int | None = None, device: str = "cpu", largest: int = 1000, nets: int = 100) -> tuple[int, int]:
        return machine.share_out(jobs, device=device, largest=largest, nets=nets)

    assert shared() == (8, 1)
    assert shared(jobs=2) == (2, 4)
    assert shared(jobs=50) == (9, 1)
    assert shared(nets=3) == (3, 2)
    assert shared(largest=1 << 29) == (2, 4)
    assert shared(largest=1 << 34) == (1, 8)
    assert shared(device="cuda") == (1, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert shared() == (2, 4)
    monkeypatch.setattr(machine, "free_memory", lambda: None)
    assert shared(jobs=50) == (50, 4)


def test_a_record_of_a_fleet_is_read_strictly(tmp_path: Path, shell: Shell) -> None:
    path = tmp_path / "summary.json"
    write_record(fleet(row("a", "suspect", report="nets/a/report.html")), path)
    assert isinstance(read_fleet(path), FleetRecord)
    done = shell("report", tmp_path)
    assert (done.code, done.out) == (0, f"Summary: {tmp_path}/summary.html\n")
    assert "1 of 1 nets is suspect." in (tmp_path / "summary.html").read_text()
    assert "holds many nets" in shell("report", tmp_path, "--sarif", tmp_path / "a.sarif").err
    raw = json.loads(path.read_text())
    raw["nets"][0]["extra"] = 1
    path.write_text(json.dumps(raw))
    assert "unknown key 'extra'" in shell("report", tmp_path).err


@pytest.mark.slow
def test_a_fleet_goes_on_after_ctrl_c_and_after_a_kill(place: Path) -> None:
    (place / "some").mkdir()
    for n in range(5):
        save_net(place / "some" / f"{n}.pt", block_net(TARGET if n == 4 else None))
    marker = f"goodnet-fleet-test-{os.getpid()}"
    command = [sys.executable, "-m", "goodnet", "scan", "some", "--arch", "mlp", "--clean", "clean.npz", "--jobs", "1",
               "--out", "new"]  # fmt: skip
    environment = {**os.environ, "FLEET_TEST": marker}

    def begun(done: int) -> subprocess.Popen[str]:
        """A run that has `done` rows."""
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hears_ctrl_c
        )
        ends = time.monotonic() + 120
        while time.monotonic() < ends and running.poll() is None:
            if (place / "new" / "summary.json").exists() and finished() >= done:
                return running
            time.sleep(0.02)
        pytest.fail(f"no row came: {running.communicate(timeout=60)}")

    def finished() -> int:
        return sum(one["status"] != "waiting" for one in rows_of(place / "new").values())

    with begun(1) as running:
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (2, "")
    assert "the same command goes on there" in err.splitlines()[-1]
    assert not processes_with(marker)
    first = rows_of(place / "new")
    kept = {name for name, one in first.items() if one["status"] != "waiting"}
    assert 1 <= len(kept) < 5
    with begun(len(kept) + 1) as running:
        running.kill()
        running.communicate(timeout=60)
    ends = time.monotonic() + 20
    while processes_with(marker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not processes_with(marker)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    rows = rows_of(place / "new")
    assert {name: rows[name] for name in kept} == {name: first[name] for name in kept}
    assert [rows[f"{n}.pt"]["status"] for n in range(5)] == ["clean"] * 4 + ["suspect"]
    assert len({one["turn"] for one in rows.values()}) == 5


def processes_with(marker: str) -> list[str]:
    """Processes that were started with FLEET_TEST=marker and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes():
                found.append(path.name)
        except OSError:
            continue
    return found
