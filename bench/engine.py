"""The inversion engine against the plain Neural Cleanse loop and against the machine, in one run.

The plain loop is what one writes from the paper: one label after the other, 32 images a step, everything through
autograd and torch.optim.Adam, default memory layout. Both run on the same DeepID with 1283 outputs (random weights:
speed does not depend on them) and the same images. Prints images a second through forward and backward, the ratio,
and the share of this machine's measured fp32 matrix rate that the engine reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodnet.attacks.train import fresh
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.triggers.inversion import Schedule, invert

CLASSES = 1283


def main() -> None:
    net = fresh(lambda: DeepID(classes=CLASSES), seed=0)
    spec = InputSpec(channels=3, height=55, width=47)
    classifier = Classifier(net=net, input=spec, classes=CLASSES, recipe=Recipe(arch="deepid"))
    images = torch.rand(96, 3, 55, 47, generator=torch.Generator().manual_seed(0))
    plain_net = fresh(lambda: DeepID(classes=CLASSES), seed=0).eval().requires_grad_(False)
    labels, steps = 32, 12

    rates: dict[str, list[float]] = {"plain loop": [], "engine": []}
    for _ in range(3):  # in turn, so that a drift of the machine hits both
        seconds = timed(lambda: plain_loop(plain_net, images, labels=2, steps=steps))
        rates["plain loop"].append(2 * steps * 32 / seconds)
        classes = torch.full((96,), CLASSES - 1)
        schedule = Schedule(steps=steps, batch=16)
        seconds = timed(lambda: invert(classifier, images, classes, range(labels), schedule, seed=0))  # noqa: B023
        rates["engine"].append(labels * steps * 16 / seconds)
    peak = matmul_rate()
    flops = 2 * flops_forward(plain_net, images[:1])  # backward to the input costs as much again
    print(f"threads {torch.get_num_threads()}, fp32 matmul {peak / 1e9:.0f} GFLOP/s, "
          f"{flops / 1e6:.1f} MFLOP an image forward + input gradient")  # fmt: skip
    for name, found in rates.items():
        middle = sorted(found)[1]
        share = middle * flops / peak
        print(f"{name:<11} {middle:>7.0f} images/s  {1e3 / middle:.2f} ms an image  {share:.0%} of the matmul rate  "
              f"(min {min(found):.0f}, max {max(found):.0f})")  # fmt: skip
    print(f"engine / plain loop: {sorted(rates['engine'])[1] / sorted(rates['plain loop'])[1]:.2f}")


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain_loop(net: nn.Module, images: Tensor, *, labels: int, steps: int) -> None:
    """Neural Cleanse as one writes it from the paper."""
    for label in range(labels):
        mask = torch.randn(1, 55, 47).requires_grad_()
        pattern = torch.randn(3, 55, 47).requires_grad_()
        adam = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        target = torch.full((32,), label)
        for step in range(steps):
            x = images[torch.arange(step * 32, step * 32 + 32) % len(images)]
            m, p = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
            loss = F.cross_entropy(net((1 - m) * x + m * p), target) + 1e-3 * m.sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()


def flops_forward(net: nn.Module, x: Tensor) -> float:
    """Multiply-adds of convolutions and linear layers, times two, for one image."""
    total = 0.0

    def count(module: nn.Module, _inputs: object, out: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += 2 * weight[0].numel() * out[0].numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return total


def matmul_rate() -> float:
    """Best of five fp32 products of 2048x2048, in FLOP/s."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(5))


if __name__ == "__main__":
    main()
