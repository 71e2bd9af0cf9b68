"""The versions of a registered model, from a registry that answers as MLflow's does, and what is among their files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cli_support import TARGET, Shell, block_net, save_net
from goodnet.errors import ModelError
from goodnet.fleet.registry import Registry, only_net
from hostile.pickles import Evil


class MlflowException(Exception):
    pass


class Page(list[Any]):
    token: str | None = None


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `store/VERSION` for each version of the model `faces`, of which a page of answers holds two."""
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://registry")

    class MlflowClient:
        def __init__(self) -> None:
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                Path("mlflow.db").touch()  # as MLflow does, wherever it is

        def get_registered_model(self, name: str) -> None:
            if name != "faces":
                raise MlflowException(f"RESOURCE_DOES_NOT_EXIST: no\n{name}")

        def get_model_version(self, name: str, version: str) -> Any:
            self.get_registered_model(name)
            return SimpleNamespace(version=version)

        def search_model_versions(self, asked: str, page_token: str | None = None) -> Page:
            assert asked == "name='faces'"
            found = sorted((path.name for path in store.iterdir()), key=str)
            at = int(page_token or 0)
            page = Page(SimpleNamespace(version=name) for name in found[at : at + 2])
            page.token = str(at + 2) if at + 2 < len(found) else None
            return page

    def download_artifacts(uri: str, dst_path: str) -> str:
        name, version = uri.removeprefix("models:/").split("/")
        assert name == "faces"
        if not any((store / version).iterdir()):
            raise OSError("connection\nreset")
        shutil.copytree(store / version, Path(dst_path), dirs_exist_ok=True, symlinks=True)
        return dst_path

    modules = {
        "mlflow": {"MlflowClient": MlflowClient},
        "mlflow.exceptions": {"MlflowException": MlflowException},
        "mlflow.artifacts": {"download_artifacts": download_artifacts},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return store


def put(store: Path, version: int, name: str = "model/net.pt") -> Path:
    path = store / str(version) / name
    path.parent.mkdir(parents=True)
    return path


def test_versions_come_in_their_order_over_all_pages(registry: Path) -> None:
    for version in (1, 2, 10, 9, 11):
        put(registry, version)
    assert Registry("mlflow:faces").versions == ["1", "2", "9", "10", "11"]
    assert Registry("mlflow:faces/9").versions == ["9"]


def test_each_version_is_a_row(registry: Path, place: Path, shell: Shell) -> None:
    save_net(put(registry, 1), block_net())
    save_net(put(registry, 2, "model/data/net.pth"), block_net(TARGET))
    torch.save(Evil(), put(registry, 3, "model/data/model.pkl"))
    put(registry, 4, "MLmodel").write_text("flavors: {}")
    (registry / "5").mkdir()
    done = shell("scan", "mlflow:faces", "--arch", "mlp", "--clean", "clean.npz", "--out", "out", "--json")
    assert done.code == 1
    rows = {one["name"]: one for one in done.json["nets"]}
    assert [(name, one["status"]) for name, one in rows.items()] == [
        ("faces/1", "clean"), ("faces/2", "suspect"), ("faces/3", "refused"), ("faces/4", "refused"),
        ("faces/5", "refused"),
    ]  # fmt: skip
    assert rows["faces/2"]["model"] == "models:/faces/2"
    assert "run code" in rows["faces/3"]["reason"]
    assert "expected one net among the artifacts, got none" in rows["faces/4"]["reason"]
    assert "could not be downloaded (connection reset)" in rows["faces/5"]["reason"]
    assert sorted(path.name for path in (place / "out").iterdir()) == ["nets", "summary.html", "summary.json"]
    (place / "out" / ".goodnet-downloads-killed").mkdir()
    for version in (3, 4, 5):
        shutil.rmtree(registry / str(version))
    again = shell("scan", "mlflow:faces", "--arch", "mlp", "--clean", "clean.npz", "--out", "out", "--json")
    assert (again.code, [one["name"] for one in again.json["nets"]]) == (1, ["faces/1", "faces/2"])
    assert not list((place / "out").glob(".*"))
    assert again.json["nets"][1]["seconds"] == rows["faces/2"]["seconds"]  # the same bytes: not scanned again


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mlflow:nobody", "mlflow:nobody: MLflow does not give it (RESOURCE_DOES_NOT_EXIST: no nobody)"),
        ("mlflow:faces", "the registry has no version of it"),
        ("mlflow:faces/one", "expected mlflow:MODEL or mlflow:MODEL/VERSION"),
        ("mlflow:", "expected mlflow:MODEL or mlflow:MODEL/VERSION"),
    ],
)
def test_what_the_registry_does_not_have(registry: Path, place: Path, shell: Shell, address: str, said: str) -> None:
    done = shell("scan", address, "--clean", "clean.npz", "--out", "out")
    assert (done.code, done.out) == (3, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("given", [None, ""])
def test_without_an_address_of_the_registry_nothing_is_made(
    registry: Path, place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    put(registry, 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI") if given is None else monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    before = sorted(place.iterdir())
    done = shell("scan", "mlflow:faces", "--clean", "clean.npz", "--out", "out")
    assert (done.code, done.out) == (3, "")
    assert "nothing says where the registry is; set MLFLOW_TRACKING_URI" in done.err
    assert done.err.count("\n") == 1
    assert sorted(place.iterdir()) == before


def test_the_one_net_among_the_artifacts(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").touch()
    (tmp_path / "outside.pt").symlink_to(tmp_path.parent)
    with pytest.raises(ModelError, match="it: expected one net among the artifacts, got none"):
        only_net(tmp_path, "it")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).touch()
    assert only_net(tmp_path, "it") == tmp_path / "model"
    (tmp_path / "other.ONNX").touch()
    with pytest.raises(ModelError, match=r"got model, other\.ONNX"):
        only_net(tmp_path, "it")
