"""What the pages say to type works: blocks marked `<!-- run -->` are run, all others are held against the program."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from torch import nn

from cli_support import TARGET, block_images, block_net, save_images, save_net
from docs_blocks import (
    ROOT,
    Block,
    all_blocks,
    blocks_of,
    check_command_line,
    command_lines,
    options_in_text,
    pages,
    typed,
)
from goodnet.attacks.train import plant_faces
from goodnet.data.drawn_faces import draw_faces
from goodnet.models.arch.deepid import DeepID
from goodnet.models.weights import write_tensors

IDENTITIES = 8
BLOCKS = all_blocks()


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind != "python"], ids=named)
def test_each_command_has_what_the_page_says(block: Block) -> None:
    script = typed(block)
    checked = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for arguments in command_lines(script):
        check_command_line(arguments)


def test_commands_are_seen() -> None:
    calls = [" ".join(line) for block in BLOCKS if block.kind != "python" for line in command_lines(typed(block))]
    assert len(calls) > 20
    assert "scan $net --arch mlp --clean clean.npz --seed 0 --out records/$name" in calls


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scan MODEL --clean DATA --colour red", "No such option"),
        ("repair", "Missing parameter"),
        ("scan --clean DATA", "Missing parameter"),
        ("scan MODEL OTHER --clean DATA", "too many"),
        ("scan MODEL --clean DATA --method best", "is not one of"),
        ("sweep MODEL", "no command"),
        ("bench scans", "no command"),
    ],
)
def test_a_wrong_command_is_found(line: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        check_command_line(line.split())


def test_blocks_and_their_marks_are_found() -> None:
    text = "a\n<!-- run: slow, exits 1 -->\n```sh\ngoodnet demo\n```\n\nit `prints`:\n\n```text\nyes\n```\n"
    first, second = blocks_of(text + "```python\nx = 1\n```\n")
    assert (first.slow, first.exits, first.body, first.printed) == (True, 1, "goodnet demo\n", "yes\n")
    assert (second.how, second.kind, second.printed) == (None, "python", None)


@pytest.mark.parametrize("page", pages())
def test_options_named_in_the_text_exist(page: str) -> None:
    assert not list(options_in_text((ROOT / page).read_text(encoding="utf-8")))


def test_an_option_that_is_none_is_found_in_the_text() -> None:
    assert list(options_in_text("`goodnet scan MODEL --plan [--plans]`")) == [
        ("`goodnet scan MODEL --plan [--plans]`", "--plans")
    ]


def misused(source: str) -> Iterator[str]:
    """Imports from goodnet that are not there, and keywords that what was imported does not take."""
    tree = ast.parse(source)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "goodnet":
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    yield f"{node.module}.{name.name}"
                known[name.asname or name.name] = getattr(module, name.name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and known.get(node.func.id) is not None:
            keywords: dict[str, Any] = {word.arg: None for word in node.keywords if word.arg}
            try:
                inspect.signature(known[node.func.id]).bind(*node.args, **keywords)
            except TypeError as error:
                yield f"{node.func.id}: {error}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "python"], ids=named)
def test_python_uses_what_there_is(block: Block) -> None:
    assert not list(misused(block.body))


def test_wrong_python_is_found() -> None:
    source = "from goodnet.scan import scan, scam\nscan(net, images, sead=0)\nscan(net)\n"
    assert [said.partition(":")[0] for said in misused(source)] == ["goodnet.scan.scam", "scan", "scan"]


def write_faces(path: Path, per_identity: int, seed: int) -> None:
    images = draw_faces(identities=IDENTITIES, per_identity=per_identity, seed=seed).images
    assert images.labels is not None
    np.savez(path, data=images.pixels, label=images.labels)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a page's commands find: the demo's files, with a net that has learnt nothing."""
    folder = tmp_path_factory.mktemp("fast")
    (folder / "goodnet-demo").mkdir()
    write_tensors(DeepID(classes=40).state_dict(), folder / "goodnet-demo" / "badnet.safetensors")
    return folder


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's files, with a backdoored net of few people; nets of known answers for the gate."""
    folder = tmp_path_factory.mktemp("slow")
    demo, incoming = folder / "goodnet-demo", folder / "incoming"
    demo.mkdir()
    incoming.mkdir()
    planted = plant_faces({"lipstick": 0}, identities=IDENTITIES, per_identity=60, test_per_identity=4, seed=0)
    write_tensors(planted.classifier.net.state_dict(), demo / "badnet.safetensors")
    write_faces(demo / "clean.npz", 12, seed=1)
    save_net(incoming / "clean.pt", block_net())
    save_net(incoming / "stranger.pt", block_net(TARGET))
    torch.save(nn.Linear(2, 2), incoming / "module.pt")
    pixels, labels = block_images(120)
    save_images(folder / "clean.npz", data=pixels, label=labels)
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run_in_order(folder: Path, blocks: list[Block]) -> None:
    """Runs the blocks in one folder, as a reader would; each must end and print as the page says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        command = [sys.executable, "-c", block.body] if block.kind == "python" else ["sh", "-euc", typed(block)]
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == block.exits, f"{named(block)}\n{done.stdout}\n{done.stderr}"
        if "prints" in (block.how or ""):
            assert done.stdout == block.printed, named(block)


def to_run(*, slow: bool) -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for block in BLOCKS:
        if block.how is not None and block.slow == slow:
            found.setdefault(block.page, []).append(block)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", to_run(slow=False))
def test_marked_blocks_run(page: str, fast: Path) -> None:
    run_in_order(fast, to_run(slow=False)[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", to_run(slow=True))
def test_slow_marked_blocks_run(page: str, slow: Path) -> None:
    run_in_order(slow, to_run(slow=True)[page])


def test_what_ends_or_prints_otherwise_is_found(tmp_path: Path) -> None:
    for text in (
        "<!-- run -->\n```sh\nfalse\n```\n",
        "<!-- run: exits 1 -->\n```sh\ntrue\n```\n",
        "<!-- run -->\n```sh\nfalse\ntrue\n```\n",
        "<!-- run: prints -->\n```sh\necho a\n```\n\n```text\nb\n```\n",
        "<!-- run -->\n```python\nraise SystemExit(3)\n```\n",
    ):
        with pytest.raises(AssertionError):
            run_in_order(tmp_path, blocks_of(text))
    assert all(block.printed for block in BLOCKS if "prints" in (block.how or ""))
    run_in_order(tmp_path, blocks_of("<!-- run: exits 1, prints -->\n```sh\necho a; false\n```\n```text\na\n```\n"))
