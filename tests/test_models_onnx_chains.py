"""Chains of tensor operators drawn at random, as no exporter writes them: onnxruntime's logits, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from goodnet.errors import ModelError
from goodnet.models.load import load_classifier
from test_models_onnx import f32, i64, model, saved, weights

SHAPE = (2, 3, 4, 6)  # of what the chain starts with; two images
BATCH = 2
Constants = dict[str, np.ndarray[Any, Any]]
Step = tuple[str, dict[str, Any], list[np.ndarray[Any, Any]], tuple[int, ...], int]
"""Operator, settings, constants, the shape that it gives, and which axis counts images (by which runs, all told)."""


def transpose(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    order = draw.sample(range(len(shape)), len(shape))
    return "Transpose", {"perm": order}, [], tuple(shape[axis] for axis in order), order.index(at)


def join_axes(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    """Two neighbours become one, that of the images among them; -1 stands for it."""
    if len(shape) < 3:
        return part_axis(draw, shape, at)
    first = draw.randrange(len(shape) - 1)
    new = (*shape[:first], shape[first] * shape[first + 1], *shape[first + 2 :])
    place = at if at <= first else at - 1
    said = [-1 if axis == place else side for axis, side in enumerate(new)]
    return "Reshape", {}, [i64(*said)], new, place


def part_axis(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    """Of an axis that does not count images, a divisor."""
    axis = draw.choice([axis for axis in range(len(shape)) if axis != at])
    side = draw.choice([d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0])
    new = (*shape[:axis], side, shape[axis] // side, *shape[axis + 1 :])
    place = at + (axis < at)
    return "Reshape", {}, [i64(*(-1 if a == place else s for a, s in enumerate(new)))], new, place


def cut(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    axes = [axis for axis, side in enumerate(shape) if axis != at and side > 1]
    axis = draw.choice(axes) if axes else 0
    start = draw.randrange(shape[axis]) if axes else 0
    length = len(range(start, shape[axis], 2)) if axes else shape[axis]
    new = (*shape[:axis], length, *shape[axis + 1 :])
    return "Slice", {}, [i64(start), i64(1 << 40), i64(axis), i64(2 if axes else 1)], new, at


def mean(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    axis = draw.choice([axis for axis in range(len(shape)) if axis != at])
    keep = draw.random() < 0.5 or len(shape) < 4
    new = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
    return "ReduceMean", {"axes": [axis], "keepdims": int(keep)}, [], new, at - (not keep and axis < at)


def offset(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    sides = [1 if axis == at or draw.random() < 0.3 else side for axis, side in enumerate(shape)]
    return draw.choice(["Add", "Mul", "Sub"]), {}, [weights(*sides[draw.randrange(2) * (at > 0) :])], shape, at


def product(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    if at == len(shape) - 1:
        return transpose(draw, shape, at)
    units = draw.randint(1, 4)
    return "MatMul", {}, [weights(shape[-1], units)], (*shape[:-1], units), at


def softmax(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    return "Softmax", {"axis": draw.choice([axis for axis in range(len(shape)) if axis != at])}, [], shape, at


def norm(draw: random.Random, shape: tuple[int, ...], at: int) -> Step:
    if at == len(shape) - 1:
        return transpose(draw, shape, at)
    return "LayerNormalization", {}, [weights(shape[-1]), weights(shape[-1])], shape, at


STEPS: list[Callable[[random.Random, tuple[int, ...], int], Step]] = [
    transpose, transpose, join_axes, join_axes, part_axis, cut, mean, offset, product, softmax, norm,
]  # fmt: skip


def chain(seed: int) -> Any:
    """Ends with images first and all else in a row, and a linear layer."""
    draw = random.Random(seed)
    shape, at, name = SHAPE, 0, "centred"
    nodes, constants = [helper.make_node("Sub", ["x", "half"], [name])], {"half": f32(0.5)}
    for count in range(draw.randint(4, 9)):
        op, settings, arrays, shape, at = draw.choice(STEPS)(draw, shape, at)
        names = [f"c{count}_{i}" for i in range(len(arrays))]
        constants |= dict(zip(names, arrays))
        nodes.append(helper.make_node(op, [name, *names], [f"y{count}"], **settings))
        name = f"y{count}"
    nodes.append(helper.make_node("Transpose", [name], ["t"], perm=[at, *(a for a in range(len(shape)) if a != at)]))
    nodes.append(helper.make_node("Reshape", ["t", "flat"], ["f"]))
    constants |= {"flat": i64(BATCH, -1), "last": weights(5, int(np.prod(shape)) // BATCH)}
    nodes.append(helper.make_node("Gemm", ["f", "last"], ["out"], transB=1))
    return model(nodes, constants, shape=(BATCH, *SHAPE[1:]))


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.thorough) for block in (1, 2, 3))])
def test_random_chains_are_right_or_refused(block: int, tmp_path: Path) -> None:
    x = np.random.default_rng(block).random(SHAPE, np.float32)
    right = refused = 0
    for seed in range(60 * block, 60 * block + 60):
        proto = chain(seed)
        expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
        path = saved(tmp_path / "net.onnx", proto)
        try:
            found = load_classifier(path).logits(torch.from_numpy(x)).numpy()
        except ModelError:
            refused += 1
            continue
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3, err_msg=f"seed {seed}")
        right += 1
    assert right >= 15, (right, refused)
