"""The small repair without which torchvision stops where its compiled part does not fit torch's."""

from __future__ import annotations

import torch

_kept: list[torch.library.Library] = []


def declare() -> None:
    """Declares the two operators that torchvision describes to torch while it is imported; without them it stops.

    Nothing implements them, so nothing may call them; they last as long as this process.
    """
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept.append(library)
