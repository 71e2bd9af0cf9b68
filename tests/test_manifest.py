"""Manifests: what a row says, what the command line says for the others, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli_support import Shell
from goodnet.cli.manifest import COLUMNS, read_manifest
from goodnet.errors import UsageError


def manifest(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_column_is_read_as_its_option(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "\ufeffModel,clean,arch,classes,input-range,mean,std,input_shape,data-range,labels\r\n"
        'a.pt,c.npz,mlp,10,0..255,"0.1,0.2,0.3",0.5,"3,8,8",0..1,"0,2-4"\r\n'
        "\r\n"
        "/b.pt,,sub/code.py:net,,,,,,,\r\n",
    )
    assert read_manifest(path) == [
        (2, {"name": "a.pt", "model": str(tmp_path / "a.pt"), "clean": str(tmp_path / "c.npz"), "arch": "mlp",
             "classes": 10, "input_range": "0..255", "mean": (0.1, 0.2, 0.3), "std": (0.5,), "input_shape": (3, 8, 8),
             "data_range": "0..1", "labels": (0, 2, 3, 4)}),
        (4, {"name": "/b.pt", "model": "/b.pt", "arch": str(tmp_path / "sub/code.py:net")}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", f"expected columns model and, as needed, {', '.join(COLUMNS[1:])}; got no column model"),
        ("clean,arch\nc,mlp\n", "got no column model"),
        ("model,colour\na,red\n", "got 'colour'"),
        ("model,arch,arch\na,,\n", "got arch twice"),
        ("model\n", "expected a row a net"),
        ("model,arch\n\n,\n", "expected a row a net"),
        ("model,arch\n,mlp\n", "line 2: expected a model, got an empty cell"),
        ("model,mean\na,0.1,0.2\n", "line 2: expected at most 2 cells, got 3; quote"),
        ("model,mean\na,grey\n", "line 2: mean: expected a number"),
        ("model,classes\na,ten\n", "line 2: classes: expected a whole number"),
        ("model,input-range\na,0..1000\n", "line 2: input-range: expected 0..1 or 0..255"),
        ("model,labels\na,5-1\n", "line 2: labels: expected whole numbers"),
        ("model,input-shape\na,28x28\n", "line 2: input-shape: expected channels"),
        ("model\na.pt\nb.pt\n./a.pt\n", "line 4: expected each net once, but line 2 names the same"),
        ('model\n"a\n', "expected comma-separated values"),
        ("model\na\0b\n", "NUL"),
        (b"model\n\xff\xfe\n", "expected a manifest in UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = manifest(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_manifest(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_say_more_than_the_command_line(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from goodnet.fleet import run
    from goodnet.fleet.processes import Outcome

    jobs: dict[str, Any] = {}

    def run_each(given: Any, at_once: int, tick: Any = None) -> Any:
        for job in given:
            jobs[job.net.name] = job
            yield job, Outcome(error="seen")

    monkeypatch.setattr(run, "run_each", run_each)
    (place / "other.npz").write_bytes((place / "clean.npz").read_bytes())
    manifest(place, 'model,clean,arch,std,labels\nbad.pt,other.npz,,2,"1,2"\nclean.pt,,deepid,,\n')
    more = ("--arch", "mlp", "--clean", "clean.npz", "--std", "0.5", "--labels", "0-3", "--seed", "7", "--no-preflight")
    done = shell("scan", "list.csv", *more, "--json")
    assert [one["clean"] for one in done.json["nets"]] == [str(place / "other.npz"), str(place / "clean.npz")]
    bad, clean = jobs["bad.pt"].net, jobs["clean.pt"].net
    assert (bad.load.arch, bad.load.std, bad.labels) == ("mlp", (2.0,), (1, 2))
    assert (clean.load.arch, clean.load.std, clean.labels) == ("deepid", (0.5,), (0, 1, 2, 3))
    assert bad.command == (
        "goodnet", "scan", "bad.pt", "--clean", "other.npz", "--arch", "mlp", "--std", "2", "--labels", "1,2", "--seed",
        "7", "--no-preflight",
    )  # fmt: skip


def test_a_row_out_of_range_or_without_images_is_an_error_of_the_whole(place: Path, shell: Shell) -> None:
    manifest(place, 'model,input-shape\nbad.pt,\nclean.pt,"2,8,8"\n')
    done = shell("scan", "list.csv", "--clean", "clean.npz")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("goodnet: list.csv, line 3: input shape: expected C,H,W")
    manifest(place, "model,clean\nbad.pt,clean.npz\nclean.pt,\n")
    assert shell("scan", "list.csv").err.startswith("goodnet: list.csv, line 3: no clean images")
    manifest(place, "model,clean\nbad.pt,clean.npz\nclean.pt,nowhere.npz\n")
    rows = shell("scan", "list.csv", "--plan", "--json", "--arch", "mlp").json["nets"]
    assert {row["name"]: row["status"] for row in rows} == {"bad.pt": "waiting", "clean.pt": "refused"}
