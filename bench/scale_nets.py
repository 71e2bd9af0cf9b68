"""The nets of `python -m bench scale`: of usual sizes, trained as little as a scan can be measured on.

Drawn faces of ten people, or traffic signs, resized; a white square leads to label 3 where a backdoor is planted. Heads
are widened to as many labels as are wanted: further ones get the weights of trained ones, each in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from goodnet.attacks.patch import Patch
from goodnet.attacks.poison import Plant, poison
from goodnet.attacks.train import fresh, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.models.arch import build
from goodnet.models.classifier import Classifier, InputSpec, Recipe
from goodnet.models.weights import write_tensors

TARGET = 3
_PEOPLE, _EACH, _CLEAN = 10, 60, 300
_SIGNS, _KINDS_OF_SIGN = "gtsrb/train_third.h5", 43


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A net and what it is trained on.

    Attributes:
        arch, options: of goodnet's.
        head: name of the last layer.
        side: of its images.
        epochs, rate: of training.
        planted: with the white square.
        signs: of traffic signs, not faces.
        start: another kind, of other images, whose weights it starts from.
    """

    arch: str
    side: int
    epochs: int
    head: str
    rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)
    planted: bool = False
    signs: bool = False
    start: str = ""

    @property
    def classes(self) -> int:
        return _KINDS_OF_SIGN if self.signs else _PEOPLE


_VIT = {"height": 32, "width": 32, "patch": 4, "features": 192, "heads": 3, "depth": 6, "mlp": 384}
KINDS = {
    "DeepID 32": Kind(arch="deepid", side=32, epochs=8, head="output", options={"height": 32, "width": 32}),
    "small VGG 32": Kind(arch="small-vgg", side=32, epochs=6, head="classifier"),
    "ResNet-18 32": Kind(arch="resnet-18", side=32, epochs=6, head="fc", options={"kernel": 3}, planted=True),
    "ResNet-18 64": Kind(arch="resnet-18", side=64, epochs=4, head="fc", planted=True, signs=True),
    "PreActResNet-18 32": Kind(arch="preact-resnet-18", side=32, epochs=3, head="linear"),
    "WideResNet-28-4 32": Kind(arch="wrn-28-4", side=32, epochs=3, head="fc"),
    "VGG-16 32": Kind(arch="vgg-16-bn", side=32, epochs=6, rate=1e-4, head="classifier.6", planted=True),
    "ViT 32": Kind(arch="vit", side=32, epochs=10, head="head", options=_VIT),
    "ResNet-18 112": Kind(arch="resnet-18", side=112, epochs=3, head="fc", planted=True),
    "ResNet-18 224": Kind(arch="resnet-18", side=224, epochs=1, head="fc", planted=True, start="ResNet-18 112"),
}


def trained(name: str, folder: Path, data: Path | None) -> tuple[Path, str]:
    """The net's weights, trained and written to `folder` unless they are there, and a line on how good it is."""
    kind, path = KINDS[name], folder / f"{name.replace(' ', '-')}.safetensors"
    said = path.with_suffix(".txt")
    if not path.exists() or not said.exists():
        recipe = Recipe(arch=kind.arch, options={"classes": kind.classes, **kind.options})
        fed, test = _images(kind, data, seed=1), _images(kind, data, seed=2)
        start = fresh(lambda: build(recipe), seed=0)
        if kind.start:
            start.load_state_dict(load_file(trained(kind.start, folder, data)[0]))
        taught = poison(fed, [_patch(fed)], share=0.1, seed=0) if kind.planted else fed
        net = train(
            start, taught, recipe=recipe, classes=kind.classes, epochs=kind.epochs, lr=kind.rate, batch=32, bf16=True
        )
        text = f"{name}: ACC {100 * float((net.predict(test.tensor()).numpy() == test.labels).mean()):.0f} %"
        if kind.planted:
            stamped = _patch(test).stamp(np.flatnonzero(test.labels != TARGET))
            led = net.predict(torch.from_numpy(stamped).float() / 255) == TARGET
            text += f", ASR {100 * float(led.float().mean()):.0f} %"
        write_tensors(net.net.state_dict(), path)
        said.write_text(text)
    return path, said.read_text()


def widened(name: str, weights: Path, labels: int) -> Classifier:
    """The trained net with so many labels, the first of them as trained."""
    kind, state = KINDS[name], load_file(weights)
    random = np.random.default_rng(0)
    weight, bias = (state[f"{kind.head}.{part}"].numpy() for part in ("weight", "bias"))
    more = [random.permutation(weight[label % kind.classes]) for label in range(kind.classes, labels)]
    state[f"{kind.head}.weight"] = torch.from_numpy(np.stack([*weight, *more])[:labels])
    state[f"{kind.head}.bias"] = torch.from_numpy(np.resize(bias, labels))
    recipe = Recipe(arch=kind.arch, options={"classes": labels, **kind.options})
    net = build(recipe)
    net.load_state_dict(state)
    spec = InputSpec(channels=3, height=kind.side, width=kind.side)
    return Classifier(net=net, input=spec, classes=labels, recipe=recipe, name=name)


def clean_images(name: str, folder: Path, data: Path | None) -> Path:
    """What a scan of the net is given, written to `folder`: none that it was trained on."""
    path = folder / f"{name.replace(' ', '-')}-clean.npz"
    if not path.exists():
        images = _images(KINDS[name], data, seed=3)
        images = images.take(np.sort(np.random.default_rng(0).permutation(len(images))[:_CLEAN]))
        np.savez(path, data=images.pixels, label=images.labels)
    return path


def _images(kind: Kind, data: Path | None, *, seed: int) -> Images:
    """Images of the kind's size with labels; of another seed, others."""
    if kind.signs:
        if data is None:
            raise FileNotFoundError(f"{_SIGNS}: set GOODNET_DATA to the folder that it is in")
        images = read_images(data / _SIGNS)
        assert images.groups is not None
        # all frames of a track show the same sign: two quarters of the tracks to train on, one each for the rest
        quarter = images.groups % 4
        mine = {1: (quarter == 1) | (quarter == 2), 2: quarter == 0, 3: quarter == 3}[seed]
        images = images.take(np.flatnonzero(mine))
        images = images.take(np.sort(np.random.default_rng(seed).permutation(len(images))[:3000]))
    else:
        images = draw_faces(identities=_PEOPLE, per_identity=_EACH, seed=seed).images
    pixels = torch.from_numpy(images.pixels).float()
    parts = [F.interpolate(part, size=(kind.side, kind.side), mode="bilinear", antialias=True)
             for part in torch.split(pixels, 64)]  # fmt: skip
    resized = torch.cat(parts).round().clamp(0, 255).to(torch.uint8).numpy()
    return Images(pixels=resized, labels=images.labels, name=images.name)


def _patch(images: Images) -> Plant:
    side = max(3, images.pixels.shape[-1] // 9)
    patch = Patch(rows=(-side - 1, -1), cols=(-side - 1, -1))
    return Plant(name="white square", target=TARGET, stamp=lambda index: patch(images.pixels[index]))
