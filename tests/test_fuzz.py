"""Every reader on damaged files: what it reads or one named error, no crash, no hang, no code, no noise.

`python -m tests.fuzz` runs the same for as long as one likes; docs/fuzzing.md has what the long runs gave.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import pytest

from fuzz import drive, seeds, structure
from fuzz.fakes import FAULTS
from fuzz.mutate import damage, json_value
from fuzz.targets import TARGETS, Inputs
from fuzz.worker import judge
from goodnet.errors import DataError

READERS = [target for target in TARGETS if target != "fakes"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files of every target whose library is there."""
    folder = tmp_path_factory.mktemp("files")
    for target in READERS:
        try:
            seeds.make(target, folder / target)
        except ImportError as error:
            print(f"{target} is left out: {error}")
    return folder


def survived(inputs: int, files: Path, out: Path, seed: int) -> None:
    jobs = [(target, 0, inputs) for target in READERS if any((files / target).iterdir())]
    assert len(jobs) > 10
    for target, outcome in drive.run(jobs, files=files, out=out, seed=seed).items():
        assert outcome.faults == [], f"{target}; the inputs are kept in {out}/faults"
        assert (outcome.inputs, outcome.read + outcome.refused) == (inputs, inputs), target
        assert outcome.read > 0, target
        assert outcome.refused > 0 or target == "work", target  # a checkpoint that cannot be read is left out


@pytest.mark.slow
def test_readers_survive_damaged_files(files: Path, tmp_path: Path) -> None:
    survived(40, files, tmp_path, seed=0)


@pytest.mark.slow(last=True)
def test_readers_survive_more_damaged_files(files: Path, tmp_path: Path) -> None:
    survived(300, files, tmp_path, seed=1)


@pytest.mark.slow
def test_every_fault_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "fakes"
    folder.mkdir(parents=True)
    for name in FAULTS:
        (folder / name).write_bytes(b"x")
    inputs = Inputs("fakes", folder, 3)
    drawn = {inputs.make(index)[0]: index for index in range(100)}
    assert set(drawn) == set(FAULTS)
    drawn = {index: name for name, index in drawn.items()}
    outcome = drive.run(
        [("fakes", index, index + 1) for index in sorted(drawn)],
        files=tmp_path / "files",
        out=tmp_path / "out",
        seed=3,
        extra=("fuzz.fakes",),
        cpu_seconds=1.0,
    )["fakes"]
    found = {int(fault.partition(":")[0]): fault.partition(": ")[2] for fault in outcome.faults}
    harmless = ("0-whole", "1-refused", "d-sleeps")
    assert set(found) == {index for index, name in drawn.items() if name not in harmless}
    says = {"2-error": "KeyError", "3-long": "not one line", "4-says": "said: something", "5-memory": "took",
            "6-asks": "asked for more", "7-hangs": "took more than", "8-system": "os.system", "9-eval": "exec",
            "a-opens": "open", "b-writes": "open", "c-crash": "signal 11"}  # fmt: skip
    for index, what in found.items():
        assert says[drawn[index]] in what
    assert (outcome.inputs, outcome.read, outcome.refused) == (len(FAULTS), 2, 1)
    kept = {file.read_bytes() for file in (tmp_path / "out" / "faults").rglob("*") if file.is_file()}
    assert kept == {b"x!"}
    assert not Path("made-by-a-reader").exists()


def test_the_same_seed_makes_the_same_inputs(files: Path) -> None:
    for target in ("goodnet", "npz", "pictures", "records"):
        one, same, other = (Inputs(target, files / target, seed) for seed in (5, 5, 6))
        made = [one.make(index) for index in range(40)]
        assert made == [same.make(index) for index in range(40)]
        assert made != [other.make(index) for index in range(40)]
        changed = [content not in one.all for _, content in made]
        assert sum(changed) > 30


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_parts_keep_their_frames(files: Path) -> None:
    """Zips stay zips whose sums fit, chunks of a PNG likewise, messages are written anew byte for byte."""
    rng = Random(0)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as whole:
        whole.writestr("a", b"content " * 30)
    for _ in range(50):
        with zipfile.ZipFile(io.BytesIO(structure.zipped(damage)(archive.getvalue(), rng, []))) as damaged:
            assert damaged.testzip() is None
    png = (files / "pictures" / "rgb.png").read_bytes()
    assert all(structure.picture(png, rng, []).startswith(png[:8]) for _ in range(50))
    message = (files / "onnx" / "none--mean.onnx").read_bytes()
    fields = structure._fields(message)
    assert len(fields) > 2
    assert b"".join(map(structure._field, fields)) == message


def test_json_is_changed_in_a_copy() -> None:
    value = {"a": [1, {"b": "c"}], "d": None}
    rng = Random(0)
    made = [json_value(value, rng) for _ in range(50)]
    assert value == {"a": [1, {"b": "c"}], "d": None}
    assert sum(one != value for one in made) > 40


def test_a_refusal_is_one_short_line() -> None:
    def refuse(words: str) -> None:
        raise DataError(words)

    assert judge(lambda: refuse("expected this, got that")) == ("refused", "expected this, got that")
    assert all(judge(lambda words=words: refuse(words))[0] == "fault" for words in ("", "a" * 1001))
