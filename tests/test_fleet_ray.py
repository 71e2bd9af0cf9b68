"""A fleet on Ray: the same summary, whatever its nets and machines do, and nothing that runs on."""

from __future__ import annotations

import pickle
import platform
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import fleet_support
from fleet_support import net_job
from goodnet.clusters import Needs
from goodnet.errors import UsageError
from goodnet.fleet import away, processes
from goodnet.fleet.away import Away, share_out_on
from goodnet.fleet.processes import Outcome
from goodnet.fleet.worker import Job
from goodnet.outputs import InUse, claimed
from goodnet.runners import OnRay


class Cluster:
    """In the place of `OnRay`: tasks one after another, here, with everything pickled to and fro."""

    def __init__(self, *cores: int, gpus: int = 0, memory: int = 8 << 30):
        self.given, self.gpus, self.memory = list(cores), gpus, memory
        self.lose: set[str] = set()
        self.hidden: Path | None = None

    def cores(self) -> list[int]:
        return self.given

    def room(self, needs: Needs) -> int:
        if needs.gpu:
            return self.gpus
        return sum(min(some // needs.threads, self.memory // max(1, needs.memory)) for some in self.given)

    def tasks(
        self, function: Any, shared: Any, blocks: Sequence[Job], needs: Needs, *, tell: Any, lost: Any
    ) -> Generator[tuple[int, Any], None, None]:
        for number, job in enumerate(blocks):
            tell(0)
            if job.net.name in self.lose:
                yield number, lost("lost with its worker 6 times")
                continue
            sent = pickle.loads(pickle.dumps((function, shared, job)))
            with self._unseen():
                answer = pickle.dumps(sent[0](*sent[1:], tell))
            yield number, pickle.loads(answer)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        if self.hidden is None:
            yield
            return
        elsewhere = self.hidden.with_name("elsewhere")
        self.hidden.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self.hidden)


def each(cluster: Cluster, jobs: Sequence[Job], out: Path | None) -> list[Outcome]:
    found = Away(runner=cast(OnRay, cluster), needs=Needs()).each(jobs, lambda: None, out)
    return [outcome for _, outcome in found]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Of files that are there, whatever is in them."""
    for name in ("net.pt", "clean.npz"):
        (tmp_path / name).touch()
    made = net_job("net")
    net = replace(made.net, path=tmp_path / "net.pt", clean=tmp_path / "clean.npz")
    return replace(made, net=net, out=tmp_path / "out" / "nets" / "net")


def test_what_becomes_of_the_process_is_the_task_s_result(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "work", fleet_support.killed)
    main = sys.modules["__main__"]
    lost = replace(job, net=replace(job.net, name="lost"))
    cluster = Cluster(1)
    cluster.lose = {"lost"}
    killed, gone = each(cluster, [job, lost], tmp_path / "out")
    assert "was ended by SIGKILL" in killed.broke
    assert gone == Outcome(broke="lost with its worker 6 times")
    assert sys.modules["__main__"] is main
    assert not (tmp_path / "out").exists()


def test_the_process_is_told_of_its_place(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the command was given in, and the GPU of the task, which is not that of the process' parent."""
    given: list[Job] = []

    def run_each(jobs: list[Job], at_once: int) -> Generator[tuple[Job, Outcome], None, None]:
        given.extend(jobs)
        yield jobs[0], Outcome(error="seen")

    monkeypatch.setattr(away, "run_each", run_each)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.chdir(tmp_path)
    on_gpu = replace(job, settings=replace(job.settings, device="cuda"))
    assert each(Cluster(1), [job, on_gpu], None) == [Outcome(error="seen")] * 2
    places = [one.place for one in given if one.place is not None]
    assert [place.gpus for place in places] == [None, "3"]
    assert {place.folder for place in places} == {tmp_path}


@pytest.mark.parametrize("name", ["net.pt", "clean.npz", "out", "code.py"])
def test_what_a_machine_does_not_see_is_a_line(job: Job, tmp_path: Path, name: str) -> None:
    (tmp_path / "code.py").touch()
    own = replace(job, net=replace(job.net, load=replace(job.net.load, arch=f"{tmp_path / 'code.py'}:net")))
    cluster = Cluster(1)
    cluster.hidden = tmp_path / name
    with pytest.raises(
        UsageError, match=r"--out, the nets and their images in folders that all machines share"
    ) as told:
        each(cluster, [own], tmp_path / "out")
    assert str(told.value).endswith(f"{platform.node()} does not see {tmp_path / name}")


def test_a_file_that_nobody_sees_any_more_is_its_row_s_word(job: Job, tmp_path: Path) -> None:
    (tmp_path / "net.pt").unlink()
    (outcome,) = each(Cluster(1), [job], tmp_path / "out")
    assert outcome == Outcome(error=f"{tmp_path / 'net.pt'}: No such file or directory")


def test_a_folder_that_a_lost_process_still_holds_is_waited_for(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "net").mkdir()
    with (tmp_path / "net" / ".goodnet.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InUse, match="in use by another run"), claimed(tmp_path / "net", patience=0.3):
            pass
        timer = threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN))
        timer.start()
        with claimed(tmp_path / "net", patience=60.0):
            assert not timer.is_alive()


@pytest.mark.parametrize(
    ("cores", "jobs", "nets", "expected"),
    [
        ((0, 4, 4), None, 100, (8, 1)),
        ((4, 4), 2, 100, (2, 4)),
        ((4, 4), 3, 100, (3, 2)),
        ((5, 5), None, 3, (3, 2)),
        ((4, 4), None, 1, (1, 4)),
        ((1, 1), 8, 100, (2, 1)),
    ],
)
def test_nets_at_a_time_and_threads_of_each(
    monkeypatch: pytest.MonkeyPatch, cores: tuple[int, ...], jobs: int | None, nets: int, expected: tuple[int, int]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given: dict[str, Any] = {"device": "cpu", "largest": 1 << 20, "nets": nets, "memory": None}
    count, made = share_out_on(cast(OnRay, Cluster(*cores)), jobs, **given)
    assert (count, made.needs.threads) == expected
    assert made.needs.at_once == (jobs or 1000)
    little = cast(OnRay, Cluster(*cores, memory=1 << 30))
    assert share_out_on(little, None, **{**given, "memory": 1 << 30})[0] == min(nets, sum(one > 0 for one in cores))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share_out_on(cast(OnRay, Cluster(*cores)), jobs, **given)[1].needs.threads == 1


def test_on_gpus_as_many_as_have_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cluster = cast(OnRay, Cluster(8, 8, gpus=4))
    count, made = share_out_on(cluster, None, device="cuda", largest=0, nets=100, memory=None)
    assert (count, made.needs.threads, made.needs.gpu) == (4, 4, True)
