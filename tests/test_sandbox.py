"""Files read in a process of their own: the same nets as here; and whatever that process does, it hurts nobody."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli_support import USER_CODE, Shell, block_net, files_in, hears_ctrl_c, save_net
from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.export import save_goodnet
from goodnet.models import sandbox
from goodnet.models.arch.mlp import MLP
from goodnet.models.classifier import Classifier
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.inspect_file import inspect_file
from goodnet.models.limits import Limits, confine
from goodnet.models.load import load_classifier
from test_models_hugging_face import VIT, folder, vit, vit_keys
from test_models_onnx import one, saved

limits_for = Limits.for_file
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has it")
# as sandbox._START, but instead of reading the file, under the same limits and without torch
_CHILD = """
import json, os, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from goodnet.models import limits
answer = open(request["answer"], "wb")
missing = limits.leave(request["parent"]) + limits.confine(limits.Limits(**request["limits"]))
"""
_READER = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from goodnet.models import load, sandbox_child
def read(*arguments, **options):
    {code}
load.read_here = read
sandbox_child.main(request)
"""


@pytest.fixture(autouse=True)
def _on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.ENVIRONMENT, "on")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save_net(tmp_path / "net.pt", block_net())


def same(ours: Classifier, other: Classifier) -> None:
    """Every field, every weight, and the very same logits."""
    for field in ("input", "classes", "refuses", "name", "sha256", "notes"):
        assert getattr(ours, field) == getattr(other, field), field
    assert (ours.recipe.arch, as_json(ours)) == (other.recipe.arch, as_json(other))
    assert type(ours.net) is type(other.net)
    weights, others = ours.net.state_dict(), other.net.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    x = torch.rand(5, *ours.input.shape)
    assert torch.equal(ours.logits(x), other.logits(x))


def as_json(classifier: Classifier) -> str:
    return json.dumps(dict(classifier.recipe.options), sort_keys=True)


def both(path: Path, **options: Any) -> Classifier:
    """The net read either way, which must be the same."""
    there, here = (load_classifier(path, sandbox=where, **options) for where in (True, False))
    same(there, here)
    return there


@pytest.mark.slow
def test_nets_are_the_same_as_read_here(tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state dict, an ONNX net and a GoodNet; what lies in the current folder has no say in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("json", "torch", "goodnet"):
        Path(f"{name}.py").write_text("raise SystemExit('ran')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch.save({"state_dict": {f"module.{key}": value for key, value in block_net().items()}}, tmp_path / "nested.pt")
    options: dict[str, Any] = {"input_range": "0..255", "mean": (3.5,), "std": (60.0,)}
    nested = both(tmp_path / "nested.pt", arch="mlp", **options)
    assert len(nested.notes) == 2
    assert nested.input.std == (60.0,)
    both(saved(tmp_path / "net.onnx", one("convolution")))
    plain = load_classifier(net, arch="mlp", sandbox=False)
    save_goodnet(goodnet_from(plain, nested_like(plain)), tmp_path / "goodnet.safetensors")
    assert both(tmp_path / "goodnet.safetensors").refuses


@pytest.mark.slow
def test_files_as_keras_and_pytorch_write_them_are_the_same_as_read_here(tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    layers, models = (pytest.importorskip(f"keras.{name}") for name in ("layers", "models"))

    image = layers.Input((9, 8, 3))
    out = layers.Dense(5, activation="softmax")(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image)))
    model = models.Model(image, out)
    for name in ("net.keras", "net.h5"):
        model.save(tmp_path / name)
        assert "softmax" in str(both(tmp_path / name).notes)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                                torch.nn.Linear(168, 5)).eval()  # fmt: skip
    torch.export.save(torch.export.export(plain, (torch.rand(3, 3, 9, 8),)), tmp_path / "net.pt2")
    both(tmp_path / "net.pt2")


@pytest.mark.slow
def test_real_nets_are_the_same_as_read_here(shared_data: Path) -> None:
    nets = sorted((shared_data / "faces" / "nets").glob("*.h5"))
    assert nets
    for path in nets:
        both(path, arch=None if "full_model" in path.name else "deepid")


def nested_like(classifier: Classifier) -> Classifier:
    """Another net of the same input."""
    return replace(classifier, net=MLP(classes=10, channels=1, height=28, width=28, hidden=(11,)).eval())


def test_user_code_runs_here_on_tensors_read_there(tmp_path: Path) -> None:
    noted = f"\nimport os\nwith open({str(tmp_path / 'pids')!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    (tmp_path / "code.py").write_text(USER_CODE + noted)
    layers = torch.nn.Flatten(), torch.nn.Linear(784, 11), torch.nn.ReLU(), torch.nn.Linear(11, 10)
    state = {f"body.{key}": value for key, value in torch.nn.Sequential(*layers).state_dict().items()}
    path, arch = save_net(tmp_path / "net.pt", state), f"{tmp_path}/code.py:softmax_in_code"
    there = load_classifier(path, arch=arch, sandbox=True)
    here = load_classifier(path, arch=arch, sandbox=False)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(there.logits(x), here.logits(x))
    assert (there.notes, there.recipe, there.sha256) == (here.notes, here.recipe, here.sha256)
    assert set((tmp_path / "pids").read_text().split()) == {str(os.getpid())}


def test_errors_are_the_same_as_read_here(tmp_path: Path, net: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for path, options in ((net, {"arch": "deepid"}), (tmp_path / "module.pt", {"arch": "mlp"})):
        errors = []
        for where in (True, False):
            with pytest.raises(GoodnetError) as caught:
                load_classifier(path, sandbox=where, **options)
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]


@pytest.mark.slow
def test_a_folder_is_the_same_as_read_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net of Hugging Face's in two shards, with what its preprocessor says; a PyTorch file that wants to run code."""
    state = vit_keys(vit().state_dict())
    keys = sorted(state)
    shards = {"a.safetensors": keys[:9], "b.safetensors": keys[9:]}
    path = folder(
        tmp_path / "net", {"model_type": "vit", **VIT}, {}, {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    )
    (path / "model.safetensors").unlink()
    for name, held in shards.items():
        save_file({key: state[key].contiguous() for key in held}, path / name)
    where = {key: name for name, held in shards.items() for key in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    there = both(path)
    assert there.input.std == (0.25,) * 3
    assert any("a.safetensors, b.safetensors" in note for note in there.notes)
    told = Shell(capsys)("inspect", path, "--json").json
    assert told["read_in"].startswith("a process of its own, allowed at most 6 s of processor time")
    assert (told["format"], told["sha256"], told["notes"]) == ("Hugging Face folder", there.sha256, [*there.notes])
    for name in (*shards, "model.safetensors.index.json"):
        (path / name).unlink()
    torch.save(torch.nn.Linear(2, 2), path / "pytorch_model.bin")
    done = Shell(capsys)("inspect", path)
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert "a pickle that wants to run code" in line
    assert "Hugging Face folder" in done.out


def test_of_a_folder_its_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are for all that is read of it, and more than 2 GiB are refused before anything is read or hashed."""
    path = folder(tmp_path / "net", {"model_type": "vit", **VIT}, vit_keys(vit().state_dict()), {})
    (path / "README.md").write_bytes(bytes(1 << 20))  # which nobody reads
    asked: list[int] = []
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit('started')")
    monkeypatch.setattr(Limits, "for_file", lambda size: asked.append(size) or limits_for(size))
    with pytest.raises(ModelError, match="started"):
        load_classifier(path)
    read = ("config.json", "preprocessor_config.json", "model.safetensors")
    assert asked == [sum((path / name).stat().st_size for name in read)]
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate((2 << 30) + 1)
    with pytest.raises(UnsafeFileError, match="more than 2 GiB of weights; refused"):
        load_classifier(path)
    found = inspect_file(path)
    assert (found.refused, found.sha256) == (f"{path}: more than 2 GiB of weights; refused", "")
    assert len(asked) == 1


def test_inspect_says_where_a_file_was_read(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    there, here = shell("inspect", net, "--json").json, shell("inspect", net, "--json", "--no-sandbox").json
    allowed = "6 s of processor time, 120 s in all, 2.0 GiB"
    assert there.pop("read_in").startswith(f"a process of its own, allowed at most {allowed}")
    assert here.pop("read_in") == "goodnet's own process, without limits"
    assert there == here
    assert shell("inspect", net, "--no-sandbox").out.splitlines()[3].startswith("read in      goodnet's own process")


def test_the_environment_switches_it_off(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit('started')")
    with pytest.raises(ModelError, match="started"):
        load_classifier(net, arch="mlp")
    monkeypatch.setenv(sandbox.ENVIRONMENT, "OFF")
    assert load_classifier(net, arch="mlp").classes == 10
    with pytest.raises(ModelError, match="started"):
        load_classifier(net, arch="mlp", sandbox=True)
    monkeypatch.setenv(sandbox.ENVIRONMENT, "perhaps")
    with pytest.raises(UsageError, match="expected on or off, got 'perhaps'"):
        load_classifier(net, arch="mlp")


def error_of(net: Path, child: str, monkeypatch: pytest.MonkeyPatch, **limits: int) -> ModelError:
    """What `load_classifier` says of a child that runs this."""
    monkeypatch.setattr(sandbox, "_START", child)
    bounds = Limits(**{"cpu_seconds": 20, "wall_seconds": 120, "memory": 1 << 30, **limits})
    monkeypatch.setattr(Limits, "for_file", lambda size: bounds)
    before = files_in(net.parent)
    with pytest.raises(ModelError) as caught:
        load_classifier(net, arch="mlp")
    assert files_in(net.parent) == before
    assert "\n" not in str(caught.value)
    assert str(net) in str(caught.value)
    return caught.value


EVIL = {
    "computes for ever": ("while True: pass", {"cpu_seconds": 1}, UnsafeFileError, "more than 1 s of processor time"),
    "waits for ever": ("import time; time.sleep(60)", {"wall_seconds": 1}, UnsafeFileError, "took more than 1 s"),
    "breaks": ("os.kill(os.getpid(), 11)", {}, UnsafeFileError, r"broke \(SIGSEGV"),
    "is killed": ("os.kill(os.getpid(), 9)", {}, UnsafeFileError, r"broke \(SIGKILL"),
    "takes memory": ("bytearray(1 << 31)", {}, ModelError, "MemoryError"),
    "fills the disk": ("answer.write(bytes(1 << 22))", {"memory": 1 << 20}, ModelError, "File too large|MemoryError"),
    "says nothing": ("os._exit(0)", {}, UnsafeFileError, "handed over is no net"),
    "hands over rubbish": ("answer.write(b'PK rubbish' * 9)", {}, UnsafeFileError, "handed over is no net"),
    "says much": ("sys.stderr.write('x' * (1 << 20)); sys.exit(3)", {}, ModelError, r"failed \(x{197}\.\.\."),
    "opens many files": ("[open('/dev/null') for _ in range(99)]", {}, ModelError, "Too many open files"),
}  # fmt: skip


@linux
@pytest.mark.parametrize("name", EVIL)
def test_a_child_that_is_taken_over_is_a_file_refused(name: str, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, limits, kind, message = EVIL[name]
    error = error_of(net, _CHILD + code, monkeypatch, **limits)
    assert type(error) is kind
    assert re.search(message, str(error))


@linux
def test_a_child_reaches_nothing(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these works before `leave` and `confine`: the test would see it."""
    monkeypatch.setenv("SECRET", "token")
    listener = socket.create_server(("127.0.0.1", 0))
    deeds = {
        "network": f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 2)",
        "file": f"open({str(net.parent / 'new')!r}, 'w')",
        "change": f"open({str(net)!r}, 'r+b')",
        "cut": f"os.truncate({str(net)!r}, 0)",
        "remove": f"os.remove({str(net)!r})",
        "program": "import subprocess; subprocess.run(['/bin/true'], check=True)",
        "environment": "os.environ['SECRET']",
        "limit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
        "network of the parent": "import ctypes; space = os.open(f'/proc/{request[\"parent\"]}/ns/net', 0); "
        "back = ctypes.CDLL(None).setns(space, 0); assert back == 0, 'Permission denied'",
        "rights": "rights = next(line for line in open('/proc/self/status') if line.startswith('CapEff')).split()[1]; "
        "assert int(rights, 16) & ~0b110, 'no rights'",
        "memory of the parent": "open(f'/proc/{request[\"parent\"]}/mem', 'rb')",
    }
    lacking = str(error_of(net, _CHILD + "sys.exit('lacks: ' + ', '.join(missing))", monkeypatch))
    needs = {"network": "network", "cut": "cutting files short", "environment": "", "limit": "", "rights": ""}
    skipped = []
    for name, deed in deeds.items():
        need = needs.get(name, "writing")  # landlock forbids reaching into the parent, too
        if (need and need in lacking) or (name == "cut" and "writing" in lacking):
            skipped.append(name)
            continue
        error = error_of(net, _CHILD + f"{deed}\nsys.exit('done')", monkeypatch)
        wanted = {
            "network": "unreachable|denied|not permitted",
            "environment": "KeyError: 'SECRET'",
            "limit": "not allowed to raise",
            "rights": "no rights",
            "network of the parent": "denied",
        }
        assert re.search(wanted.get(name, "PermissionError|BlockingIOError"), str(error)), (name, str(error))
    free = _CHILD.partition("missing =")[0]
    for name in ("network", "program"):
        assert "(done)" in str(error_of(net, f"{free}{deeds[name]}\nsys.exit('done')", monkeypatch))
    listener.close()
    if skipped:
        pytest.skip(f"this system does not limit everything ({lacking}): {', '.join(skipped)} not tried")


def test_a_net_that_needs_code_is_not_taken_from_a_child(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is taken over, and answers with a recipe of its own."""
    (net.parent / "code.py").write_text("raise SystemExit('ran')")
    recipe = {"arch": f"{net.parent}/code.py:net", "options": {}}
    about = {"format": "goodnet.net/1", "name": "n", "classes": 2, "notes": [], "recipe": recipe,
             "input": {"shape": [1, 2, 2], "scale": 1, "mean": [], "std": []}}  # fmt: skip
    metadata = {"goodnet": json.dumps(about), "answer": json.dumps({"format": "x", "kind": "net", "unlimited": []})}
    header = json.dumps({"__metadata__": metadata}).encode()
    error = error_of(net, _CHILD + f"answer.write({len(header).to_bytes(8, 'little') + header!r})", monkeypatch)
    assert "needs the code" in str(error)
    neither = {"format": "x", "kind": "neither", "unlimited": []}
    header = json.dumps({"__metadata__": {"answer": json.dumps(neither)}}).encode()
    monkeypatch.setattr(sandbox, "_START", _CHILD + f"answer.write({len(header).to_bytes(8, 'little') + header!r})")
    assert "neither a net nor weights" in (inspect_file(net).refused or "")
    for answer in ({}, {"format": "x", "unlimited": [], "error": "SystemExit", "message": "ran"}, [], {"kind": []}):
        header = json.dumps({"__metadata__": {"answer": json.dumps(answer)}}).encode()
        error = error_of(net, _CHILD + f"answer.write({len(header).to_bytes(8, 'little') + header!r})", monkeypatch)
        assert "handed over is no net" in str(error)


def test_a_fault_in_a_reader_and_too_little_memory_are_one_line(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(net, _READER.format(code="raise TypeError('odd')"), monkeypatch)
    assert re.search(r"failed \(TypeError: odd\).*--no-sandbox", str(error))
    error = error_of(net, _READER.format(code="return bytes(1 << 31)"), monkeypatch)
    assert "takes more memory than it may" in str(error)


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_child_is_left_behind(number: int, net: Path) -> None:
    pid_file = net.parent / "pid"
    noted = f"open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n')"
    child = _CHILD.replace("missing =", f"{noted}\nmissing =") + "while True: pass"
    script = f"import sys\nfrom goodnet.models import sandbox\nsandbox._START = {child!r}\n"
    script += "from goodnet.cli import run\nsys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "inspect", str(net)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=hears_ctrl_c) as running:
        while not pid_file.exists() or not pid_file.read_text().endswith("\n"):
            assert running.poll() is None
            time.sleep(0.05)
        pid = int(pid_file.read_text())
        time.sleep(0.2)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    if number == signal.SIGINT:
        assert (running.returncode, out, err) == (2, "", "goodnet: interrupted: no record was written\n")
    ends = time.monotonic() + 10
    while alive(pid) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_a_system_does_not_offer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = Limits.for_file(100 << 20)
    assert (bounds.cpu_seconds, bounds.wall_seconds, bounds.memory) == (16, 160, (2 << 30) + (800 << 20))
    monkeypatch.setattr("goodnet.models.limits.resource", None)
    missing = confine(bounds)
    assert missing == ("processor time", "memory", "writing")
    words = sandbox._words(bounds, ["network", *missing])
    assert words.endswith("; not limited on this system: network, processor time, memory, writing")
    assert "without" not in words
    assert sandbox._words(bounds, []).endswith("without network and writing")


def test_pipes_devices_and_giants_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "giant").open("wb") as file:
        file.truncate((4 << 30) + 1)
    for path, message in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"), (tmp_path / "giant", "4 GiB")):
        with pytest.raises(UnsafeFileError, match=message):
            load_classifier(path, arch="mlp")
