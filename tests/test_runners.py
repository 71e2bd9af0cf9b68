"""Whoever computes the blocks, the results are the same; on Ray nothing is lost with a node, and nothing is left."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_support import CLASSES, USER_CODE, Shell, block_images, block_net, fill, hears_ctrl_c
from fleet_support import KILLER
from goodnet.data.images import Images
from goodnet.detect.gangsweep import GangSweep
from goodnet.detect.max_margin import MaxMargin
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.detection_bench import run_detection
from goodnet.detection_specs import FACES, JUDGING, PoolNet
from goodnet.errors import DataError, UsageError
from goodnet.models.arch import ARCHITECTURES, build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.load import load_classifier
from goodnet.models.twin import twin
from goodnet.runners import OnRay, Serial, in_threads
from goodnet.scan import scan
from goodnet.shipping import Pieces, by_value, on_worker, versions
from goodnet.staged import Staged
from goodnet.strict_json import to_json
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.plain import PlainSchedule
from ray_support import LOOPBACK, Nodes, cluster_of, differing, listens, need_ray, processes, until
from runner_blocks import ByPost, fails, powers, waits

WAITS = """
import os, pathlib, time
from collections import OrderedDict

def waits():
    folder = pathlib.Path(__file__).parent
    (folder / f"begun-{os.getpid()}").touch()
    while not (folder / "end").exists():
        time.sleep(0.02)
    layers = {"flat": nn.Flatten(), "fc1": nn.Linear(784, 11), "relu": nn.ReLU(), "fc2": nn.Linear(11, 10)}
    return nn.Sequential(OrderedDict(layers))
"""
OTHERWISE = {"seconds", "estimated_seconds", "command", "turn", "jobs"}
"""What two runs of the same fleet may differ in: times, what hangs on them, what was typed, and how many at a time."""
SMALL_BLOCKS = Staged(margins=MaxMargin(block=8), masks=replace(Staged().masks, block=16))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net_and_images(folder: Path) -> tuple[Classifier, Images]:
    torch.save(block_net(3), folder / "bad.pt")
    pixels, labels = block_images()
    return load_classifier(folder / "bad.pt", arch="mlp"), Images(pixels=pixels, labels=labels)


# ---- without Ray


def test_serial_gives_each_block_one_thread_and_tells(two_threads: None) -> None:
    base = torch.linspace(0, 1, 50)
    blocks = [range(3), range(3, 5), range(5, 9)]
    told: list[int] = []
    found = dict(Serial().run(powers, base, blocks, tell=told.append))
    assert sum(told) == 9
    for i, block in enumerate(blocks):
        assert found[i] == ([float((base**exponent).sum()) for exponent in block], 1)
    alone = list(Serial().run(powers, base, blocks, alone=True))
    assert [i for i, _ in alone] == [0, 1, 2]
    assert {threads for _, (_, threads) in alone} == {2} == {torch.get_num_threads()}
    assert list(Serial().run(powers, base, [])) == []
    assert in_threads(lambda x: x * x, range(9)) == [x * x for x in range(9)]


def test_what_a_block_or_the_listener_raises_ends_the_others(tmp_path: Path, two_threads: None) -> None:
    with pytest.raises(DataError, match="no such images"):
        list(Serial().run(fails, "no such images", range(4)))

    class Enough(Exception):
        pass

    def told(moved: int) -> None:
        if (tmp_path / "begun-0").exists() and (tmp_path / "begun-1").exists():
            raise Enough

    with pytest.raises(Enough):  # both would wait for ever
        list(Serial().run(waits, tmp_path, range(9), tell=told))
    assert len(list(tmp_path.glob("begun-*"))) < 9
    running = Serial().run(fails, "", [0, 2, 3])
    assert next(running)[1] in (0, 2, 3)
    running.close()
    assert torch.get_num_threads() == 2


def test_a_scan_by_post_is_the_serial_one_and_sends_each_net_once(tmp_path: Path, two_threads: None) -> None:
    net, images = net_and_images(tmp_path)
    short = Schedule(steps=30, batch=16)
    masks = NeuralCleanse(search=short, screen=Schedule(steps=8, batch=4), candidates=1, controls=8, block=32)
    method = replace(SMALL_BLOCKS, masks=masks, plain=PlainSchedule(images=2, levels=2, rounds=2), restarts=1)
    post, told = ByPost(), []
    here = scan(net, images, method=method, progress=lambda stage, done, total: told.append((stage, total)))
    away = scan(net, images, method=method, runner=post)
    assert here.flagged_labels == (3,)
    assert differing(json.loads(to_json(here)), json.loads(to_json(away))) == {"seconds"}
    assert post.nets() == 2  # the net and its faster twin, over all stages and starts
    assert ("margins", CLASSES * 60) in told


@pytest.mark.parametrize("name", ["deepid", "small-vgg", "resnet-18", "vit"])
def test_a_net_arrives_as_it_left(name: str) -> None:
    shape = {"channels": 3, "height": 32, "width": 32} if name == "vit" else {}
    more = {"patch": 8, "features": 24, "heads": 2, "depth": 2, "mlp": 32} if name == "vit" else {}
    recipe = Recipe(arch=name, options={"classes": 7, **shape, **more})
    channels, height, width = ARCHITECTURES[name].input_shape(recipe.options)
    spec = InputSpec(channels=channels, height=min(height, 64), width=min(width, 64), mean=(0.5,), std=(0.2,))
    net = Classifier(net=build(recipe), input=spec, classes=7, recipe=recipe)
    x = torch.rand(4, *spec.shape)
    for sent in (net, twin(net, x, precision="bfloat16").classifier):
        pieces = Pieces()
        assert pieces.apart(sent) == pieces.apart(sent)  # equal bytes
        (raw,) = pieces.found.values()
        arrived = pickle.loads(raw)
        assert torch.equal(sent.logits(x), arrived.logits(x))
        for before, after in zip(sent.net.state_dict().values(), arrived.net.state_dict().values()):
            assert before.stride() == after.stride()
            assert before.dtype == after.dtype
            assert torch.equal(before, after)


def test_tensors_of_all_kinds_arrive() -> None:
    some = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    sent = [some, some.transpose(0, 2), some[:, ::2], some[0, 0, :1].expand(5), some[:0], torch.tensor(3), some > 4]
    pieces = Pieces()
    for before, after in zip(sent, pickle.loads(pieces.found[pieces.add(sent)])):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_code_of_the_users_own_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(USER_CODE)
    made = {f"body.{key}": value for key, value in torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 11), torch.nn.ReLU(), torch.nn.Linear(11, 10)
    ).state_dict().items()}  # fmt: skip
    torch.save(made, tmp_path / "own.pt")
    own = load_classifier(tmp_path / "own.pt", arch=f"{tmp_path / 'own.py'}:plain")
    with pytest.raises(UsageError, match=r"expected a net of goodnet's own layers, got Logs .* --runner serial"):
        Pieces().add({"net": own})


def test_methods_that_are_not_label_by_label_stay_here(tmp_path: Path) -> None:
    net, images = net_and_images(tmp_path)
    with pytest.raises(UsageError, match="works label by label, got gangsweep"):
        scan(net, images, method=GangSweep(), runner=ByPost())


def test_a_worker_with_other_versions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    older = {**versions(), "goodnet": "0.0.1"}
    said, *_ = on_worker((older, 1, "", []), b"")
    assert said == f"has goodnet {metadata.version('goodnet')}, not 0.0.1"
    monkeypatch.setitem(sys.modules, "goodnet.shipping", None)
    said, *_ = by_value()((versions(), 1, "", []), b"")
    assert said.startswith("cannot import goodnet (")


@pytest.mark.parametrize(
    ("installed", "options", "said"),
    [
        (None, ["--runner", "ray"], "ray is not installed; pip install 'goodnet[ray]'"),
        ("2.40.0", ["--runner", "ray"], "expected ray 2.52 or later, got 2.40.0"),
        ("2.60.0", ["--address", "auto"], "--address: expected with --runner ray"),
        ("2.60.0", ["--gpus-per-task", "0.5"], "--gpus-per-task: expected with --runner ray"),
        ("2.60.0", ["--runner", "ray", "--gpus-per-task", "0"], "--gpus-per-task"),
        ("2.60.0", ["--runner", "ray", "--address", "head"], "expected auto, host:port or ray://host:port, got 'head'"),
        ("2.60.0", ["--runner", "ray", "--address", "h:70000"], "expected auto, host:port or ray://host:port"),
        ("2.60.0", ["--runner", "ray", "--method", "gangsweep"], "got gangsweep"),
        ("2.60.0", ["--runner", "dask"], "'dask' is not one of 'serial', 'ray'"),
    ],
)
def test_wrong_options_end_with_a_line(
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    installed: str | None,
    options: list[str],
    said: str,
) -> None:
    fill(tmp_path)  # not `place`, whose scans are shorter than those of the processes that this module starts
    monkeypatch.chdir(tmp_path)
    real = metadata.version

    def version(name: str) -> str:
        if name == "ray" and installed is None:
            raise metadata.PackageNotFoundError(name)
        return str(installed) if name == "ray" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    outcome = shell("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", *options)
    assert outcome.code == 3
    assert outcome.out == ""
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_cells_of_a_benchmark_need_shared_folders(tmp_path: Path) -> None:
    spec = PoolNet(name="toy", part=JUDGING, data=FACES, arch="deepid", options={"classes": 4}, seed=3, epochs=1)

    class Elsewhere(ByPost):
        def run(self, function: Any, shared: Any, blocks: Any, **options: Any) -> Any:
            return super().run(function, (tmp_path / "other" / "mark", *shared[1:]), blocks)

    with pytest.raises(UsageError, match="folders that all machines share"):
        run_detection(tmp_path / "cache", tmp_path / "out", nets=[spec], runner=Elsewhere())


# ---- on Ray


@pytest.fixture(scope="module")
def three() -> Iterator[Nodes]:
    """With a core each, and a head without."""
    with cluster_of(0, 1, 1, 1) as nodes:
        yield nodes


@pytest.mark.slow
def test_ray_gives_what_serial_gives_and_ctrl_c_leaves_no_task(
    three: Nodes, tmp_path: Path, two_threads: None, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which what is started in the background ignores
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    base = torch.linspace(0, 1, 40_000)
    blocks = [range(k, k + 3) for k in range(12)]
    told: list[int] = []
    with OnRay(three.address) as ray:
        assert dict(ray.run(powers, base, blocks, tell=told.append)) == dict(Serial().run(powers, base, blocks))
        assert sum(told) == 36
        with pytest.raises(DataError, match="no such images"):
            list(ray.run(fails, "no such images", range(4)))
        with pytest.raises(UsageError, match="expected a node with 2 cores, got none"):
            list(ray.run(powers, base, blocks, alone=True))

        def ctrl_c(moved: int) -> None:
            if len(list(tmp_path.glob("begun-*"))) == 3:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            list(ray.run(waits, tmp_path, range(9), tell=ctrl_c))
        until(lambda: not any(three.busy(node) for node in range(4)), 20.0)
        assert len(list(tmp_path.glob("begun-*"))) == 3
        ray.gpus_per_task = 0.5
        with pytest.raises(UsageError, match="gpus-per-task"):
            list(ray.run(powers, base, blocks))
    assert sum(node["Alive"] for node in three.cluster.global_state.node_table()) == 4


@pytest.mark.slow
def test_a_node_that_is_lost_in_mid_scan_loses_nothing(
    three: Nodes, tmp_path: Path, one_thread: None, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--labels", "0-5", "--json")
    process = started(tmp_path, "--address", three.address, "--out", "away", *few)
    until(lambda: frozen(three, 1))  # in the middle of a block, and it stays there
    three.lose(1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err == "goodnet: 1 of 4 nodes were lost; what they had not finished was done again\n"
    assert not list(tmp_path.glob("away/.checkpoint-*"))
    monkeypatch.chdir(tmp_path)
    here = shell("scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--block", "16", "--out", "here", *few)
    assert here.json["flagged_labels"] == [3]
    assert differing(json.loads(out), here.json) == {"seconds", "command"}


def frozen(three: Nodes, node: int) -> int:
    """A process of the node that was stopped while it was at a block of ours; 0 where there is none just now."""
    for pid in three.busy(node):
        os.kill(pid, signal.SIGSTOP)
        if pid in three.busy(node):
            return pid
        os.kill(pid, signal.SIGCONT)
    return 0


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    """`goodnet scan --runner ray` of the net with a backdoor, in a folder with a module that nobody should import."""
    fill(folder)
    (folder / "torch.py").write_text(f"open({str(folder / 'fired')!r}, 'w')")
    command = ["scan", "bad.pt", "--arch", "mlp", "--clean", "clean.npz", "--block", "16", "--runner", "ray", *options]
    code = "import sys; sys.path.remove(''); from goodnet.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    return subprocess.Popen([sys.executable, "-c", code, *command], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c)  # fmt: skip


@pytest.mark.slow
def test_a_cluster_of_our_own_ends_with_ctrl_c_and_its_work_is_kept(tmp_path: Path) -> None:
    need_ray()
    process = started(tmp_path, "--out", "scan")

    def ours() -> list[tuple[int, str]]:
        """Processes that the command has started, and theirs."""
        rows, found = processes(), {process.pid}
        for _ in "1234":
            found |= {pid for pid, parent, _ in rows if parent in found}
        return [(pid, title) for pid, _, title in rows if pid in found - {process.pid}]

    family = until(lambda: any("ray::goodnet" in title for _, title in ours()) and ours())
    assert {address for pid, _ in family for address in listens(pid)} <= LOOPBACK
    until(lambda: list(tmp_path.glob("scan/.checkpoint-*/*.npz")))
    family += ours()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert err.splitlines()[-2:] == [
        "goodnet: what is done is kept in scan: the same command goes on there",
        "goodnet: interrupted: no record was written",
    ]
    assert any("raylet" in title for _, title in family)
    until(lambda: not {pid for pid, _ in family} & {pid for pid, _, title in processes() if "defunct" not in title})
    assert not (tmp_path / "fired").exists()
    assert list(tmp_path.glob("scan/.checkpoint-*/*.npz"))


@pytest.mark.slow
def test_a_fleet_loses_nothing_with_a_node_and_leaves_nothing_after_ctrl_c(
    three: Nodes, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(KILLER + WAITS)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "clean.pt").read_bytes()[:900])
    shutil.copy("clean.pt", "waits.pt")
    (tmp_path / "list.csv").write_text(
        "model,arch\nwaits.pt,code.py:waits\ncut.pt,mlp\nclean.pt,code.py:killed\nbad.pt,mlp\nnowhere.pt,mlp\n"
    )
    options = ("list.csv", "--clean", "clean.npz", "--input-shape", "1,28,28", "--block", "160", "--json")
    seen: set[Path] = set()

    def begun() -> int:
        """The process of the net that waits, once it is another one."""
        new = set(tmp_path.glob("begun-*")) - seen
        seen.update(new)
        return int(new.pop().name.removeprefix("begun-")) if new else 0

    def ended(pid: int) -> bool:
        return not Path(f"/proc/{pid}").exists()

    def unplanned() -> int:
        rows = json.loads((tmp_path / "away" / "summary.json").read_text())["nets"]
        return sum(row["status"] == "waiting" and row["estimated_seconds"] is None for row in rows)

    on_ray = ("--runner", "ray", "--address", three.address, "--out", "away")
    command = [sys.executable, "-m", "goodnet", "scan", *options, *on_ray]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )
    try:
        first = until(begun)
        three.lose(three.node_of(first))
        second = until(begun)
        until(lambda: ended(first), 20.0)  # by itself: nobody on its machine is left to end it
        until(lambda: unplanned() == 1)  # for Ray itself crashes, rarely, where a task is cancelled while it is sent
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, out) == (2, ""), err
    assert "are done and kept in away: the same command goes on there" in err
    until(lambda: ended(second), 20.0)
    until(lambda: not any(three.busy(node) for node in range(4)), 20.0)
    (tmp_path / "end").touch()
    there = shell("scan", *options, *on_ray).json
    here = shell("scan", *options, "--out", "here").json
    assert [row["status"] for row in here["nets"]] == ["clean", "refused", "crashed", "suspect", "refused"]
    assert differing(here, there) <= OTHERWISE
    for row in here["nets"]:
        if row["record"]:
            one, other = (json.loads((tmp_path / folder / row["record"]).read_text()) for folder in ("here", "away"))
            assert differing(one, other) == {"seconds"}
    assert here["exit_code"] == 1
    assert sorted(path.name for path in Path("away").iterdir()) == ["nets", "summary.html", "summary.json"]
