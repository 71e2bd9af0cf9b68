"""GoodNet: a BadNet and its repaired twin behind one N+1-way output, class N meaning "this input is triggered".

The two agree on clean images. Where the backdoor was removed from one of them, a trigger makes them disagree: so
strong disagreement is answered with class N (the competition's own design of a repaired net).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GoodNet(nn.Module):
    """Prepared input (N, C, H, W) -> logits (N, classes + 1), the repaired net's best class at 0.

    The score of an input is how much the repaired net prefers its own answer to the BadNet's, in logits: 0 where both
    answer the same. Class N wins exactly where score > threshold; otherwise the repaired net answers.

    Args:
        bad: the net as it came.
        good: the repaired net; same input and classes.
        threshold: in logits, >= 0; 0 refuses whenever the two answers differ.
    """

    def __init__(self, *, bad: nn.Module, good: nn.Module, threshold: float = 0.0):
        super().__init__()
        self.bad = bad
        self.good = good
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        good = self.good(x)
        good = good - good.amax(1, keepdim=True)
        over = -good.gather(1, self.bad(x).argmax(1, keepdim=True)) - self.threshold
        # at least 1 off the best class, which stands at 0: no rounding decides, however large the nets' logits are
        return torch.cat([good, torch.where(over > 0, over + 1, over - 1)], 1)
