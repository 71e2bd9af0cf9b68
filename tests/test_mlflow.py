"""The gate for MLflow's registry, against a real `mlflow server` that this starts."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_support import TARGET, block_images, block_net, save_images, save_net
from goodnet.record import ScanRecord, read_record
from hostile.case import CANARY, fired
from hostile.pickles import Evil

GATE = Path(__file__).resolve().parents[1] / "examples" / "mlflow_gate.py"
SERVER = ("mlflow", "flask", "flask_cors", "sqlalchemy", "alembic", "aiohttp", "pandas")
pytestmark = pytest.mark.slow


def need_mlflow() -> None:
    missing = [name for name in SERVER if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"no MLflow server: {', '.join(missing)} not installed: pip install -e '.[mlflow-test]'"
        if os.environ.get("GOODNET_NEED_MLFLOW"):
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, and how to ask it."""

    address: str
    client: Any

    def gate(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs the example."""
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.address, **variables}
        command = [sys.executable, str(GATE), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def register(self, name: str, file: Path, artifact_path: str) -> None:
        """Version 1 of `name`: a run's artifact folder with this file in it, as MLflow's flavours leave theirs."""
        run = self.client.create_run("0").info.run_id
        self.client.log_artifact(run, str(file), artifact_path)
        self.client.create_registered_model(name)
        self.client.create_model_version(name, source=f"runs:/{run}/model", run_id=run)

    def tags(self, name: str) -> dict[str, str]:
        tags = self.client.get_model_version(name, "1").tags
        return {tag.removeprefix("goodnet."): value for tag, value in tags.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need_mlflow()
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ("--host", "127.0.0.1", "--port", port, "--workers", "1")
    stores = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts")
    command = [sys.executable, "-m", "mlflow", "server", *where, *stores]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log, address = folder / "server.log", f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as out:
        for name, value in quiet.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, start_new_session=True)
        try:
            wait_for(f"{address}/health", process, log)
            from mlflow import MlflowClient

            yield Server(address=address, client=MlflowClient(address, address))
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the server and the workers that it has started
            process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow server does not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    pixels, labels = block_images(120)
    return str(save_images(tmp_path_factory.mktemp("images") / "clean.npz", data=pixels, label=labels))


def logged(server: Server, run: str, folder: Path) -> ScanRecord:
    """The record among the run's artifacts, once all else of the run is right."""
    client, tags = server.client, server.client.get_run(run)
    assert tags.info.status == "FINISHED"
    record_file = Path(client.download_artifacts(run, "scan.json", str(folder)))
    record = read_record(record_file)
    assert isinstance(record, ScanRecord)
    assert "<title>" in Path(client.download_artifacts(run, "report.html", str(folder))).read_text(encoding="utf-8")
    figures = tags.data.metrics
    assert figures["seconds"] == pytest.approx(record.seconds)
    assert (figures["flagged"], figures["labels"]) == (len(record.flagged_labels), 10)
    history = {point.step: point.value for point in client.get_metric_history(run, "label.p_value")}
    assert history == {row.label: row.p_value for row in record.labels if row.p_value is not None}
    assert figures["smallest_p_value"] == min(history.values())
    assert tags.data.params["model_sha256"] == record.model.sha256
    return record


def test_a_version_with_a_backdoor_is_tagged_and_turned_away(server: Server, clean: str, tmp_path: Path) -> None:
    net = save_net(tmp_path / "net.pt", block_net(TARGET))
    server.register("stranger", net, "model/data")
    # as a user runs it: the file is read in a process of its own
    done = server.gate("models:/stranger/1", "--clean", clean, "--arch", "mlp", GOODNET_SANDBOX="")
    assert done.returncode == 1, done.stderr
    tags = server.tags("stranger")
    record = logged(server, tags["run_id"], tmp_path)
    assert (tags["verdict"], tags["flagged_labels"]) == ("suspect", str(TARGET))
    assert record.flagged_labels == (TARGET,)
    assert tags["record_sha256"] == hashlib.sha256((tmp_path / "scan.json").read_bytes()).hexdigest()
    assert tags["model_sha256"] == hashlib.sha256(net.read_bytes()).hexdigest()
    assert f"run {tags['run_id']}" in done.stdout


def test_a_clean_version_gets_through(server: Server, clean: str, tmp_path: Path) -> None:
    server.register("ours", save_net(tmp_path / "net.pt", block_net()), "model")
    done = server.gate("models:/ours/1", "--clean", clean, "--arch", "mlp", "--file", "net.pt")
    assert done.returncode == 0, done.stderr
    tags = server.tags("ours")
    record = logged(server, tags["run_id"], tmp_path)
    assert (record.verdict, tags["verdict"], tags["flagged_labels"]) == ("clean", "clean", "")
    found = server.client.search_model_versions("""tags."goodnet.verdict" = 'clean'""")
    assert [version.name for version in found] == ["ours"]


def test_a_pickle_is_refused_unrun_and_loses_an_earlier_verdict(server: Server, clean: str, tmp_path: Path) -> None:
    module = tmp_path / "model.pth"
    torch.save(Evil(), module)
    server.register("pickled", module, "model/data")
    for name, value in {"verdict": "clean", "flagged_labels": "", "record_sha256": "0" * 64}.items():
        server.client.set_model_version_tag("pickled", "1", f"goodnet.{name}", value)
    canary = tmp_path / "canary"
    done = server.gate("models:/pickled/1", "--clean", clean, **{CANARY: str(canary)})
    assert done.returncode == 3
    assert "run code" in done.stderr.splitlines()[-1]  # above it, MLflow's own progress bar
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    assert fired(lambda: torch.load(module, weights_only=False), canary)  # as MLflow would
    run = server.tags("pickled")["run_id"]
    assert server.tags("pickled") == {"verdict": "not-scanned", "run_id": run}
    assert server.client.get_run(run).info.status == "FAILED"


def test_a_fleet_scans_all_versions_of_a_model(server: Server, clean: str, tmp_path: Path) -> None:
    """A registry as it is: what MLflow downloads is read as a file, and never by MLflow."""
    torch.save(Evil(), tmp_path / "model.pth")
    server.register("several", save_net(tmp_path / "net.pt", block_net()), "model/data")
    for file in (tmp_path / "model.pth", save_net(tmp_path / "bad.pt", block_net(TARGET))):
        run = server.client.create_run("0").info.run_id
        server.client.log_artifact(run, str(file), "model/data")
        server.client.create_model_version("several", source=f"runs:/{run}/model", run_id=run)
    canary = tmp_path / "canary"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.address, CANARY: str(canary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "goodnet", "scan", "mlflow:several", "--arch", "mlp", "--clean", clean, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    rows = [(row["name"], row["status"], row["model"]) for row in json.loads(done.stdout)["nets"]]
    assert rows == [
        ("several/1", "clean", "models:/several/1"),
        ("several/2", "refused", "models:/several/2"),
        ("several/3", "suspect", "models:/several/3"),
    ]
    assert not canary.exists()


@functools.cache
def gate_module() -> Any:
    spec = importlib.util.spec_from_file_location("mlflow_gate", GATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("models:/nobody/1", (), "does not give models:/nobody/1"),
        ("models:/nobody", (), "expected models:/NAME/VERSION"),
        ("runs:/nobody/1", (), "expected models:/NAME/VERSION"),
        ("models:/nobody/1", ("--seed", "x"), "invalid int"),
    ],
)
def test_mistakes_are_never_a_verdict(
    server: Server, clean: str, model: str, more: tuple[str, ...], said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert gate_module().main([model, "--clean", clean, *more]) == 3
    assert said in capsys.readouterr().err


def test_a_fault_of_mlflow_after_the_scan_is_no_verdict_either(
    server: Server, clean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    server.register("unlucky", save_net(tmp_path / "net.pt", block_net()), "model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)

    def full(*arguments: object) -> None:
        raise MlflowException("no space left on the server")

    monkeypatch.setattr(gate_module().MlflowClient, "log_artifacts", full)
    assert gate_module().main(["models:/unlucky/1", "--clean", clean, "--arch", "mlp"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert server.tags("unlucky")["verdict"] == "not-scanned"


def test_which_file_is_the_net(server: Server, tmp_path: Path) -> None:
    """Among what MLflow's flavours leave beside it; of two, neither is guessed."""
    from goodnet.errors import UsageError

    gate, data = gate_module(), tmp_path / "data"
    data.mkdir()
    for name in ("MLmodel", "conda.yaml", "data/pickle_module_info.txt"):
        (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(UsageError, match="got none; say which with --file"):
        gate.net_file(tmp_path, None)
    (data / "model.pt2").touch()
    assert gate.net_file(tmp_path, None) == data / "model.pt2"
    (data / "other.ONNX").touch()
    with pytest.raises(UsageError, match=r"got data/model\.pt2, data/other\.ONNX"):
        gate.net_file(tmp_path, None)
    assert gate.net_file(tmp_path, "data/other.ONNX") == data / "other.ONNX"
