"""How fast a scan is: against the machine, against the plain Neural Cleanse loop, and over the number of labels.

The plain loop is what one writes from the paper (`goodnet.plain_loops`): one label after the other, 300 steps of 32
images, everything through autograd and torch.optim.Adam, default memory layout. All runs are on a DeepID that was
trained on a few drawn people and whose head was widened to as many labels as are wanted, in turn on one machine, so
that only ratios count. (Random weights and noise would not do: such a net's answers hang on the last bit, and no scan
would take bfloat16 for it.)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from goodnet import memory
from goodnet.about import environment
from goodnet.attacks.train import fresh, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.models.arch.deepid import DeepID
from goodnet.models.classifier import Classifier, Recipe
from goodnet.models.twin import has_bfloat16, twin
from goodnet.plain_loops import BATCH, STEPS, reverse
from goodnet.progress import Progress, silent
from goodnet.scan import scan
from goodnet.speed_record import EngineSpeed, ScanSpeed, SpeedRecord
from goodnet.staged import Staged
from goodnet.triggers.blocks import block_size
from goodnet.triggers.inversion import Schedule, invert

BLOCKS = (16, 32, 64, 128, 256)
COMPARED = 1283
_PEOPLE, _EACH = 12, 10


def run_speed(
    *,
    labels: Sequence[int] = (256, COMPARED, 5000),
    plain_labels: int = 8,
    plain_steps: int = STEPS,
    method: Staged | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> SpeedRecord:
    """Measures all of it.

    Args:
        labels: sizes of the nets to scan whole; the plain loop is compared with the one nearest to 1283.
        plain_labels: labels that the plain loop is measured on.
        plain_steps: of the plain loop; fewer than 300 are extrapolated, too.
        method: the scan; `Staged()` by default.
    """
    net = _net(COMPARED)
    images = _faces(_EACH).tensor()
    flops = 2 * flops_forward(net.net, images[:1])  # the gradient to the input costs as much again
    peak = matmul_rate()
    say(f"fp32 matmul {peak / 1e9:.0f} GFLOP/s; {flops / 1e6:.1f} MFLOP an image, forward and gradient to the input")
    engine = []
    for precision in ("float32", "bfloat16") if has_bfloat16(torch.device("cpu")) else ("float32",):
        stand_in = twin(net, images, precision=precision).classifier
        for block in BLOCKS:
            rate = engine_rate(stand_in, images, block)
            picked = block == block_size(stand_in)
            engine.append(
                EngineSpeed(precision=precision, block=block, picked=picked, images_per_second=rate,
                            share_of_matmul=rate * flops / peak)
            )  # fmt: skip
            progress("engine", len(engine), 2 * len(BLOCKS))
    plain = _plain_rate(images, plain_labels, plain_steps, progress)
    say(f"plain loop {plain:,.0f} images a second, over {plain_labels} labels")
    compared = min(labels, key=lambda count: abs(count - COMPARED))
    scans = []
    for count in sorted(labels):
        scans.append(_scan(count, method or Staged(), progress))
        say(f"{count} labels: {scans[-1].seconds:.0f} s, {scans[-1].peak_mib:.0f} MiB")
    plain_seconds = compared * STEPS * BATCH / plain
    return SpeedRecord(
        matmul_flops=peak,
        image_flops=flops,
        engine=tuple(engine),
        plain_images_per_second=plain,
        plain_labels=plain_labels,
        plain_seconds=plain_seconds,
        compared_labels=compared,
        times_faster=plain_seconds / next(row.seconds for row in scans if row.labels == compared),
        scans=tuple(scans),
        environment=environment(net, command),
    )


def engine_rate(net: Classifier, images: Tensor, block: int) -> float:
    """Images a second through the engine: the best of three runs of 32 labels."""
    classes = torch.full((len(images),), net.classes - 1)
    schedule = Schedule(steps=12, batch=16)
    seconds = min(timed(lambda: invert(net, images, classes, range(32), schedule, seed=0, block=block)) for _ in "123")
    return 32 * 12 * 16 / seconds


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
    """Best of ten fp32 products of 2048x2048, in FLOP/s."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(10))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plain_rate(images: Tensor, labels: int, steps: int, progress: Progress) -> float:
    net = DeepID(classes=COMPARED).eval().requires_grad_(False)  # in PyTorch's own memory layout
    net.load_state_dict(_net(COMPARED).net.state_dict())
    images = images.contiguous()
    seconds = timed(lambda: reverse(net, images, range(labels), steps=steps, progress=progress))
    return labels * steps * BATCH / seconds


def _scan(labels: int, method: Staged, progress: Progress) -> ScanSpeed:
    """A whole scan of a DeepID with so many outputs."""
    record = scan(_net(labels), _faces(_EACH), method=method, progress=progress)
    return ScanSpeed(
        labels=labels, seconds=record.seconds, forward_passes=record.forward_passes, peak_mib=memory.peak() / 2**20
    )


def _net(labels: int) -> Classifier:
    """The trained net with as many labels: further ones have the people's weights, each in another order."""
    trained = _trained()
    net = DeepID(classes=labels)
    state = trained.net.state_dict()
    random = np.random.default_rng(0)
    weight, bias = (state[f"output.{name}"].numpy() for name in ("weight", "bias"))
    more = [random.permutation(weight[label % _PEOPLE]) for label in range(_PEOPLE, labels)]
    state["output.weight"] = torch.from_numpy(np.stack([*weight, *more])[:labels])
    state["output.bias"] = torch.from_numpy(np.resize(bias, labels))
    net.load_state_dict(state)
    recipe = Recipe(arch="deepid", options={"classes": labels})
    return Classifier(net=net, input=trained.input, classes=labels, recipe=recipe, name=f"deepid, {labels} labels")


@functools.cache
def _trained() -> Classifier:
    recipe = Recipe(arch="deepid", options={"classes": _PEOPLE})
    net = fresh(lambda: DeepID(classes=_PEOPLE), seed=0)
    return train(net, _faces(20 * _EACH), recipe=recipe, classes=_PEOPLE, epochs=8, seed=0)


def _faces(each: int) -> Images:
    return draw_faces(identities=_PEOPLE, per_identity=each, seed=each).images
