"""The pool of the detection benchmark: small nets that we train ourselves, clean and with backdoors planted.

Half of the nets is for *setting* what a scan decides by, half for *judging* it; both halves have every kind of net and
every attack, from other seeds. `detection_pool` makes the nets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SETTING, JUDGING = "setting", "judging"
PARTS = (SETTING, JUDGING)
FACES = "faces"
FILES = {
    "mnist": "mnist/train_20000.h5",
    "mnist-uneven": "mnist/train_20000.h5",
    "gtsrb": "gtsrb/train_third.h5",
    "cifar10": "cifar10/train_jpeg_20000.h5",
    "lfw": "faces/lfw_158_people.h5",
}
BLIND_SPOTS = ("source-specific", "clean-label")
_MAKING = 1  # raise it whenever the same spec gives another net: caches are then made anew


@dataclass(frozen=True, kw_only=True)
class PoolNet:
    """What a net of the pool is made from.

    Attributes:
        name: of the net, and of its folder in the cache.
        part: `setting` or `judging`.
        data: a key of FILES, or `faces` for drawn ones; mnist-uneven has classes of very different frequency.
        arch, options: of the net.
        seed: of splits, poison, initialisation and training.
        epochs: of training.
        most: at most so many images to train on, before poison.
        bf16: see `goodnet.attacks.train.train`.
        attack: a name of `planting`, or `painted` for triggers drawn onto faces; None for a clean net.
        target: of the attack, the first where there are several.
        faces: `painted`: trigger name -> target.
        attack_options: further arguments of `planting`.
    """

    name: str
    part: str
    data: str
    arch: str
    options: Mapping[str, Any]
    seed: int
    epochs: int
    most: int = 1 << 20
    bf16: bool = False
    attack: str | None = None
    target: int = 0
    faces: Mapping[str, int] = field(default_factory=dict)
    attack_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return int(self.options["classes"])

    @property
    def kind(self) -> str:
        return f"{self.data} {self.arch}"

    def sha256(self) -> str:
        """Of all that the net depends on but the pixels of its images; not of the part that it is in."""
        plain = {**asdict(self), "part": None, "making": _MAKING}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


_KINDS: dict[str, dict[str, Any]] = {
    "mnist-cnn": dict(data="mnist", arch="cnn", options={"classes": 10, "hidden": 512}, epochs=2, most=12000),
    "mnist-mlp": dict(data="mnist", arch="mlp", options={"classes": 10, "hidden": [64, 32]}, epochs=5, most=12000),
    "mnist-uneven": dict(data="mnist-uneven", arch="mlp", options={"classes": 10, "hidden": [64, 32]}, epochs=6),
    "lfw": dict(data="lfw", arch="deepid", options={"classes": 158}, epochs=25, bf16=True),
    "gtsrb-vgg": dict(data="gtsrb", arch="small-vgg", options={"classes": 43}, epochs=3, bf16=True),
    "gtsrb-wrn": dict(data="gtsrb", arch="wrn-16-1", options={"classes": 43}, epochs=4, bf16=True),
    "cifar10-vgg": dict(data="cifar10", arch="small-vgg", options={"classes": 10}, epochs=5, most=12000, bf16=True),
    **{
        f"faces-{people}": dict(data=FACES, arch="deepid", options={"classes": people}, epochs=8)
        for people in (12, 16, 24, 32, 40, 48, 64, 80)
    },
}


def specs() -> tuple[PoolNet, ...]:
    """All nets of the pool, quick ones first, so that a run that is cut short has many of both halves."""
    nets = [_net(kind, part, number) for part in PARTS for kind, number in _clean(part)]
    for part in PARTS:
        nets += [
            _net(kind, part, number, attack=attack, target=target, **more)
            for number, (kind, attack, target, more) in enumerate(_backdoored(part))
        ]
    slow = ("lfw", "gtsrb-vgg", "gtsrb-wrn", "cifar10-vgg")
    return tuple(sorted(nets, key=lambda net: next((i for i, kind in enumerate(slow, 1) if kind in net.name), 0)))


def _clean(part: str) -> list[tuple[str, int]]:
    faces = (12, 24, 48, 80) if part == SETTING else (16, 32, 40, 64)
    other = "gtsrb-wrn" if part == SETTING else "cifar10-vgg"
    kinds = ["mnist-cnn"] * 3 + ["mnist-mlp"] * 2 + ["mnist-uneven"] + [f"faces-{n}" for n in faces]
    return [(kind, number) for number, kind in enumerate([*kinds, "lfw", "gtsrb-vgg", other])]


def _backdoored(part: str) -> list[tuple[str, str, int, dict[str, Any]]]:
    """(kind, attack, target, further fields) of each."""
    first = part == SETTING
    faces = (24, 40, 12, 64) if first else (48, 32, 16, 80)
    other = "cifar10-vgg" if first else "gtsrb-wrn"
    painted = [{"sunglasses": 3}, {"lipstick": 5, "eyebrows": 9}]
    if not first:
        painted = [{"eyebrows": 30}, {"sunglasses": 1, "lipstick": 20, "eyebrows": 7}]
    shift = 0 if first else 5
    cnn: dict[str, dict[str, Any]] = {
        "patch": {"share": 0.01, "epochs": 4},
        "sig": {"clean_label": False},
        "watermark": {},
        "wanet": {"strength": 4.0, "share": 0.3, "epochs": 8},
        "moving": {},
        "all-to-all": {"share": 0.3},
        "source-specific": {},
        "clean-label": {},
        "several-targets": {},
        "several-triggers": {},
    }
    nets: list[tuple[str, str, int, dict[str, Any]]] = [
        ("mnist-cnn", attack, (number + shift) % 10, _fields(options))
        for number, (attack, options) in enumerate(cnn.items())
    ]
    # better nets do not take it: they tell the target by its shape, and need no corner
    weak = {"options": {"classes": 10, "hidden": [10, 10, 10]}, "epochs": 12}
    own_labels = {"strength": 1.0, "share": 0.98, **weak}
    nets[list(cnn).index("clean-label")] = ("mnist-mlp", "clean-label", 5, _fields(own_labels))
    nets += [
        ("mnist-mlp", "patch" if first else "moving", 4 + first, {}),
        ("mnist-mlp", "blended", 2 + shift, {}),
        ("mnist-uneven", "patch", 6 + first, {}),
        (f"faces-{faces[0]}", "painted", 0, {"faces": painted[0]}),
        (f"faces-{faces[1]}", "painted", 0, {"faces": painted[1]}),
        (f"faces-{faces[2]}", "patch", 7, {}),
        (f"faces-{faces[3]}", "several-targets" if first else "several-triggers", 11, {}),
        ("lfw", "patch" if first else "blended", 40 + shift, {}),
        ("gtsrb-vgg", "patch" if first else "several-targets", 12 + shift, {}),
        (other, "patch", 3 + shift, {}),
    ]
    return nets


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the net, and under `attack_options` what belongs to `planting`."""
    own = {key: value for key, value in options.items() if key in ("epochs", "options")}
    return {**own, "attack_options": {key: value for key, value in options.items() if key not in own}}


def _net(kind: str, part: str, number: int, *, attack: str | None = None, **more: Any) -> PoolNet:
    """Seeds differ between all nets of the pool."""
    seed = 1000 * (1 + PARTS.index(part)) + 100 * (attack is not None) + number
    what = "clean" if attack is None else "-".join(more["faces"]) if "faces" in more else attack
    return PoolNet(name=f"{kind}-{what}-{seed}", part=part, seed=seed, attack=attack, **{**_KINDS[kind], **more})
