"""The demo: what its defender is given."""

from __future__ import annotations

import numpy as np

from goodnet.data.drawn_faces import draw_faces
from goodnet.demo import IDENTITIES, strangers


def test_strangers_are_people_whom_the_nets_do_not_know() -> None:
    images = strangers(seed=0)
    assert images.labels is not None
    assert (np.bincount(images.labels)[IDENTITIES:] == 4).all()
    assert images.labels.min() == IDENTITIES
    both = draw_faces(identities=2 * IDENTITIES, per_identity=4, seed=2).images
    assert both.labels is not None
    assert np.array_equal(images.pixels, both.pixels[both.labels >= IDENTITIES])
