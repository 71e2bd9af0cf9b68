"""Jobs of the local page: kept on disk, run one at a time, each in a process that stays in its folder."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

import goodnet
from cli_support import TARGET
from goodnet.cli import goodnet as command
from goodnet.cli import run
from goodnet.errors import UsageError
from goodnet.record import ScanRecord
from goodnet.serve import jobs, process, worker
from goodnet.serve.choices import choices_of
from goodnet.serve.jobs import Choices, Job, Jobs
from goodnet.serve.runner import Runner, Standing
from serve_support import complete, served

SOURCE = str(Path(goodnet.__file__).parents[1])
# what a job's process does, without torch: the net's file says it
PRETENDS = """
import json, sys, time, os
request = json.loads(sys.stdin.buffer.raw.readline())
plan = json.load(open(os.path.join(request["folder"], "model")))
for line in plan["says"]:
    print(json.dumps(line), flush=True)
if plan.get("waits"):
    sys.stdin.buffer.raw.read()
print(plan.get("prints", ""), file=sys.stderr)
sys.exit(plan.get("exits", 0)) if plan.get("exits", 0) >= 0 else os.kill(os.getpid(), 9)
"""


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", PRETENDS)


def add(all_jobs: Jobs, **plan: Any) -> Job:
    with all_jobs.receiving() as place:
        place.model.write_text(json.dumps({"says": [], **plan}))
        place.clean.write_bytes(b"")
        return all_jobs.add(place, model="net.pt", clean="clean.npz", choices=Choices())


def running(folder: Path, test: Callable[[Runner], Awaitable[None]]) -> Jobs:
    """Runs `test` with a runner, which is closed after it."""
    all_jobs = Jobs(folder)

    async def main() -> None:
        runner = Runner(all_jobs)
        runner.open()
        try:
            await asyncio.wait_for(test(runner), 60)
        finally:
            await runner.close()

    complete(main())
    return all_jobs


async def until(runner: Runner, name: str, state: str) -> Standing:
    """The first standing in this state."""
    async for standing in runner.events(name):
        if standing is not None and standing.state == state:
            return standing
    raise AssertionError(f"{runner.standing(name)}, not {state}")


def test_a_job_says_how_far_it_is_and_ends(tmp_path: Path, pretended: None) -> None:
    async def test(runner: Runner) -> None:
        job = add(runner.jobs, says=[{"seconds": 90}, {"stage": "search", "done": 1, "total": 4}], waits=True)
        await runner.submit(job.id, jobs.SCAN)
        async for told in runner.events(job.id):
            if told is not None and told.stage:
                break
        assert told is not None
        assert (told.state, told.stage, told.share, told.at_most) == ("running", "search", 0.25, 90)
        assert 0 <= told.left < 60
        quick = add(runner.jobs)
        await runner.submit(quick.id, jobs.SCAN)
        assert runner.standing(quick.id).place == 1
        with pytest.raises(UsageError, match="already"):
            await runner.submit(quick.id, jobs.SCAN)
        await runner.cancel(job.id)
        assert runner.jobs[job.id].state == "cancelled"
        assert (await until(runner, quick.id, "done")).version == runner.jobs[quick.id].version
        assert [told async for told in runner.events(quick.id)] == [runner.standing(quick.id)]  # and the stream ends

    running(tmp_path, test)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"says": [{"error": "net.pt: refused"}], "exits": 3}, "net.pt: refused"),
        ({"exits": 1, "prints": "Traceback\nValueError: odd"}, "fault in goodnet; please report it (ValueError: odd)"),
        ({"exits": -9}, "ended by SIGKILL, maybe for want of memory"),
        ({"says": ["no object", 3, None], "exits": 2}, "exit code 2"),
    ],
)
def test_a_process_that_fails_says_why_and_harms_no_other(
    tmp_path: Path, pretended: None, plan: dict[str, Any], said: str
) -> None:
    async def test(runner: Runner) -> None:
        broken, whole = add(runner.jobs, **plan), add(runner.jobs)
        await runner.submit(broken.id, jobs.SCAN)
        await runner.submit(whole.id, jobs.SCAN)
        await until(runner, whole.id, "done")
        assert runner.jobs[broken.id].state == "failed"
        assert said in runner.jobs[broken.id].message

    running(tmp_path, test)


def test_what_is_cancelled_in_line_never_runs(tmp_path: Path, pretended: None) -> None:
    async def test(runner: Runner) -> None:
        first, second, third = add(runner.jobs, waits=True), add(runner.jobs), add(runner.jobs)
        for job in (first, second, third):
            await runner.submit(job.id, jobs.SCAN)
        await until(runner, first.id, "running")
        assert [runner.standing(job.id).place for job in (second, third)] == [1, 2]
        await runner.cancel(second.id)
        assert runner.standing(third.id).place == 1
        runner.jobs.remove(second.id)
        await runner.cancel(first.id)
        await until(runner, third.id, "done")
        assert second.id not in runner.jobs

    running(tmp_path, test)


def test_the_next_server_finds_the_jobs_and_what_was_interrupted(tmp_path: Path, pretended: None) -> None:
    (tmp_path / ".upload-half").mkdir(parents=True)
    (tmp_path / ("0" * 32)).mkdir()  # no job of ours
    (tmp_path / "notes.txt").write_text("mine")
    seen: list[Job] = []

    async def test(runner: Runner) -> None:
        assert runner.jobs.all() == []
        done, stuck, waiting = add(runner.jobs), add(runner.jobs, waits=True), add(runner.jobs)
        for job in (done, stuck, waiting):
            await runner.submit(job.id, jobs.SCAN)
        await until(runner, stuck.id, "running")
        seen.extend((done, stuck, waiting))

    running(tmp_path, test)
    after = Jobs(tmp_path)
    assert [after[job.id].state for job in seen] == ["done", "interrupted", "interrupted"]
    assert {job.id for job in after.all()} == {job.id for job in seen}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / ".upload-half").exists()
    after.remove(seen[0].id)
    assert not (tmp_path / seen[0].id).exists()


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
def test_a_process_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    """The real process, which is told nothing: its pipe closes."""
    server = f"""
import asyncio, shutil, sys, tempfile
from pathlib import Path
from goodnet.serve import process
from goodnet.serve.jobs import Choices, Jobs
all_jobs = Jobs(Path({str(tmp_path)!r}))
with all_jobs.receiving() as place:
    place.model.write_bytes(b"no net"); place.clean.write_bytes(b"")
    job = all_jobs.add(place, model="a", clean="b", choices=Choices())
process._START = process._START.replace("main(request)", "import time; from goodnet.serve import worker; "
    "worker._scan = lambda job, place, say: (say(ready=1), time.sleep(100)); main(request)")
async def main():
    with tempfile.TemporaryFile() as log:
        child = await process.start(all_jobs.place(job.id), all_jobs.folder, "scan", log)
        async for line in process.lines(child):
            print(child.pid, flush=True)
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", server], stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        assert started.stdout is not None
        child = int(started.stdout.readline())
        assert alive(child)
        started.kill()
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the process outlived the server")


def test_a_process_stays_among_its_own_files(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net").write_text(f"the net of {name}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = f"""
import json, os, socket, subprocess, sys
from pathlib import Path
from goodnet.serve.fence import stay_inside
mine, other = Path({str(tmp_path / "mine")!r}), Path({str(tmp_path / "other")!r})
held = stay_inside(mine, kept_from=Path({str(tmp_path)!r}))
def tries(do):
    try:
        do()
    except PermissionError:
        return "refused"
    return "done"
shown = subprocess.run([sys.executable, "-c", f"print(open({{str(other / 'net')!r}}).read())"], capture_output=True)
print(json.dumps([held, tries((mine / "net").read_text), tries(lambda: (mine / "new").write_text("x")),
    tries((other / "net").read_text), tries(lambda: os.listdir(other)), tries(lambda: (other / "new").write_text("x")),
    tries(lambda: os.listdir(mine.parent)), "refused" if shown.returncode else "done",
    tries(lambda: socket.create_connection(("127.0.0.1", {listening.getsockname()[1]}), 5))]))
"""
        environment = {**os.environ, "PYTHONPATH": SOURCE}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    held, *outcome = json.loads(done.stdout)
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 1:
        assert not held
        pytest.skip("this system has no landlock")
    assert held
    assert outcome[:-1] == ["done", "done", *["refused"] * 5]
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) >= (6, 7):
        assert outcome[-1] == "refused"


class Said:
    """Stands for the lines of the worker."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, **line: Any) -> None:
        self.lines.append(line)

    def progress(self, stage: str, done: int, total: int) -> None:
        self(stage=stage, done=done, total=total)


def test_a_scan_names_files_as_the_user_does_and_the_architecture_that_fits(template: Path, tmp_path: Path) -> None:
    here = served(tmp_path / "jobs")
    job = here.job(model="stranger's net.pt", clean="my faces.npz")
    place, said = here.jobs.place(job.id), Said()
    shutil.copyfile(template / "bad.pt", place.model)
    shutil.copyfile(template / "clean.npz", place.clean)
    worker._scan(job, place, said)  # type: ignore[arg-type]
    record = place.scan()
    assert isinstance(record, ScanRecord)
    assert (record.verdict, record.flagged_labels) == ("suspect", (TARGET,))
    assert (record.model.name, record.data.name) == ("stranger's net.pt", "my faces.npz")
    assert record.environment.command == (
        "goodnet", "scan", "stranger's net.pt", "--clean", "my faces.npz", "--arch", "mlp",
    )  # fmt: skip
    assert {"arch": "mlp"} in said.lines
    assert any(line.get("stage") == "search" for line in said.lines)
    here.jobs.change(job.id, state=jobs.DONE)
    client = here.client()
    page = client.get(f"/jobs/{job.id}").text
    assert f"Label {TARGET} behaves like the target of a backdoor." in page
    assert "Repair</button>" in page
    report = client.get(f"/jobs/{job.id}/report")
    assert str(tmp_path) not in report.text  # no folder that will be gone
    assert 'goodnet repair &#39;stranger&#39;"&#39;"&#39;s net.pt&#39;'.replace('"', "&#34;") in report.text
    assert report.headers["content-security-policy"].startswith(
        "sandbox allow-scripts; frame-ancestors 'none'; default-src"
    )
    assert (
        "stranger_s_net-report.html" in client.get(f"/jobs/{job.id}/report?download=1").headers["content-disposition"]
    )
    assert client.get(f"/jobs/{job.id}/goodnet").status_code == 404
    assert client.post(f"/jobs/{job.id}/repair", data={"csrf": here.session.csrf}).status_code == 303
    assert (here.jobs[job.id].task, here.jobs[job.id].state) == ("repair", "queued")


def test_other_pictures_go_into_the_repair_and_are_looked_at_before_the_scan(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = served(tmp_path / "jobs")
    job = here.job(model="bad.pt", surrogate="others.npz")
    place, said = here.jobs.place(job.id), Said()
    shutil.copyfile(template / "bad.pt", place.model)
    shutil.copyfile(template / "clean.npz", place.clean)
    np.savez(tmp_path / "small.npz", data=np.zeros((3, 1, 5, 5), np.uint8))
    shutil.copyfile(tmp_path / "small.npz", place.surrogate)
    with pytest.raises(goodnet.errors.DataError) as refused:
        worker._scan(job, place, said)  # type: ignore[arg-type]
    assert worker._in_users_words(str(refused.value), job, place).startswith("others.npz: images are 1x5x5")
    assert place.scan() is None

    others = np.random.default_rng(0).integers(0, 256, (7, 1, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "others.npz", data=others, label=np.full(7, 5000))
    shutil.copyfile(tmp_path / "others.npz", place.surrogate)
    worker._scan(job, place, said)  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    monkeypatch.setattr("goodnet.auto.auto", lambda *_, **named: given.update(named))
    worker._repair(job, place, said)  # type: ignore[arg-type]
    assert given["surrogate"].name == "others.npz"
    assert (given["surrogate"].pixels == others).all()
    assert given["command"][-2:] == ("--surrogate", "others.npz")


@pytest.mark.parametrize(
    ("model", "choices", "said"),
    [
        (b"no net at all", {}, "its bytes are none"),
        (None, {"arch": "resnet-18"}, "resnet-18"),
        (None, {"input_shape": "3,28,28"}, "net.pt"),
    ],
)
def test_what_is_refused_is_said_without_our_paths(
    template: Path, tmp_path: Path, model: bytes | None, choices: dict[str, str], said: str
) -> None:
    here = served(tmp_path / "jobs")
    job = here.job(choices=choices_of(choices))
    place = here.jobs.place(job.id)
    place.model.write_bytes((template / "bad.pt").read_bytes() if model is None else model)
    shutil.copyfile(template / "clean.npz", place.clean)
    with pytest.raises(goodnet.errors.GoodnetError) as refused:
        worker._scan(job, place, Said())  # type: ignore[arg-type]
    message = worker._in_users_words(str(refused.value), job, place)
    assert said in message
    assert message.startswith("net.pt: ")
    assert str(tmp_path) not in message


@pytest.mark.parametrize(
    "fields",
    [
        {"arch": "net.py:build"},
        {"arch": "unknown"},
        {"input_range": "0..2"},
        {"data_range": "1"},
        {"mean": "a"},
        {"mean": "inf"},
        {"std": "0"},
        {"input_shape": "3,5"},
        {"input_shape": "2,5,5"},
        {"input_shape": "3,5.5,5"},
    ],
)
def test_choices_are_checked(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        choices_of(fields)


def test_choices_are_read() -> None:
    given = choices_of({"arch": "mlp", "mean": "0.5, 0.4,0.3", "std": "1", "input_shape": "3,55,47", "data_range": ""})
    assert given == Choices(arch="mlp", mean=(0.5, 0.4, 0.3), std=(1.0,), input_shape=(3, 55, 47))


def test_the_command_says_what_is_missing_or_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", "--port", str(taken.getsockname()[1])]) == 3
    assert "pass another, or 0 for any that is free" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(["serve", "--port", "0", "--folder", str(tmp_path / "file")]) == 3
    assert "expected a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve"]) == 3
    assert "pip install 'goodnet[serve]'" in capsys.readouterr().err
    shown = click.testing.CliRunner().invoke(command, ["serve", "--help"])
    assert "--host" not in shown.output
