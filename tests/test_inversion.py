from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from goodnet.errors import DataError, UsageError
from goodnet.triggers.inversion import Schedule, invert
from goodnet.triggers.trigger import Trigger
from nets import Linear, classifier_of, linear, small_cnn


def images_for(classifier, count=24, seed=1):  # type: ignore[no-untyped-def]
    x = torch.rand(count, *classifier.input.shape, generator=torch.Generator().manual_seed(seed))
    return x, classifier.predict(x)


def test_trigger_applies_as_defined() -> None:
    mask = torch.rand(1, 4, 3)
    trigger = Trigger(mask=mask, pattern=torch.rand(3, 4, 3), target=0)
    x = torch.rand(5, 3, 4, 3)
    assert torch.allclose(trigger.apply(x), (1 - mask) * x + mask * trigger.pattern, atol=1e-6)
    assert trigger.norm == pytest.approx(float(mask.sum()))
    with pytest.raises(UsageError, match="expected mask"):
        Trigger(mask=torch.zeros(2, 4, 3), pattern=torch.zeros(3, 4, 3), target=0)


def test_smallest_trigger_of_a_linear_net() -> None:
    """Grey images, margin(x') = bias + w . x': each pixel of full mask gains a known amount; the optimum fills the
    best pixels first (a fractional knapsack)."""
    shape, random = (3, 6, 5), torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=random)
    weight[:, 2, 3] = torch.tensor([9.0, -8.0, 7.0])
    weight[:, 4, 1] = torch.tensor([-5.0, 6.0, 5.0])
    gain = 0.5 * weight.abs().sum(0).flatten().sort(descending=True).values
    grey = torch.full((16, *shape), 0.5)
    need = float(gain[0] + 0.6 * gain[1])
    bias = -need - 0.5 * float(weight.sum())
    net = Linear(torch.stack([torch.zeros(shape), weight]), torch.tensor([0.0, bias]))
    classifier = classifier_of(net, shape, 2)
    optimum = 1.6

    schedule = Schedule(steps=600, batch=4)
    (found,) = invert(classifier, grey, torch.zeros(16, dtype=torch.int64), [1], schedule, seed=0)

    assert found.success
    assert (classifier.predict(found.trigger.apply(grey)) == 1).all()
    assert optimum - 1e-3 <= found.trigger.norm <= 1.15 * optimum
    best = found.trigger.mask[0].flatten().argsort(descending=True)[:2].tolist()
    assert set(best) == {2 * 5 + 3, 4 * 5 + 1}


def slow_inversion(classifier, x, classes, label, schedule, start, batches):  # type: ignore[no-untyped-def]
    """One label, one image set, everything through autograd and torch.optim: Neural Cleanse as one would write it."""
    raw = start.clone().requires_grad_()
    adam = torch.optim.Adam([raw], lr=schedule.learning_rate, betas=schedule.betas)
    weight, hits, misses, recent, best, best_norm = 0.0, 0, 0, [], None, float("inf")
    for index in batches:
        both = (torch.tanh(raw) + 1) / 2
        mask, pattern = both[:1], both[1:]
        logits = classifier.logits((1 - mask) * x[index] + mask * pattern)
        targets = torch.full((len(index),), label)
        asr = float((logits.argmax(1) == targets).float().mean())
        norm = float(mask.detach().sum())
        recent.append(asr)
        lately = recent[-schedule.patience :]
        kept = sum(lately) / schedule.patience >= schedule.keep_asr - 1e-6 and asr >= schedule.asr
        if kept and norm < best_norm:
            best, best_norm = both.detach().clone(), norm
        loss = F.cross_entropy(logits, targets) + weight * mask.sum()
        adam.zero_grad()
        (raw.grad,) = torch.autograd.grad(loss, raw)
        adam.step()
        hits, misses = (hits + 1, 0) if asr >= schedule.asr else (0, misses + 1)
        if hits >= schedule.patience:
            weight, hits = (weight * schedule.up if weight else schedule.first_weight), 0
        elif misses >= schedule.patience:
            weight, misses = weight / schedule.down, 0
    return best, best_norm, raw.detach()


@pytest.mark.parametrize("block", [4, 6, 13, 64])  # under a batch of 6, that goes through the net in parts
def test_batched_engine_equals_the_slow_loop(block: int) -> None:
    from goodnet.triggers.inversion import Search

    classifier = small_cnn()
    x, classes = images_for(classifier)
    schedule = Schedule(steps=40, batch=6, first_weight=0.02, patience=2)
    labels = [4, 0, 2]
    successes = 0
    found = invert(classifier, x, classes, labels, schedule, seed=5, block=block)
    for label, result in zip(labels, found):
        search = Search(classifier, x, classes, [label], schedule, 5)
        start = search.start(0).raw[0].permute(2, 0, 1)
        best, norm, final = slow_inversion(classifier, x, classes, label, schedule, start, search.batches[0])
        assert torch.allclose(result.final, final, atol=2e-3)
        assert result.success == (best is not None)
        if best is not None:
            successes += 1
            assert result.trigger.norm == pytest.approx(norm, rel=1e-3)
            assert torch.allclose(torch.cat([result.trigger.mask, result.trigger.pattern]), best, atol=2e-3)
    assert successes


def test_a_label_does_not_hang_on_its_neighbours() -> None:
    classifier = small_cnn()
    x, classes = images_for(classifier)
    schedule = Schedule(steps=25, batch=4)
    together = invert(classifier, x, classes, [0, 1, 2, 3, 4], schedule, seed=2)
    alone = invert(classifier, x, classes, [3], schedule, seed=2)[0]
    again = invert(classifier, x, classes, [4, 3], schedule, seed=2)[1]
    for other in (alone, again):
        assert torch.equal(together[3].trigger.mask, other.trigger.mask)
        assert torch.equal(together[3].trigger.pattern, other.trigger.pattern)
    different = invert(classifier, x, classes, [3], schedule, seed=3)[0]
    assert not torch.equal(alone.trigger.mask, different.trigger.mask)


def test_best_successful_mask_is_kept_not_the_last() -> None:
    """A weight that jumps far up drives the last mask to failure; the result must still be a success."""
    classifier = linear((1, 5, 5), 3)
    x, classes = images_for(classifier)
    schedule = Schedule(steps=80, batch=8, first_weight=50.0, patience=1, up=10.0, down=1.0)
    (found,) = invert(classifier, x, classes, [1], schedule, seed=0)
    last = (torch.tanh(found.final[:1]) + 1) / 2
    assert found.success
    assert found.trigger.norm > float(last.sum())
    attacked = x[classes != 1]
    assert (classifier.predict(found.trigger.apply(attacked)) == 1).float().mean() > 0.8


def test_images_of_the_target_do_not_count() -> None:
    classifier = small_cnn()
    x, _ = images_for(classifier)
    classes = torch.zeros(len(x), dtype=torch.int64)
    classes[:3] = 1
    from goodnet.triggers.inversion import Search

    search = Search(classifier, x, classes, [1], Schedule(steps=9, batch=5), 0)
    search.start(0)
    assert set(search.batches[0].flatten().tolist()) == set(range(3, len(x)))
    with pytest.raises(DataError, match="all 24 images are of label 1"):
        invert(classifier, x, torch.ones(24, dtype=torch.int64), [1], Schedule(steps=1), seed=0)
    with pytest.raises(DataError, match="got none"):
        invert(classifier, x[:0], classes[:0], [1], Schedule(steps=1), seed=0)


def test_nothing_is_left_behind() -> None:
    classifier = small_cnn()
    x, classes = images_for(classifier)
    before = {k: v.clone() for k, v in classifier.net.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    invert(classifier, x, classes, [0, 1], Schedule(steps=3, batch=4), seed=0)
    assert all(torch.equal(before[k], v) for k, v in classifier.net.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in classifier.net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    assert not classifier.net.training


def test_an_error_in_the_net_stops_all_threads_and_comes_out() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken net")

    classifier = classifier_of(Broken(), (1, 4, 4), 3)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="broken net"):
        invert(classifier, torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64), [1, 2], Schedule(steps=3), seed=0)
    assert threads == torch.get_num_threads()


def test_schedule_is_checked() -> None:
    with pytest.raises(UsageError, match="steps"):
        Schedule(steps=0)
    with pytest.raises(UsageError, match="asr"):
        Schedule(asr=1.5)
