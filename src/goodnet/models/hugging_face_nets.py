"""Which of Hugging Face's image classifiers are read, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from goodnet.errors import ModelError
from goodnet.models import hugging_face_cnns, hugging_face_swin, hugging_face_vits
from goodnet.models.arch.graph import INPUT
from goodnet.models.formats import Shape
from goodnet.models.hugging_face_drawing import Drawing

NETS: dict[str, Callable[[Drawing, Mapping[str, Any], int, str], None]] = {
    "resnet": hugging_face_cnns.resnet,
    "vit": hugging_face_vits.vit,
    "deit": hugging_face_vits.deit,
    "swin": hugging_face_swin.swin,
    "mobilenet_v2": hugging_face_cnns.mobilenet_v2,
    "convnext": hugging_face_cnns.convnext,
}
SIZED = ("vit", "deit", "swin")
"""Nets that take images of one size alone, which their config states."""
HEADS = ("classifier", "classifier.1", "cls_classifier")
"""What the last layer is called in the folder."""


def draw_net(config: Mapping[str, Any], shape: Shape, classes: int, where: str) -> Drawing:
    """The net of a config whose `model_type` is one of NETS, for images (C, H, W).

    Raises ModelError, UnsafeFileError.
    """
    draw = Drawing(shapes={INPUT: shape})
    try:
        NETS[config["model_type"]](draw, config, classes, where)
    except ModelError as error:  # a layer's own words name the layer, not the file
        raise error if str(error).startswith(where) else type(error)(f"{where}: {error}") from error
    return draw
