"""The MLflow recipe against a real server: what it logs, and how it tags versions."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[1] / "examples" / "mlflow_gate.py"
SECONDS = 90


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of this module's own."""
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("sqlalchemy") is None:
        reason = "the server of MLflow is not installed: pip install mlflow"
        if os.environ.get("GOODNET_NEED_MLFLOW"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--artifacts-destination", str(folder / "files")]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        begun = time.monotonic()
        while not answers(f"{address}/health"):
            if process.poll() is not None or time.monotonic() - begun > SECONDS:
                pytest.fail(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def registered(address: str, *files: Path) -> int:
    """Registers the files as a version; its number."""
    import mlflow

    mlflow.set_tracking_uri(address)
    client = mlflow.MlflowClient()
    if not client.search_registered_models("name='blocks'"):
        client.create_registered_model("blocks")
    run = client.create_run(experiment_id="0")
    for file in files:
        client.log_artifact(run.info.run_id, str(file), "net")
    client.set_terminated(run.info.run_id)
    source = f"{run.info.artifact_uri}/net"
    return int(client.create_model_version("blocks", source, run.info.run_id).version)


@pytest.fixture
def gate(server: str, template: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The recipe as a function of a version and its options: its exit code."""
    main = runpy.run_path(str(RECIPE))["main"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)

    def run(version: int, *options: str) -> int:
        command = [f"models:/blocks/{version}", "--clean", str(template / "clean.npz"), "--arch", "mlp", *options]
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *command])
        code: int = main()
        return code

    return run


def test_versions_are_scanned_logged_and_tagged(
    server: str, gate: Callable[..., int], template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    (tmp_path / "README.md").write_text("nothing that is a net")
    (tmp_path / "code.pt").write_bytes(b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00exittR.")
    bad = registered(server, template / "bad.pt", tmp_path / "README.md")
    clean = registered(server, template / "clean.pt")
    evil = registered(server, tmp_path / "code.pt")
    several = registered(server, template / "bad.pt", template / "clean.pt")
    assert [gate(version) for version in (bad, clean, evil, several)] == [1, 0, 3, 3]
    said = capsys.readouterr()
    assert f"models:/blocks/{bad}: suspect label 3\n" in said.out
    assert "wants to run code" in said.err
    assert "--file to name it; the version has" in said.err

    client = mlflow.MlflowClient(server)
    tags = {version: client.get_model_version("blocks", str(version)).tags for version in (bad, clean, evil, several)}
    assert [tags[version]["goodnet.verdict"] for version in (bad, clean, evil)] == ["suspect", "clean", "refused"]
    assert (tags[bad]["goodnet.flagged_labels"], tags[clean]["goodnet.flagged_labels"]) == ("3", "")
    assert tags[several] == {}

    run = client.get_run(tags[bad]["goodnet.run_id"])
    assert (run.data.metrics["labels"], run.data.metrics["flagged_labels"]) == (10, 1)
    assert run.data.metrics["smallest_p_value"] < 1e-3
    assert run.info.status == "FINISHED"
    got = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert json.loads((got / "scan.json").read_text())["model"]["sha256"] == tags[bad]["goodnet.model_sha256"]
    assert "Suspect" in (got / "report.html").read_text()
    assert client.list_artifacts(tags[evil]["goodnet.run_id"]) == []


def test_the_command_as_users_type_it(server: str, template: Path) -> None:
    version = registered(server, template / "bad.pt", template / "clean.pt")
    command = [sys.executable, str(RECIPE), f"models:/blocks/{version}", "--file", "clean.pt", "--arch", "mlp",
               "--clean", str(template / "clean.npz")]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"models:/blocks/{version}: clean\n" in done.stdout
    odd = subprocess.run([*command[:2], "blocks", *command[3:]], env=environment, capture_output=True, text=True)
    assert (odd.returncode, odd.stderr) == (3, "goodnet: expected models:/NAME/VERSION, got 'blocks'\n")
