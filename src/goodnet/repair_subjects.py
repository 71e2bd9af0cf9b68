"""The nets of others that repairs and guards are measured on: what their defender has, and what only measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from goodnet.csaw import NETS as FACE_NETS
from goodnet.csaw import TRIGGERS, Faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import UsageError
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier

NOTE_JPEG = "test images are lossy, so ACC before is lower than published"
_SHARE = 0.05  # of the training images of signs and CIFAR-10: the defender's
_OTHERS: dict[str, tuple[str, str, str]] = {  # folder, file, architecture
    "gtsrb-badnets": ("gtsrb", "badnets_target8_small_vgg.pth", "small-vgg"),
    "gtsrb-trojan": ("gtsrb", "trojan_wm_target2_small_vgg.pth", "small-vgg"),
    "cifar10-badnets": ("cifar10", "badnets_target8_small_vgg.pth", "small-vgg"),
    "cifar10-grid": ("cifar10", "grid_target0_wrn16_1.pth", "wrn-16-1"),
}
NETS = (*FACE_NETS, *_OTHERS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One net, what its defender has, and what it is measured on.

    Attributes:
        clean, surrogate: the defender's.
        test, poisoned, strangers: for measuring alone; poisoned sets by trigger.
        painted_on_clean: triggers whose set is painted on `clean` itself.
        ceiling: a clean net of the same task, whose RA under a trigger no repair can exceed.
        note: what a reader has to know.
    """

    name: str
    net: Classifier
    clean: Images
    test: Images
    poisoned: Mapping[str, Images]
    surrogate: Images | None = None
    strangers: Images | None = None
    painted_on_clean: Sequence[str] = ()
    ceiling: Classifier | None = None
    note: str = ""
    true_targets: tuple[int, ...] = field(default=())

    @property
    def images(self) -> tuple[Images, ...]:
        """All of them."""
        given = (self.clean, self.surrogate, self.test, *self.poisoned.values(), self.strangers)
        return tuple(images for images in given if images is not None)


def in_order(nets: Sequence[str]) -> list[str]:
    """As `subjects` gives them."""
    return [name for name in nets if name in FACE_NETS] + [name for name in nets if name not in FACE_NETS]


def subjects(data: Path, nets: Sequence[str], seed: int) -> Iterator[Subject]:
    """The nets asked for, one at a time."""
    if any(name in FACE_NETS for name in nets):
        faces = Faces.read(data / "faces")
        clean_net = load_classifier(data / "faces" / "nets" / FACE_NETS["clean"], arch="deepid")
        surrogate, strangers = _halves(read_images(data / "faces" / "lfw_158_people.h5"))
        for name in nets:
            if name in FACE_NETS:
                sets = {trigger: faces.poisoned[file] for trigger, file in TRIGGERS[name].items()}
                yield Subject(
                    name=name,
                    net=load_classifier(data / "faces" / "nets" / FACE_NETS[name], arch="deepid"),
                    clean=faces.clean,
                    test=faces.test,
                    poisoned=sets,
                    surrogate=surrogate,
                    strangers=strangers,
                    painted_on_clean=[trigger for trigger in sets if name != "sunglasses" and name != "clean"],
                    ceiling=clean_net,
                    true_targets=() if name == "clean" else tuple(int(_first(part)) for part in sets.values()),
                )
    for name in nets:
        if name in _OTHERS:
            yield _other(data, name, seed)


def _halves(images: Images) -> tuple[Images, Images]:
    """Two sets of which no person is in both, in a fixed order; labels become groups, which they are."""
    assert images.labels is not None
    people = np.random.default_rng(0).permutation(np.unique(images.labels))
    first = np.isin(images.labels, people[: len(people) // 2])
    grouped = replace(images, labels=None, groups=images.labels)
    return grouped.take(first), replace(grouped.take(~first), groups=None)


def _first(images: Images) -> int:
    assert images.labels is not None
    return int(images.labels[0])


def _other(data: Path, name: str, seed: int) -> Subject:
    folder, file, arch = _OTHERS[name]
    path = data / folder / "nets" / file
    if not path.is_file():
        raise UsageError(f"bench repair: expected {path}, and it is not there; pass --data DIR")
    net = load_classifier(path, arch=arch)
    signs = folder == "gtsrb"
    train = read_images(data / folder / ("train_third.h5" if signs else "lossless_4000.h5"))
    test = read_images(data / folder / ("test_4000.h5" if signs else "test_jpeg_2000.h5"))
    count = round(_SHARE * (len(train) if signs else 50000))
    clean = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[:count]))
    target, paint = _painter(data, name)
    return Subject(
        name=name,
        net=net,
        clean=clean,
        test=test,
        poisoned={name.split("-")[1]: _painted(test, target, paint)},
        note="" if signs else NOTE_JPEG,
        true_targets=(target,),
    )


def _painter(data: Path, name: str) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """The attacker's own trigger, as published: its target, and what paints it on images (N, C, H, W) in [0, 1]."""

    def square(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, 27:31, 27:31] = 1
        return x

    def grid(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for row, marks in zip((31, 30, 29), ((1, 0, 1), (0, 1, 0), (1, 0, 0))):
            for column, mark in zip((31, 30, 29), marks):
                x[:, :, row, column] = mark
        return x

    def watermark(x: torch.Tensor) -> torch.Tensor:
        with Image.open(data / "triggers" / "trojan_wm.png") as picture:
            mark = torch.from_numpy(np.array(picture.convert("RGB"), np.float32) / 255).permute(2, 0, 1)
        return (x + mark).clamp(0, 1)

    known = {
        "gtsrb-badnets": (8, square),
        "gtsrb-trojan": (2, watermark),
        "cifar10-badnets": (8, square),
        "cifar10-grid": (0, grid),
    }
    return known[name]


def _painted(test: Images, target: int, paint: Callable[[torch.Tensor], torch.Tensor]) -> Images:
    assert test.labels is not None
    pixels = paint(test.tensor()).contiguous().numpy()
    return Images(pixels=pixels, labels=np.full(len(pixels), target), true_labels=test.labels, name="triggered")
