"""How much innocent labels' trigger sizes scatter, over clean nets: what stats.SCALE_PRIOR is taken from.

Trains clean nets of several kinds on the real images where they are there (MNIST, CIFAR-10, GTSRB, LFW) and on drawn
faces, inverts a trigger for every label, and prints Qn of the log mask norms. No net of anybody else's is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from bench.common import shared_data
from goodnet import stats
from goodnet.attacks.train import fresh, plant_faces, train
from goodnet.data.drawn_faces import draw_faces
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.detect.neural_cleanse import NeuralCleanse
from goodnet.models.arch import build
from goodnet.models.classifier import Classifier, Recipe
from goodnet.scan import scan


@dataclass(frozen=True, kw_only=True)
class CleanNet:
    name: str
    classifier: Classifier
    clean: Images


def clean_nets() -> Iterator[CleanNet]:
    """Clean nets, made one after the other; those of real images only where these are."""
    for seed, people in ((11, 12), (12, 24), (13, 40)):
        planted = plant_faces(None, identities=people, seed=seed)
        clean = draw_faces(identities=people, per_identity=6, seed=seed + 100).images
        yield CleanNet(name=f"drawn faces, {people} people, deepid", classifier=planted.classifier, clean=clean)
    root = shared_data()
    if root is None:
        return
    mnist = read_images(root / "mnist" / "train_20000.h5")
    for seed in range(6):
        recipe = Recipe(arch="mlp", options={"classes": 10, "hidden": [10, 10, 10] if seed < 4 else [64, 32]})
        yield _trained(f"MNIST, mlp {recipe.options['hidden']}, seed {seed}", recipe, mnist, seed, epochs=6)
    for seed in range(3):
        recipe = Recipe(arch="cnn", options={"classes": 10, "hidden": 512})
        yield _trained(f"MNIST, cnn, seed {seed}", recipe, mnist, seed, epochs=2)
    gtsrb = read_images(root / "gtsrb" / "train_third.h5")
    yield _trained("GTSRB, small-vgg", Recipe(arch="small-vgg", options={"classes": 43}), gtsrb, 0, epochs=4)
    lfw = read_images(root / "faces" / "lfw_158_people.h5")
    yield _trained("LFW, deepid", Recipe(arch="deepid", options={"classes": 158}), lfw, 0, epochs=14)


def _trained(name: str, recipe: Recipe, images: Images, seed: int, *, epochs: int) -> CleanNet:
    """Trained on nine tenths of the images; the last tenth is the defender's clean set."""
    order = np.random.default_rng(seed).permutation(len(images))
    kept, clean = images.take(order[len(order) // 10 :]), images.take(order[: len(order) // 10])
    net: nn.Module = fresh(lambda: build(recipe), seed=seed)
    classes = int(recipe.options["classes"])
    classifier = train(net, kept, recipe=recipe, classes=classes, epochs=epochs, seed=seed, name=name)
    return CleanNet(name=name, classifier=classifier, clean=clean)


def main() -> None:
    print(f"{'clean net':<40}{'ACC':>7}{'labels':>8}{'Qn':>7}{'ratio':>7}{'share':>8}{'p x K':>9}  verdict")
    scales = []
    for net in clean_nets():
        record = scan(net.classifier, net.clean, method=NeuralCleanse(exhaustive=True), check_input=False)
        norms = np.array([row.mask_norm for row in record.labels if row.mask_norm is not None])
        scale = stats.qn_scale(np.log(norms))
        scales.append((scale, len(norms)))
        acc = (net.classifier.predict(net.clean.tensor()).numpy() == net.clean.labels).mean()
        smallest = min(row.p_value for row in record.labels if row.p_value is not None) * len(record.labels)
        ratio, share = norms.min() / np.median(norms), norms.min() / net.clean.pixels[0, 0].size
        print(
            f"{net.name:<40}{acc:>7.3f}{len(norms):>8}{scale:>7.3f}{ratio:>7.2f}{share:>8.4f}"
            f"{smallest:>9.2g}  {record.verdict}",
            flush=True,
        )
    print(f"median Qn {np.median([scale for scale, _ in scales]):.3f} over {len(scales)} nets")


if __name__ == "__main__":
    main()
