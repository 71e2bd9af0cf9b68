from __future__ import annotations

import pytest
import torch

from goodnet.errors import DataError, UsageError
from goodnet.models.classifier import Classifier
from goodnet.triggers.generator import GeneratorSchedule, _clean_margin, _Training, train_generator
from nets import Linear, classifier_of, linear, small_cnn

SHAPE = (1, 8, 8)
QUICK = GeneratorSchedule(turns=60, batch=16)


def shortcut(classes: int, target: int, row: int, column: int) -> Classifier:
    """A linear net whose classes are told apart over all pixels; the target also by one pixel of great weight."""
    weight = torch.randn(classes, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.3
    weight -= weight.mean((1, 2, 3), keepdim=True)
    bias = torch.zeros(classes)
    weight[target, 0, row, column], bias[target] = 14.0, -7.0
    return classifier_of(Linear(weight, bias), SHAPE, classes)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.15


@pytest.mark.parametrize("shape", [(1, 9, 14), (3, 12, 10), (3, 55, 47)])
def test_masks_and_triggered_images_have_the_images_shape_and_range(shape: tuple[int, int, int]) -> None:
    net = small_cnn(shape, 5)
    x = torch.rand(6, *shape)
    made = train_generator(net, x, torch.arange(6) % 5, [3, 1], GeneratorSchedule(turns=2, batch=4), seed=0)
    mask, pattern = made.masks(x, 1)
    assert mask.shape == (6, 1, *shape[1:])
    assert pattern.shape == x.shape
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    triggered = made.apply(x, 1)
    assert torch.allclose(triggered, x * (1 - mask) + mask * pattern, atol=1e-6)
    assert made.trigger(3).mask.shape == (1, *shape[1:])
    with pytest.raises(UsageError, match="trained for"):
        made.apply(x, 0)


def test_the_short_cut_is_found_where_it_is_and_needs_least() -> None:
    """The linear net's cheapest way to the target is that one pixel, made white: known without any search."""
    net = shortcut(8, target=2, row=1, column=6)
    x, others = images(96), images(40, seed=5)
    made = train_generator(net, x, net.predict(x), range(8), QUICK, seed=0)
    sizes = {label: float(made.masks(others, label)[0].sum((1, 2, 3)).mean()) for label in range(8)}
    trigger = made.trigger(2)
    assert min(sizes, key=lambda label: sizes[label]) == 2
    assert int(trigger.mask.argmax()) == 1 * 8 + 6
    assert float(trigger.pattern[0, 1, 6]) > 0.8
    assert float((net.predict(made.apply(others, 2)) == 2).double().mean()) > 0.8


def test_blocks_and_threads_do_not_matter() -> None:
    net, x = small_cnn((3, 12, 10), 11), torch.rand(24, 3, 12, 10)
    y = torch.arange(24) % 11
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            schedule = GeneratorSchedule(turns=3, batch=8, block=16)
            made.append(train_generator(net, x, y, range(11), schedule, seed=4).apply(x, 5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_gradients_of_blocks_are_those_of_the_loss_written_out() -> None:
    net, x = linear(SHAPE, 6), images(12)
    training = _Training(net, x, net.predict(x), [4, 2], GeneratorSchedule(batch=3), 0, None)
    index, slots, chosen = torch.tensor([0, 5, 7, 2]), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0])
    hits, grads = training.gradients(index, slots, chosen)
    rows = training.table[chosen].clone().requires_grad_()
    total = torch.zeros(())
    for i, slot in zip(index.tolist(), slots.tolist()):
        target = [4, 2][int(chosen[slot])]
        planes = training.generator(x[i : i + 1], rows[slot : slot + 1])[0]
        mask, pattern = planes[..., 0], planes[..., 1]
        z = net.logits(((1 - mask) * x[i, 0] + mask * pattern)[None, None])[0]
        margin = (max(z[j] for j in range(6) if j != target) - z[target]) / training.unit
        total = total + torch.clamp(margin, min=-0.1) + mask.mean() * 1.0
    expected = torch.autograd.grad(total, [*training.weights, rows])
    assert len(hits) == 4
    for got, want in zip(grads, expected):
        assert torch.allclose(got, want, atol=1e-5)


def test_the_unit_of_margins_is_the_median_gap_to_the_second_logit() -> None:
    net, x = linear(SHAPE, 6), images(11)
    gaps = [sorted(z.tolist())[-1] - sorted(z.tolist())[-2] for z in net.logits(x)]
    assert _clean_margin(net, x) == pytest.approx(sorted(gaps)[5], rel=1e-5)


def test_going_on_from_a_generator_leaves_it_alone_and_starts_where_it_ended() -> None:
    net, x = shortcut(8, 2, 1, 6), images(96)
    first = train_generator(net, x, net.predict(x), range(8), QUICK, seed=0)
    given = [value.clone() for value in first.generator.state_dict().values()]
    second = train_generator(net, x, net.predict(x), [2, 5], GeneratorSchedule(turns=1), seed=0, start=first)
    assert all(torch.equal(a, b) for a, b in zip(given, first.generator.state_dict().values()))
    assert second.labels == (2, 5)
    assert float((net.predict(second.apply(x, 2)) == 2).double().mean()) > 0.8


def test_images_of_the_target_do_not_count() -> None:
    net = linear(SHAPE, 4)
    x = images(5)
    with pytest.raises(DataError, match="all 5 images are of label 1"):
        train_generator(net, x, torch.ones(5, dtype=torch.int64), [0, 1], QUICK, seed=0)
    training = _Training(net, x, torch.tensor([0, 1, 1, 2, 3]), [1], QUICK, 0, None)
    assert training.pools[0].tolist() == [0, 3, 4]
    with pytest.raises(DataError, match="at least one clean image"):
        train_generator(net, x[:0], torch.ones(0, dtype=torch.int64), [0], QUICK, seed=0)
    with pytest.raises(UsageError, match="at least one label"):
        train_generator(net, x, torch.arange(5) % 4, [], QUICK, seed=0)
    with pytest.raises(UsageError, match="turns"):
        GeneratorSchedule(turns=0)
