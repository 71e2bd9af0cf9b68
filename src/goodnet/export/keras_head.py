"""What decides on class N (`goodnet.models.goodnet`), in stock Keras layers alone.

A maximum over classes is a global max pool; "which class is it" is 1 for the first of the largest logits and 0 for all
others, by rectifiers steep enough to make any difference of two float32 logits 0 or 1; "take the score of that class"
is a product with it. So every answer is the same, ties included, on every backend of Keras.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from goodnet.export.keras_plan import Plan, Value
from goodnet.models.goodnet import FilterHead, WatchHead

LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a watched net has found: logits (K,), 0 for the best; which of them it is; 1 if that is watched; score of
    class N."""

    below: Value
    answer: Value
    watched: Value
    score: Value


def below_best(plan: Plan, logits: Value) -> Value:
    """Logits less the largest of them."""
    return plan.add("Subtract", logits, plan.largest(logits))


def answer(plan: Plan, below: Value) -> Value:
    """1 for the first class whose logit is the best, 0 for the others."""
    tied = plan.at_zero(below)
    (classes,) = below.shape
    place = plan.scaled(tied, [float(classes - k) for k in range(classes)], 0.0)
    first = plan.add("Subtract", place, plan.largest(place))  # whole numbers
    return plan.add("ReLU", plan.scaled(first, 1.0, 1.0))


def disagreement(plan: Plan, bad: Value, good: Value, threshold: float) -> Value:
    """`GoodNet`, from the logits of both nets."""
    below = below_best(plan, good)
    over = _beyond(plan, below, answer(plan, below_best(plan, bad)), threshold)
    apart = plan.add("Add", over, plan.scaled(plan.positive(over), 2.0, -1.0))
    return joined(plan, below, apart)


def filtered(plan: Plan, head: FilterHead, features: Value, name: str) -> Value:
    """`FilterHead`."""
    below = below_best(plan, _output(plan, head, features, name))
    scores = plan.dense(features, head.directions, -head.offsets, f"{name}_directions")
    return joined(plan, below, plan.largest(scores))


def watched(plan: Plan, head: WatchHead, features: Value, name: str) -> Watched:
    """What `WatchHead` looks at."""
    below = below_best(plan, _output(plan, head, features, name))
    is_answer = answer(plan, below)
    groups = torch.arange(len(head.offsets))[:, None] == head.groups[None]
    own = plan.dense(is_answer, groups.float(), name=f"{name}_group")
    is_watched = plan.dense(is_answer, (head.groups >= 0).float()[None], name=f"{name}_watched")
    scores = plan.dense(features, head.directions, -head.offsets, f"{name}_directions")
    taken = plan.dense(plan.add("Multiply", own, scores), torch.ones(1, len(head.offsets)), name=f"{name}_score")
    score = plan.add("Add", taken, plan.scaled(is_watched, 1.0, -1.0))
    return Watched(below=below, answer=is_answer, watched=is_watched, score=score)


def second_opinion(plan: Plan, first: Watched, good: Value, threshold: float | None) -> Value:
    """`SecondOpinion`: the twin's logits where the answer is watched, the watched net's elsewhere."""
    second = below_best(plan, good)
    score = first.score
    if threshold is not None:
        score = plan.add("Maximum", score, _beyond(plan, second, first.answer, threshold))
    twins = plan.add("Multiply", second, first.watched)
    own = plan.add("Multiply", first.below, plan.scaled(first.watched, -1.0, 1.0))
    return joined(plan, plan.add("Add", own, twins), score)


def joined(plan: Plan, below: Value, score: Value) -> Value:
    """Class N's logit beside the others."""
    return plan.add("Concatenate", below, score, shape=(below.shape[0] + 1,), name=LOGITS, axis=-1)


def _beyond(plan: Plan, below: Value, is_answer: Value, threshold: float) -> Value:
    """By how much these logits prefer their own best to another net's answer, less the threshold."""
    gap = plan.largest(plan.scaled(plan.add("Multiply", below, is_answer), -1.0, 0.0))
    return plan.scaled(gap, 1.0, -threshold)


def _output(plan: Plan, head: FilterHead | WatchHead, features: Value, name: str) -> Value:
    return plan.dense(features, head.output.weight, head.output.bias, name)
