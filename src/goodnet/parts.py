"""What a defender has, split so that nothing judges what it was used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from goodnet.data.images import Images
from goodnet.data.splits import split
from goodnet.measure import answer
from goodnet.models.classifier import Classifier
from goodnet.tuning import Labelled


class Parts:
    """Clean images, strangers' and known poison, each in three: to fit, to choose, to judge.

    Clean images without labels have the net's own answers for classes. Strangers (surrogate images) of one group or
    class are in one part.

    Args:
        poisoned: sets of known poison.
        learns: whether a method is to learn from a part of each; otherwise all of them judges.
        seed: of all splits.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Images,
        surrogate: Images | None = None,
        poisoned: Sequence[Images] = (),
        *,
        learns: bool = False,
        seed: int,
    ):
        parts = split(images, seed=seed)
        classes = torch.from_numpy(answer(classifier, images) if images.labels is None else images.labels)
        self.fit: Labelled = (images.take(parts.fit).tensor(), classes[parts.fit])
        self.choose: Labelled = (images.take(parts.choose).tensor(), classes[parts.choose])
        self.judge = images.take(parts.judge)
        self.judge_labelled: Labelled = (self.judge.tensor(), classes[parts.judge])
        self.surrogate_fit: Tensor | None = None
        self.surrogate_choose: Tensor | None = None
        self.surrogate_judge: Images | None = None
        if surrogate is not None:
            groups = surrogate.labels if surrogate.groups is None else surrogate.groups  # a stranger is in one part
            surrogate = replace(surrogate, labels=None, groups=groups)
            cut = split(surrogate, seed=seed)
            self.surrogate_fit = surrogate.take(cut.fit).tensor()
            self.surrogate_choose = surrogate.take(cut.choose).tensor()
            self.surrogate_judge = surrogate.take(cut.judge)
        present = [part if part.trigger_present is None else part.take(part.trigger_present) for part in poisoned]
        self.poisoned_fit: list[Tensor] = []
        self.poisoned_choose: list[Tensor] = []
        self.poisoned_judge = present
        if learns:
            cuts = [split(part, seed=seed) for part in present]
            self.poisoned_fit = [part.take(cut.fit).tensor() for part, cut in zip(present, cuts)]
            self.poisoned_choose = [part.take(cut.choose).tensor() for part, cut in zip(present, cuts)]
            self.poisoned_judge = [part.take(cut.judge) for part, cut in zip(present, cuts)]
