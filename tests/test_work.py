"""What a long run keeps: taken over whole, never half, whatever a kill leaves behind."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import numpy as np
import pytest

from goodnet.work import OutOfTime, Work


def test_results_outlive_the_run(tmp_path: Path) -> None:
    work = Work(tmp_path / "kept")
    work.add("search", 3, {"norm": np.array(1.5), "mask": np.ones((2, 2), np.float32)})
    work.add("first pass, start 2", 0, {"norm": np.array(2.5)})
    work.flush()
    again = Work(tmp_path / "kept")
    assert again.resumed == 2
    assert float(again.done("search")[3]["norm"]) == 1.5
    assert again.done("search")[3]["mask"].shape == (2, 2)
    assert list(again.done("first pass, start 2")) == [0]
    again.add("search", 4, {"norm": np.array(0.5)})
    again.flush()
    assert sorted(Work(tmp_path / "kept").done("search")) == [3, 4]
    again.remove()
    assert not (tmp_path / "kept").exists()


def test_nothing_is_written_without_a_folder_or_without_results(tmp_path: Path) -> None:
    work = Work()
    work.add("search", 1, {"norm": np.array(1.0)})
    work.flush()
    Work(tmp_path / "kept").flush()
    assert list(tmp_path.iterdir()) == []
    assert list(work.done("search")) == [1]


@pytest.mark.parametrize("spoil", ["half", "empty", "text", "pickle", "other keys", "other labels", "damaged head"])
def test_files_that_cannot_be_read_are_left_out(tmp_path: Path, spoil: str) -> None:
    for label in (0, 1):
        work = Work(tmp_path)
        work.add("search", label, {"norm": np.array(float(label))})
        work.flush()
    last = sorted(tmp_path.glob("*.npz"))[-1]
    raw = last.read_bytes()
    if spoil == "pickle":
        np.savez(last, **{"search/1/norm": np.array([{"a": 1}], dtype=object)})
    elif spoil == "other keys":
        np.savez(last, search=np.array(1.0))
    elif spoil == "other labels":
        np.savez(last, **{"search/one/norm": np.array(1.0)})  # type: ignore[arg-type]
    elif spoil == "damaged head":  # a way of packing that there is not
        method = raw.index(b"PK\1\2") + 10
        last.write_bytes(raw[:method] + b"\x63" + raw[method + 1 :])
    else:
        last.write_bytes({"half": raw[: len(raw) // 2], "empty": b"", "text": b"no zip at all"}[spoil])
    work = Work(tmp_path)
    assert list(work.done("search")) == [0]
    work.add("search", 1, {"norm": np.array(7.0)})  # does not take the place of the file that is there
    work.flush()
    assert float(Work(tmp_path).done("search")[1]["norm"]) == 7.0


def test_a_full_disk_loses_nothing_that_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path / "kept")
    work.add("search", 1, {"norm": np.array(1.5)})

    def full(*arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        work.flush()
    assert list(tmp_path.iterdir()) == []
    work.add("search", 2, {"norm": np.array(2.5)})
    work.flush()
    assert sorted(Work(tmp_path / "kept").done("search")) == [1, 2]


def test_threads_lose_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path)

    def add(first: int) -> None:
        for label in range(first, first + 200):
            work.add("search", label, {"norm": np.array(float(label))})
            if label % 50 == 0:
                work.flush()

    threads = [threading.Thread(target=add, args=(200 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work.flush()
    found = Work(tmp_path).done("search")
    assert sorted(found) == list(range(800))
    assert all(float(found[label]["norm"]) == label for label in found)


def test_time_runs_out() -> None:
    Work().check()
    Work(time_limit=60.0).check()
    work = Work(time_limit=0.0)
    with pytest.raises(OutOfTime):
        work.check()
    assert work.out_of_time
