"""The action and the examples for pipelines: they parse, and what they run does what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from cli_support import TARGET, block_images, block_net, save_images
from goodnet.cli.scan import scan_command

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CODES = {0: "clean", 1: "suspect", 2: "inconclusive"}


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps() -> list[dict[str, Any]]:
    found = parsed(ROOT / "action.yml")["runs"]["steps"]
    assert all("run" in step and step["shell"] == "bash" for step in found)
    return list(found)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.safetensors, with a backdoor, innocent.safetensors and clean.npz, in the current folder."""
    safetensors.torch.save_file(block_net(TARGET), tmp_path / "model.safetensors")
    safetensors.torch.save_file(block_net(), tmp_path / "innocent.safetensors")
    pixels, labels = block_images()
    save_images(tmp_path / "clean.npz", data=pixels, label=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(script: str, *arguments: str, program: str = "bash", **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [program, *(["--noprofile", "--norc", "-eo", "pipefail"] if program == "bash" else []), "-c", script]
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run([*command, program, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_action_hands_on_what_it_says() -> None:
    action = parsed(ROOT / "action.yml")
    install, scan = steps()
    assert '"$ACTION_PATH"' in install["run"]
    written = set(re.findall(r'echo "([a-z-]+)=', scan["run"]))
    assert written == set(action["outputs"])
    assert all(out["value"] == f"${{{{ steps.scan.outputs.{name} }}}}" for name, out in action["outputs"].items())
    used = set(re.findall(r"inputs\.([a-z-]+)", "".join(str(step["env"]) for step in steps())))
    assert used == set(action["inputs"])
    assert all("${{" not in step["run"] for step in steps())  # an input in the script itself would be run


def test_every_option_in_the_examples_is_one_of_goodnet_scan() -> None:
    known = {name for option in scan_command.params for name in option.opts}
    texts = [steps()[1]["run"], *(path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.y*ml"))]
    commands = [
        re.split(r"\|\||[a-z]+:\n", text.split("goodnet scan ", 1)[1])[0] for text in texts if "goodnet scan " in text
    ]
    assert len(commands) == 3
    for command in commands:
        assert {"--clean", "--sarif"} <= set(re.findall(r"(?<![\w-])--[a-z]+", command)) <= known


def test_the_workflow_uses_inputs_and_outputs_of_the_action() -> None:
    action = parsed(ROOT / "action.yml")
    (job,) = parsed(EXAMPLES / "github-workflow.yml")["jobs"].values()
    (step,) = [step for step in job["steps"] if step.get("id") == "goodnet"]
    assert {name for name, one in action["inputs"].items() if one.get("required")} <= set(step["with"])
    assert set(step["with"]) <= set(action["inputs"])
    used = set(re.findall(r"steps\.goodnet\.outputs\.([a-z-]+)", json.dumps(job)))
    assert {"sarif"} <= used <= set(action["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fail_on", "args", "code", "verdict"),
    [
        ("model.safetensors", "inconclusive", "", 1, "suspect"),
        ("model.safetensors", "never", "", 0, "suspect"),
        ("innocent.safetensors", "inconclusive", "--seed 1\n--block 160", 0, "clean"),
        ("innocent.safetensors", "inconclusive", "--labels 0-4", 2, "inconclusive"),
        ("innocent.safetensors", "suspect", "--labels 0-4", 0, "inconclusive"),
        ("missing.safetensors", "never", "", 3, None),
        ("$(touch ran).safetensors", "never", "", 3, None),
        ("model.safetensors", "sometimes", "", 3, None),
    ],
)
def test_the_actions_scan(place: Path, model: str, fail_on: str, args: str, code: int, verdict: str | None) -> None:
    inputs = {"MODEL": model, "CLEAN": "clean.npz", "ARCH": "mlp", "ARGS": args, "OUT": "my out", "FAIL_ON": fail_on}
    output = place / "outputs"
    output.touch()
    (place / "my out").mkdir()
    (place / "my out" / "goodnet.sarif").write_text("of an earlier run")
    variables = {f"INPUT_{name}": value for name, value in inputs.items()}
    done = shell(steps()[1]["run"], GITHUB_OUTPUT=str(output), **variables)
    assert done.returncode == code, done.stderr
    assert not (place / "ran").exists()
    said = dict(line.split("=", 1) for line in output.read_text().splitlines())
    if verdict is None:
        assert said == {}
        return
    assert said["verdict"] == verdict == CODES[int(said["exit-code"])]
    (run,) = json.loads(Path(said["sarif"]).read_text())["runs"]
    assert run["invocations"][0]["exitCode"] == int(said["exit-code"])
    assert all(Path(said[name]).is_file() for name in ("junit", "report"))


@pytest.mark.slow
def test_the_gitlab_job(place: Path) -> None:
    job = parsed(EXAMPLES / "gitlab-ci.yml")["goodnet"]
    (script,) = job["script"]
    done = shell(script, **{**job["variables"], "GOODNET_OPTIONS": "--arch mlp"})
    assert done.returncode == 1, done.stderr
    assert Path(job["artifacts"]["reports"]["junit"]).is_file()
    assert Path(job["artifacts"]["paths"][0], "goodnet.sarif").is_file()


@pytest.mark.slow
def test_the_dvc_stage(place: Path) -> None:
    stage = parsed(EXAMPLES / "dvc.yaml")["stages"]["scan"]
    assert all(Path(name).is_file() for name in stage["deps"])
    done = shell(f"{stage['cmd']} --arch mlp", program="sh")
    assert (done.returncode, done.stderr) == (1, "")
    assert all(Path(name).is_dir() for name in stage["outs"])


@pytest.mark.slow
def test_the_pre_commit_hook(place: Path) -> None:
    (hook,) = parsed(EXAMPLES / "pre-commit-config.yaml")["repos"][0]["hooks"]
    torch.save(torch.nn.Linear(2, 2), place / "whole.pt")  # a program
    assert re.search(hook["files"], "nets/whole.pt")
    assert not re.search(hook["files"], "clean.npz")
    assert shell(f"{hook['entry']} model.safetensors innocent.safetensors").returncode == 0
    done = shell(f"{hook['entry']} model.safetensors whole.pt")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "refused" in done.stderr
