"""torch.export's archives. The cases are test_models_export.py's, which reads them in its own process."""

from __future__ import annotations

import functools
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from hostile.case import Case
from hostile.pickles import Evil
from test_models_export import HOSTILE, export, replace, rewritten


@functools.cache
def whole() -> bytes:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 6, 5), nn.Softmax(1))
    with tempfile.TemporaryDirectory() as folder:
        return export(net, Path(folder) / "net.pt2").read_bytes()


def _make(change: Callable[[dict[str, bytes]], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "whole").write_bytes(whole())
        path = rewritten(folder / "whole", folder / "net.pt2", change)
        (folder / "whole").unlink()
        return path

    return make


def _inputs(members: dict[str, bytes]) -> None:
    replace("data/sample_inputs/model.pt", pickle.dumps(Evil()))(members)


def _unpickle(path: Path) -> object:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return pickle.loads(archive.read("net/data/sample_inputs/model.pt"))


CASES = [
    *(
        Case(name=name, kind="torch.export", make=_make(change), message=message, slow=True)
        for name, (change, _, message) in HOSTILE.items()
    ),
    Case(name="sample inputs that run code", kind="torch.export", make=_make(_inputs), message="", fire=_unpickle,
         slow=True),
]  # fmt: skip
