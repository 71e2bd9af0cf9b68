"""`goodnet inspect --plot`: the picture is there and whole, or nothing is written and one line says why."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from cli_support import USER_CODE, Shell, block_net, files_in, save_net
from goodnet.export.files import export_net
from goodnet.models.arch.wrn import WideResNet
from goodnet.models.load import load_classifier


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a net of each kind, and in it."""
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "net.pt", block_net())
    torch.save(WideResNet(classes=4).state_dict(), tmp_path / "wrn.pt")
    torch.save({"w": torch.zeros(3, 3)}, tmp_path / "other.pt")
    (tmp_path / "arch.py").write_text(USER_CODE)
    (tmp_path / "text.txt").write_text("no net")
    return tmp_path


def words(path: Path) -> set[str | None]:
    return {element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("text")}


def test_svg_and_png(place: Path, shell: Shell) -> None:
    done = shell("inspect", "net.pt", "--arch", "mlp", "--plot", "net.svg")
    assert (done.code, done.err) == (0, "layers: net.svg\n")
    assert {"net.pt", "fc1", "fc2", "10 classes", "28x28x1"} <= words(place / "net.svg")
    assert shell("inspect", "net.pt", "--arch", "mlp", "--plot", "NET.PNG").code == 0
    with Image.open(place / "NET.PNG") as picture:
        picture.load()
        assert picture.format == "PNG"
    assert {name for name in files_in(place) if name.startswith(".")} == set()


def test_what_is_printed_is_the_same_with_a_picture(shell: Shell) -> None:
    plain = shell("inspect", "net.pt", "--arch", "mlp")
    assert shell("inspect", "net.pt", "--arch", "mlp", "--plot", "a.svg").out == plain.out


def test_weights_that_fit_one_architecture_are_drawn_as_that(place: Path, shell: Shell) -> None:
    done = shell("inspect", "net.pt", "--plot", "net.svg")
    assert done.code == 0
    assert "drawn as mlp, the one architecture of ours that fits" in done.out
    assert "fc1" in words(place / "net.svg")
    assert "drawn as" not in shell("inspect", "net.pt").out


def test_json_holds_the_graph(shell: Shell) -> None:
    graph = shell("inspect", "net.pt", "--arch", "mlp", "--json", "--plot", "a.svg").json["graph"]
    kinds = ["image", "Flatten", "Linear", "ReLU", "Linear", "10 classes"]
    assert [node["kind"] for node in graph["nodes"]] == kinds
    assert graph["edges"] == [{"source": index, "target": index + 1} for index in range(5)]
    assert shell("inspect", "net.pt", "--json").json["graph"] is None


def test_an_earlier_picture_stays_unless_told(place: Path, shell: Shell) -> None:
    (place / "net.svg").write_text("mine")
    done = shell("inspect", "net.pt", "--plot", "net.svg")
    assert (done.code, done.out) == (3, "")
    assert "pass --overwrite" in done.err
    assert (place / "net.svg").read_text() == "mine"
    assert shell("inspect", "net.pt", "--plot", "net.svg", "--overwrite").code == 0
    assert "fc1" in words(place / "net.svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("net.pt --plot net.jpg", "ends in .png or .svg"),
        ("net.pt --plot net", "ends in .png or .svg"),
        ("net.pt --plot nowhere/net.svg", "make it first"),
        ("other.pt --plot net.svg", "of none of our architectures"),
        ("net.pt --arch arch.py:plain --plot net.svg", "runs nothing"),
        ("nowhere.pt --plot net.svg", "No such file"),
        ("net.pt --arch deepid --plot net.svg", "refused"),
        ("text.txt --plot net.svg", "refused"),
    ],
)
def test_mistakes(place: Path, shell: Shell, arguments: str, said: str) -> None:
    before = files_in(place)
    done = shell("inspect", *arguments.split())
    assert done.code == 3
    assert said in done.err
    assert done.err.count("\n") == 1
    assert files_in(place) == before


def test_a_range_that_the_file_does_not_tell_is_called_a_guess(place: Path, shell: Shell) -> None:
    assert "the file does not say how pixels are scaled" in shell("inspect", "net.pt", "--arch", "mlp").out
    assert "how pixels are scaled" not in shell("inspect", "net.pt").out  # nor of what shape they are
    net = load_classifier(place / "net.pt", arch="mlp")
    export_net(net, place / "net.safetensors")  # has its input with it
    assert "how pixels are scaled" not in shell("inspect", "net.safetensors").out


def test_weights_that_fit_several_architectures_ask_which(
    place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodnet.models.inspect_file.matching", lambda _state: ("cnn", "mlp"))
    done = shell("inspect", "net.pt", "--plot", "net.svg")
    assert (done.code, done.out) == (3, "")
    assert "fit cnn and mlp; say which with --arch" in done.err


def test_no_half_picture_is_left(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "net.svg").write_text("mine")
    before = files_in(place)

    def full(_self: Path, _target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    assert shell("inspect", "net.pt", "--plot", "net.svg", "--overwrite").code != 0
    assert files_in(place) == before


def test_the_real_nets(shared_data: Path, place: Path, shell: Shell) -> None:
    nets = {
        "faces/nets/sunglasses_bd_weights.h5": {
            "conv_1",
            "conv_4",
            "fc_1",
            "add",
            "1,283 classes",
            "601,643 parameters",
        },
        "cifar10/nets/grid_target0_wrn16_1.pth": {"conv1", "block2.layer.0.convShortcut", "10 classes"},
        "gtsrb/nets/badnets_target8_small_vgg.pth": {"features.0", "classifier", "43 classes"},
    }
    for name, wanted in nets.items():
        assert shell("inspect", shared_data / name, "--plot", "net.svg", "--overwrite").code == 0
        drawn = " ".join(word or "" for word in words(place / "net.svg"))
        assert all(one in drawn for one in wanted)
