"""The GoodNet and its file: class N by its definition and never by a tie, a file that needs no other, hostile files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from goodnet.errors import GoodnetError, ModelError, UnsafeFileError, UsageError
from goodnet.export import save_goodnet
from goodnet.guard.disagreement import Disagreement, disagreement
from goodnet.models.arch import build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.goodnet import GoodNet
from goodnet.models.goodnet_file import load_goodnet
from goodnet.models.goodnet_make import goodnet_from
from goodnet.models.load import load_classifier
from nets import linear, small_cnn

MLP = {"classes": 4, "hidden": [5], "channels": 1, "height": 3, "width": 3}
GRAPH = {
    "input": [3, 6, 5],
    "output": "out",
    "layers": [
        {"name": "scaled", "op": "rescale", "inputs": ["input"], "scale": [2.0], "offset": [-0.5]},
        {"name": "conv", "op": "conv2d", "inputs": ["scaled"], "filters": 4, "groups": 1, "kernel": [3, 3],
         "stride": [1, 1], "dilation": [1, 1], "padding": "same", "bias": True},
        {"name": "norm", "op": "batch_norm", "inputs": ["conv"], "eps": 1e-3},
        {"name": "flat", "op": "flatten", "inputs": ["norm"], "order": "hwc"},
        {"name": "out", "op": "linear", "inputs": ["flat"], "units": 6, "bias": True},
    ],
}  # fmt: skip


class Table(nn.Module):
    """Answers with the first `k` (or the last) of its inputs, taken as logits."""

    def __init__(self, k: int, last: bool):
        super().__init__()
        self.part = slice(k, None) if last else slice(0, k)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.part]


def of_arch(name: str, options: dict[str, Any], spec: InputSpec, seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(Recipe(arch=name, options=options))
        for key, value in net.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
    classes = options.get("classes", 6)
    return Classifier(net=net, input=spec, classes=classes, recipe=Recipe(arch=name, options=options), name=name)


def small_pair() -> tuple[Classifier, Classifier]:
    spec = InputSpec(channels=1, height=3, width=3)
    return of_arch("mlp", MLP, spec, 0), of_arch("mlp", MLP, spec, 1)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("scale", [1.0, 2.0**20, 2.0**100])
def test_class_n_exactly_where_the_score_is_over_the_threshold(threshold: float, scale: float) -> None:
    """Logits are small multiples of 1/2, so that ties and scores on the threshold itself are common."""
    random = np.random.default_rng(0)
    k, n = 4, 4000
    logits = random.integers(-6, 7, (n, 2 * k)).astype(np.float32) / 2
    net = GoodNet(bad=Table(k, False), good=Table(k, True), threshold=threshold * scale)
    out = net(torch.from_numpy(logits * np.float32(scale))[:, None, None]).numpy()
    bad, good = logits[:, :k].argmax(1), logits[:, k:]
    score = good.max(1) - good[np.arange(n), bad]
    refused = score > threshold
    assert 0.05 < refused.mean() < 0.95
    assert (score == threshold).mean() > 0.05
    expected = np.where(refused, k, good.argmax(1))
    np.testing.assert_array_equal(out.argmax(1), expected)
    runner_up = np.sort(out, axis=1)[:, -2]
    won = out.argmax(1) == k
    assert ((out[:, k] - out[:, :k].max(1) >= 1) == won).all()
    assert (out[:, k][won] > runner_up[won]).all()  # no tie with class N, on either side
    assert (out[:, k][~won] < out[:, :k].max(1)[~won]).all()


def test_class_n_is_not_lost_beside_large_logits() -> None:
    """Next to 2^26 a float32 knows multiples of 8 alone: one more than the best class would be the best class."""
    logits = torch.tensor([[8.0, 0.0, 0.0, 8.0], [0.0, 0.0, 0.0, 8.0], [8.0, 0.0, 8.0, 0.0]]) + 2.0**26
    net = GoodNet(bad=Table(2, False), good=Table(2, True), threshold=7.9)
    assert net(logits[:, None, None]).argmax(1).tolist() == [2, 2, 0]


ARCHITECTURES = {
    "mlp": (MLP, InputSpec(channels=1, height=3, width=3, scale=255.0, mean=(120.0,), std=(60.0,))),
    "cnn": ({"classes": 4}, InputSpec(channels=1, height=28, width=28)),
    "deepid": ({"classes": 7}, InputSpec(channels=3, height=55, width=47)),
    "wrn-16-1": ({"classes": 5}, InputSpec(channels=3, height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))),
    "keras-graph": (GRAPH, InputSpec(channels=3, height=6, width=5, scale=255.0)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_goodnet_read_again_decides_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, spec = ARCHITECTURES[name]
    bad, good = of_arch(name, options, spec, 0), of_arch(name, options, spec, 1)
    x = torch.rand(64, *spec.shape)
    threshold = float(np.median(disagreement(bad, good, x)))
    goodnet = goodnet_from(bad, good, threshold=threshold)
    digest = save_goodnet(goodnet, tmp_path / "good.safetensors")
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (tmp_path / "good.safetensors").rename(alone / "net")
    monkeypatch.chdir(alone)
    loaded = load_classifier("net")
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert (loaded.refuses, loaded.classes, loaded.input, loaded.sha256) == (True, bad.classes, spec, digest)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(x), goodnet.logits(x), rtol=0, atol=0)
    answers = goodnet.predict(x)
    assert torch.equal(loaded.predict(x), answers)
    np.testing.assert_array_equal(answers == bad.classes, disagreement(bad, good, x) > threshold)
    agree = bad.predict(x) == good.predict(x)
    assert torch.equal(answers[agree], good.predict(x)[agree])


@pytest.mark.parametrize("max_fpr", [0.0, 0.05, 0.29, 0.5, 0.999])
def test_the_threshold_is_the_smallest_that_keeps_to_max_fpr(max_fpr: float) -> None:
    bad, good = linear((1, 6, 6), 10, seed=1), linear((1, 6, 6), 10, seed=2)
    choose = torch.rand(100, 1, 6, 6)
    choose[:4] = choose[0]  # ties
    goodnet = Disagreement(max_fpr=max_fpr)(bad, good, choose)
    logits = good.logits(choose).double()
    own = logits.gather(1, bad.predict(choose)[:, None])[:, 0]
    scores = (logits.amax(1) - own).tolist()
    tried = [at for at in [0.0, *scores] if sum(score > at for score in scores) <= max_fpr * 100 + 1e-9]
    assert goodnet.recipe.options["threshold"] == pytest.approx(min(tried), abs=1e-5)
    assert int((goodnet.predict(choose) == 10).sum()) == sum(score > min(tried) + 1e-4 for score in scores)


def test_without_a_bound_every_disagreement_is_refused() -> None:
    bad, good = linear((1, 6, 6), 10, seed=1), linear((1, 6, 6), 10, seed=2)
    x = torch.rand(500, 1, 6, 6)
    answers = Disagreement()(bad, good, x[:10]).predict(x)
    apart = bad.predict(x) != good.predict(x)
    assert 0.5 < float(apart.double().mean()) < 1
    assert torch.equal(answers == 10, apart)


@pytest.mark.parametrize("max_fpr", [-0.1, 1.0, float("nan")])
def test_max_fpr_is_a_share(max_fpr: float) -> None:
    with pytest.raises(UsageError, match="--max-fpr"):
        Disagreement(max_fpr=max_fpr)


def test_only_nets_that_fit_are_joined() -> None:
    bad, good = small_pair()
    with pytest.raises(ModelError, match="same input and classes"):
        goodnet_from(bad, small_cnn())
    with pytest.raises(ModelError, match="plain nets"):
        goodnet_from(goodnet_from(bad, good), good)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_goodnet(goodnet_from(*small_pair(), threshold=0.25), tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def test_saving_is_a_transaction(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved.read_bytes()
    goodnet = goodnet_from(*small_pair(), threshold=1.0)
    with pytest.raises(UsageError, match="--overwrite"):
        save_goodnet(goodnet, saved)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    for step in ("goodnet.export.native.load_goodnet", "goodnet.export.native.file_sha256", "goodnet.outputs.os.fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                save_goodnet(goodnet, saved, overwrite=True)
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]
        assert saved.read_bytes() == whole
    save_goodnet(goodnet, saved, overwrite=True)
    assert load_goodnet(saved).recipe.options["threshold"] == 1.0


def test_a_net_that_its_recipe_does_not_build_is_not_kept(tmp_path: Path) -> None:
    bad, good = small_pair()
    odd = Classifier(net=good.net, input=good.input, classes=4, recipe=Recipe(arch="cnn", options={"classes": 4}))
    with pytest.raises(ModelError, match="cannot be read back and was not kept"):
        save_goodnet(goodnet_from(bad, odd), tmp_path / "good.safetensors")
    assert os.listdir(tmp_path) == []


About = dict[str, Any]
Tensors = dict[str, Tensor]


def mutate(path: Path, change: Callable[[About, Tensors], Any]) -> None:
    """Rewrites a GoodNet file; `change` works on metadata and tensors in place, or returns raw metadata."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["goodnet"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    raw = change(about, tensors)
    save_file(tensors, path, metadata={"goodnet": raw if isinstance(raw, str) else json.dumps(about)})


def put(*keys: str | int, value: Any) -> Callable[[About, Tensors], None]:
    def change(about: About, tensors: Tensors) -> None:
        inner: Any = about
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[About, Tensors], None]:
    def change(about: About, tensors: Tensors) -> None:
        inner: Any = about
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def tensor(key: str, value: Callable[[Tensor], Tensor] | None) -> Callable[[About, Tensors], None]:
    def change(about: About, tensors: Tensors) -> None:
        old = tensors.pop(key, torch.zeros(1))
        if value is not None:
            tensors[key] = value(old)

    return change


def both_arches(value: str, **options: Any) -> Callable[[About, Tensors], None]:
    def change(about: About, tensors: Tensors) -> None:
        for side in ("bad", "good"):
            about["recipe"]["options"][side] = {"arch": value, "options": {"classes": 4, **options}}

    return change


OPTIONS = ("recipe", "options")
HOSTILE: dict[str, tuple[Callable[[About, Tensors], Any], str]] = {
    "no JSON": (lambda about, tensors: "{", "cannot be read"),
    "deep JSON": (lambda about, tensors: "[" * 100_000, "cannot be read"),
    "a list": (lambda about, tensors: "[]", "of format"),
    "nothing": (lambda about, tensors: "null", "of format"),
    "a later format": (put("format", value="goodnet.net/9"), "goodnet.net/9"),
    "no input": (drop("input"), "damaged"),
    "no recipe": (drop("recipe"), "damaged"),
    "recipe a list": (put("recipe", value=[]), "damaged"),
    "no twin": (drop(*OPTIONS, "good"), "damaged"),
    "no threshold": (drop(*OPTIONS, "threshold"), "damaged"),
    "threshold below 0": (put(*OPTIONS, "threshold", value=-1.0), "damaged"),
    "threshold NaN": (put(*OPTIONS, "threshold", value=float("nan")), "damaged"),
    "threshold beyond floats": (put(*OPTIONS, "threshold", value=10**400), "damaged"),
    "threshold a word": (put(*OPTIONS, "threshold", value="0"), "damaged"),
    "huge shape": (put("input", "shape", value=[3, 1 << 20, 1 << 20]), "damaged"),
    "negative shape": (put("input", "shape", value=[1, -3, 3]), "damaged"),
    "two sides": (put("input", "shape", value=[3, 3]), "damaged"),
    "another shape": (put("input", "shape", value=[1, 4, 4]), "fails on the input"),
    "scale 0": (put("input", "scale", value=0), "damaged"),
    "std 0": (put("input", "std", value=[0.0]), "damaged"),
    "means of three": (put("input", "mean", value=[0.1, 0.2, 0.3]), "damaged"),
    "other classes": (put("classes", value=5), r"5 \+ 1 outputs"),
    "one class": (put("classes", value=1), "damaged"),
    "classes true": (put("classes", value=True), "damaged"),
    "unknown arch": (both_arches("transformer"), "transformer"),
    "arch a number": (put(*OPTIONS, "bad", "arch", value=7), "damaged"),
    "hidden layers beyond memory": (put(*OPTIONS, "bad", "options", "hidden", value=[1 << 20] * 64), "bad net"),
    "a net larger than the file": (put(*OPTIONS, "good", "options", "hidden", value=[20000, 20000]), "the file holds"),
    "option of no use": (put(*OPTIONS, "good", "options", "path", value="/etc/passwd"), "good net"),
    "softmax nowhere": (put(*OPTIONS, "good", "options", "softmax", value="fc9.weight"), "softmax"),
    "softmax a list": (put(*OPTIONS, "good", "options", "softmax", value=["fc1"]), "softmax"),
    "missing tensor": (tensor("good.fc2.bias", None), "the file holds"),
    "renamed tensor": (lambda about, tensors: tensors.update({"bad.fc9.bias": tensors.pop("bad.fc2.bias")}), "missing"),
    "stray tensor": (tensor("ugly.fc1.bias", lambda old: old), "ugly"),
    "another tensor shape": (tensor("bad.fc1.weight", lambda old: old.T.contiguous()), "another shape"),
    "NaN weights": (tensor("bad.fc1.bias", lambda old: old * torch.nan), "NaN"),
    "weights beyond float32": (tensor("bad.fc1.bias", lambda old: old.double() * 1e300), "NaN or infinite"),
    "complex weights": (tensor("bad.fc1.bias", lambda old: old.to(torch.complex64)), "complex"),
    "one end cut off": (tensor("good.fc2.weight", lambda old: old[:3].contiguous()), "the file holds"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, saved: Path) -> None:
    change, message = HOSTILE[name]
    mutate(saved, change)
    started = time.monotonic()
    with pytest.raises(ModelError, match=message) as caught:
        load_goodnet(saved)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(saved))


def test_every_cut_and_many_damages_are_refused_or_harmless(saved: Path) -> None:
    whole, random = saved.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in random.integers(0, len(whole), 60):
        saved.write_bytes(whole[:at])
        with pytest.raises(GoodnetError):
            load_goodnet(saved)
    read = 0
    for _ in range(300):
        damaged, loaded = bytearray(whole), None
        for at in random.integers(0, header, random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        saved.write_bytes(damaged)
        with contextlib.suppress(GoodnetError):
            loaded = load_goodnet(saved)
            read += 1
        if loaded is None:
            continue
        assert loaded.refuses
        assert loaded.logits(torch.rand(2, *loaded.input.shape)).shape == (2, loaded.classes + 1)
    assert read < 150


def test_half_precision_and_whole_numbers_are_read_as_floats(saved: Path) -> None:
    before = load_goodnet(saved)
    mutate(saved, tensor("bad.fc1.weight", lambda old: old.bfloat16()))
    after = load_goodnet(saved)
    assert after.net.bad.fc1.weight.dtype == torch.float32
    torch.testing.assert_close(after.net.bad.fc1.weight, before.net.bad.fc1.weight, rtol=1e-2, atol=1e-3)


def test_code_named_in_a_file_never_runs(saved: Path, tmp_path: Path) -> None:
    code, own = tmp_path / "evil.py", tmp_path / "own.py"
    code.write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\ndef make(): pass\n")
    own.write_text(
        "from goodnet.models.arch.mlp import MLP\n"
        "def make(classes): return MLP(classes=classes, hidden=[5], height=3, width=3)\n"
    )
    wanted = load_goodnet(saved)
    mutate(saved, both_arches(f"{code}:make"))
    with pytest.raises(UnsafeFileError, match="--arch"):
        load_goodnet(saved)
    with pytest.raises(UnsafeFileError, match="--arch"):
        load_goodnet(saved, arch_name="mlp")
    loaded = load_goodnet(saved, arch_name=f"{own}:make")
    x = torch.rand(20, 1, 3, 3)
    torch.testing.assert_close(loaded.logits(x), wanted.logits(x))
    mutate(saved, both_arches(f"{code}:make", classes="4; import os"))
    with pytest.raises(ModelError, match="whole number"):
        load_goodnet(saved, arch_name=f"{own}:make")
    mutate(saved, both_arches(f"{code}:make", softmax="fc1"))
    with pytest.raises(ModelError, match="softmax"):
        load_goodnet(saved, arch_name=f"{own}:make")
    assert not code.with_suffix(".ran").exists()
