"""Each program of others behind its adapter, where `make peers` has installed them: in both states, on nets so small
that they take seconds. One net has a pixel for its trigger, the other is of random weights and has a convolution."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli_support import TARGET
from goodnet import peer_bench
from goodnet.models.arch import build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.peer_bench import run_peers
from goodnet.peer_record import ANSWERED, AS_RELEASED, FAILED, PeerRow
from goodnet.peers.registry import PEERS
from goodnet.repair_subjects import Subject
from test_repair_bench import subject

pytestmark = pytest.mark.slow
PYTHON = Path(os.environ.get("GOODNET_PEERS_PYTHON", Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"))


@pytest.fixture(scope="module")
def python() -> str:
    if not PYTHON.is_file():
        pytest.skip(f"no other programs at {PYTHON}: `make peers` installs them")
    return str(PYTHON)


@pytest.fixture
def rows(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Rows of a program on the net with the pixel, or with `random` on the other."""

    def of(name: str, *, random: bool = False, limit: float = 60.0) -> list[PeerRow]:
        package = PEERS[name].package
        if package:
            code = f"from importlib import metadata; metadata.version({package!r})"
            if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
                pytest.skip(f"{package} is not installed beside {python}")

        def ours(*_: object) -> Iterator[Subject]:
            one = subject(tmp_path)
            yield replace(one, net=_random()) if random else one

        monkeypatch.setattr(peer_bench, "subjects", ours)
        record = run_peers(
            tmp_path, tmp_path, tmp_path / "out", nets=["ours"], peers=[name], python=python, limit=limit
        )
        return list(record.rows)

    return of


def _random() -> Classifier:
    recipe = Recipe(arch="cnn", options={"classes": 10, "hidden": 32})
    torch.manual_seed(0)
    return Classifier(net=build(recipe), input=InputSpec(channels=1, height=28, width=28), classes=10, recipe=recipe)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("art-neural-cleanse", "NotImplementedError: Only Keras classifiers are supported for this defence."),
        ("trojanvision-neural-cleanse", ""),
        ("trojanvision-tabor", ""),
    ],
)
def test_an_inspection_says_what_it_flags_and_fails_as_released(rows, name: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    released, patched = rows(name)
    if reason:
        assert (released.state, released.outcome, released.reason) == (AS_RELEASED, FAILED, reason)
    assert released.version
    assert (patched.outcome, patched.reason) == (ANSWERED, "")
    assert (patched.done, patched.total) == (10, 10)
    assert patched.verdict == ("suspect" if patched.flagged else "clean")
    if name == "art-neural-cleanse" and patched.flagged:
        assert [one.name for one in patched.figures] == ["unlearning", "pruning", "filtering"]


def test_backdoormbti_searches_once_what_it_lacks_is_stood_in_for(rows) -> None:  # type: ignore[no-untyped-def]
    released, patched = rows("backdoormbti-neural-cleanse", limit=90.0)
    assert released.outcome == FAILED
    assert patched.reason == ""
    assert patched.done
    if patched.outcome == ANSWERED:
        assert TARGET in patched.flagged


@pytest.mark.parametrize("name", ["art-strip", "nullsec-strip"])
def test_a_guard_answers_every_image(rows, name: str) -> None:  # type: ignore[no-untyped-def]
    for row in rows(name):
        assert (row.outcome, row.reason) == (ANSWERED, "")
        (figures,) = row.figures
        assert figures.detection is not None
        assert figures.fpr is not None


def test_a_filter_of_training_data_points_at_some(rows) -> None:  # type: ignore[no-untyped-def]
    """Two clusters of each class, the smaller of them taken for poison: by design there is always one."""
    (row,) = rows("art-activation-defence")
    assert (row.outcome, row.reason) == (ANSWERED, "")
    assert row.found.n == 120 // 9
    assert row.falsely.value > 0
    (row,) = rows("aegis-activation-clustering")
    assert (row.outcome, row.reason) == (ANSWERED, "")
    assert row.falsely.n == 120


def test_trojanvision_prunes_and_tunes_any_net_with_a_convolution(rows) -> None:  # type: ignore[no-untyped-def]
    _, patched = rows("trojanvision-fine-pruning", random=True, limit=90.0)
    assert patched.reason == ""
    if patched.outcome == ANSWERED:
        (figures,) = patched.figures
        assert figures.acc.value > 0.3  # random weights are right once in ten


def test_goodnet_itself_finds_and_repairs_it(rows) -> None:  # type: ignore[no-untyped-def]
    (row,) = rows("goodnet")
    assert (row.outcome, row.verdict, row.flagged) == (ANSWERED, "suspect", (TARGET,))
    assert row.figures[0].asr.value < 0.1
