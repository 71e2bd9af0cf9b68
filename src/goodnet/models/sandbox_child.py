"""The process that reads a stranger's file for another one, under limits, and hands over data alone.

Its answer is one safetensors file: tensors, and JSON in the metadata. A net is handed over as `goodnet export` keeps
it, tensors and the recipe of known layers, which the other process reads as it reads any such file: with suspicion.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodnet.errors import UnsafeFileError
from goodnet.models.limits import Limits, confine, leave

if TYPE_CHECKING:
    from torch import Tensor

ANSWER = "answer"  # of the metadata
NET, TENSORS, NEITHER = "net", "tensors", "neither"


def main(request: Mapping[str, Any]) -> None:
    """Reads the file that `request` names and writes what is in it, or why not, to the file `answer`.

    Args:
        request: `file`, `options` (LoadOptions), `bare` (`load.read_here`), `limits`, `answer`, `parent` (its
            process id).
    """
    with open(request["answer"], "wb") as out:  # while writing is still allowed
        missing = leave(request["parent"])
        import safetensors.torch

        from goodnet.models import load  # noqa: F401 (so that its memory is not counted)

        missing += confine(Limits(**request["limits"]))
        try:
            about, tensors, metadata = _read(request)
        except MemoryError:
            message = f"{request['file']}: reading it takes more memory than it may; refused"
            about = {"format": "", "error": UnsafeFileError.__name__, "message": message}
            tensors, metadata = {}, {}
        about["unlimited"] = list(missing)
        try:
            out.write(safetensors.torch.save(tensors, {**metadata, ANSWER: json.dumps(about)}))
            out.flush()
        except OSError as error:
            print(f"{os.path.dirname(request['answer'])}: {error.strerror}", file=sys.stderr)
            sys.exit(1)


def _read(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """What the file is and holds, its tensors, and the rest of the metadata."""
    from goodnet.models import load
    from goodnet.models.formats import LoadOptions
    from goodnet.models.goodnet_file import file_content
    from goodnet.models.weights import own_tensors

    tuples: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in request["options"].items()
    }
    content = load.read_here(Path(request["file"]), LoadOptions(**tuples), bare=request["bare"])
    about: dict[str, Any] = {"format": content.format}
    if content.error is not None:
        return {**about, "error": type(content.error).__name__, "message": str(content.error)}, {}, {}
    if content.classifier is not None:
        tensors, metadata = file_content(content.classifier)
        return {**about, "kind": NET}, tensors, metadata
    if content.tensors is not None:
        # the file that they cross in is sorted
        about |= {"kind": TENSORS, "notes": list(content.notes), "order": list(content.tensors)}
        return about, own_tensors(content.tensors), {}
    return {**about, "kind": NEITHER}, {}, {}
