"""One Keras layer -> the GraphNet layers that do the same, and which of its arrays go where.

Settings are looked up under the names of Keras 1, 2 and 3. A setting that changes what a layer computes and that is
not handled here is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from goodnet.errors import ModelError
from goodnet.models.keras_config import KerasLayer, check_class
from goodnet.models.keras_settings import Context, Reader, Spec, Translated, Weight

AUGMENT = ("Flip", "Rotation", "Zoom", "Translation", "Contrast", "Brightness")
IDENTITY = {
    *("Identity", "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
    *("ActivityRegularization", *(f"Random{what}" for what in AUGMENT)),
}
"""What does nothing once training is over."""
MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu", "exp": "exponential"}
_PLAIN = {
    *("relu", "relu6", "sigmoid", "tanh", "selu", "silu", "gelu", "mish", "softplus", "softsign", "hard_sigmoid"),
    *("hard_silu", "exponential", "softmax", "log_softmax"),
}


def translate(layer: KerasLayer, name: str, inputs: list[str], context: Context) -> Translated:
    """GraphNet layers for one Keras layer, the main one named `name`.

    Raises:
        ModelError: a layer or a setting that is not known; it is named.
        UnsafeFileError: an activation that carries code.
    """
    reader = Reader(layer=layer, context=context)
    kind, policy = layer.kind, layer.config.get("dtype")
    if not inputs:
        raise ModelError(f"{reader.where}: nothing feeds it")
    quantised = isinstance(policy, Mapping) and "Quantized" in str(policy.get("class_name"))
    if quantised or layer.config.get("quantization_config"):
        raise reader.refuse("a quantised layer")
    if kind in MERGES:
        return Translated(specs=[{"name": name, "op": "merge", "inputs": inputs, "kind": kind.lower()}])
    if kind not in TRANSLATORS:
        known = ", ".join(sorted({*TRANSLATORS, *MERGES, *IDENTITY}))
        raise ModelError(f"{reader.where}: not a layer that goodnet reads; it reads {known}")
    return TRANSLATORS[kind](reader, name, inputs)


def activation_spec(value: Any, name: str, source: str, reader: Reader) -> Spec | None:
    """A Keras activation (a name, or an object in Keras 3) -> its layer; None for linear."""
    slope = 0.2
    if isinstance(value, Mapping):
        kind = check_class(value, reader.where)
        inner = value.get("config")
        if kind != "function":
            layer = KerasLayer(
                name=name, kind=kind, config=inner if isinstance(inner, Mapping) else {}, inputs=(source,), scope=()
            )
            specs = translate(layer, name, [source], reader.context).specs
            return specs[0] if specs else None
        value = inner
    if value is None or value == "linear":
        return None
    if not isinstance(value, str):
        raise reader.refuse(f"the activation {value!r:.60}")
    kind = _ALIASES.get(value, value)
    spec: Spec = {"name": name, "op": "activation", "inputs": [source], "kind": kind}
    if kind == "leaky_relu":
        return {**spec, "slope": slope}
    if kind == "elu":
        return {**spec, "alpha": 1.0}
    if kind == "hard_sigmoid" and reader.context.version < 3:
        return {**spec, "kind": "old_hard_sigmoid"}
    if kind not in _PLAIN:
        raise reader.refuse(f"the activation {value!r:.60}")
    return spec


def _with_activation(reader: Reader, name: str, made: Translated) -> Translated:
    last = made.specs[-1]["name"]
    spec = activation_spec(reader.get("activation"), f"{name}__activation", last, reader)
    return Translated(specs=[*made.specs, *([spec] if spec else [])], weights=made.weights)


def _conv(reader: Reader, name: str, inputs: list[str]) -> Translated:
    old = [reader.get("nb_row"), reader.get("nb_col")]
    if reader.context.version < 2 and not reader.context.channels_last:
        raise reader.refuse("Keras 1's Theano order (the file does not say whether kernels are flipped)")
    bias = bool(reader.get("use_bias", "bias", default=True))
    spec = {
        "name": name,
        "op": "conv2d",
        "inputs": inputs,
        "filters": reader.get("filters", "nb_filter"),
        "kernel": reader.pair("kernel_size", default=old),
        "stride": reader.pair("strides", "subsample", default=1),
        "dilation": reader.pair("dilation_rate", "atrous_rate", default=1),
        "groups": reader.get("groups", default=1),
        "bias": bias,
        "padding": reader.padding(),
    }
    weights = [Weight(key=f"{name}.weight", sources=("kernel",), position=0, turn="conv")]
    weights += [Weight(key=f"{name}.bias", sources=("bias",), position=1)] if bias else []
    return _with_activation(reader, name, Translated(specs=[spec], weights=weights))


def _depthwise(reader: Reader, name: str, inputs: list[str]) -> Translated:
    bias = bool(reader.get("use_bias", default=True))
    spec = {**_depthwise_spec(reader, name, inputs), "bias": bias}
    weights = [Weight(key=f"{name}.weight", sources=("depthwise_kernel", "kernel"), position=0, turn="depthwise")]
    weights += [Weight(key=f"{name}.bias", sources=("bias",), position=1)] if bias else []
    return _with_activation(reader, name, Translated(specs=[spec], weights=weights))


def _depthwise_spec(reader: Reader, name: str, inputs: list[str]) -> Spec:
    return {
        "name": name,
        "op": "depthwise",
        "inputs": inputs,
        "multiplier": reader.get("depth_multiplier", default=1),
        "kernel": reader.pair("kernel_size"),
        "stride": reader.pair("strides", default=1),
        "dilation": reader.pair("dilation_rate", default=1),
        "padding": reader.padding(),
    }


def _separable(reader: Reader, name: str, inputs: list[str]) -> Translated:
    first, bias = f"{name}__depthwise", bool(reader.get("use_bias", default=True))
    point = {
        "name": name,
        "op": "conv2d",
        "inputs": [first],
        "filters": reader.get("filters"),
        **{"kernel": [1, 1], "stride": [1, 1], "dilation": [1, 1], "groups": 1, "bias": bias, "padding": "valid"},
    }
    weights = [
        Weight(key=f"{first}.weight", sources=("depthwise_kernel",), position=0, turn="depthwise"),
        Weight(key=f"{name}.weight", sources=("pointwise_kernel",), position=1, turn="conv"),
    ]
    weights += [Weight(key=f"{name}.bias", sources=("bias",), position=2)] if bias else []
    specs = [{**_depthwise_spec(reader, first, inputs), "bias": False}, point]
    return _with_activation(reader, name, Translated(specs=specs, weights=weights))


def _dense(reader: Reader, name: str, inputs: list[str]) -> Translated:
    bias = bool(reader.get("use_bias", "bias", default=True))
    units = reader.get("units", "output_dim")
    spec = {"name": name, "op": "linear", "inputs": inputs, "units": units, "bias": bias}
    weights = [Weight(key=f"{name}.weight", sources=("kernel",), position=0, turn="dense")]
    weights += [Weight(key=f"{name}.bias", sources=("bias",), position=1)] if bias else []
    return _with_activation(reader, name, Translated(specs=[spec], weights=weights))


def _batch_norm(reader: Reader, name: str, inputs: list[str]) -> Translated:
    axis = reader.get("axis", default=-1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in ((-1, 3) if reader.context.channels_last else (1,)):
        raise reader.refuse(f"normalisation along axis {axis!r:.20}, which is not that of the channels,")
    if reader.get("mode", default=0) != 0:
        raise reader.refuse("Keras 1's mode other than 0")
    spec = {
        "name": name,
        "op": "batch_norm",
        "inputs": inputs,
        "eps": reader.get("epsilon", default=1e-3),
    }
    scale, center = (bool(reader.get(key, default=True)) for key in ("scale", "center"))
    weights = [
        Weight(key=f"{name}.weight", sources=("gamma",), position=0 if scale else -1, default=None if scale else 1.0),
        Weight(
            key=f"{name}.bias",
            sources=("beta",),
            position=int(scale) if center else -1,
            default=None if center else 0.0,
        ),
        Weight(key=f"{name}.running_mean", sources=("moving_mean",), position=scale + center),
        Weight(key=f"{name}.running_var", sources=("moving_variance",), position=scale + center + 1),
    ]
    return Translated(specs=[spec], weights=weights)


def _pool(reader: Reader, name: str, inputs: list[str]) -> Translated:
    size = reader.pair("pool_size", default=2)
    op = "max_pool" if reader.layer.kind.startswith("Max") else "average_pool"
    padding = reader.padding()
    if (op, padding, reader.context.backend) == ("average_pool", "same", "torch"):
        padding = "same-edge"
    spec = {
        "name": name,
        "op": op,
        "inputs": inputs,
        "kernel": size,
        "stride": reader.pair("strides", default=size),
        "padding": padding,
    }
    return Translated(specs=[spec])


def _global_pool(reader: Reader, name: str, inputs: list[str]) -> Translated:
    kind = "average" if "Average" in reader.layer.kind else "max"
    keep = bool(reader.get("keepdims", default=False))
    return Translated(specs=[{"name": name, "op": "global_pool", "inputs": inputs, "kind": kind, "keepdims": keep}])


def _flatten(reader: Reader, name: str, inputs: list[str]) -> Translated:
    last, said = reader.context.channels_last, reader.get("data_format", default="channels_last")
    if last and said == "channels_first":
        raise reader.refuse("channels_first in a net whose convolutions are channels_last")
    # Keras moves the channels to the end before it flattens, if the layer itself says channels_first.
    order = "hwc" if last or said == "channels_first" else "chw"
    return Translated(specs=[{"name": name, "op": "flatten", "inputs": inputs, "order": order}])


def _reshape(reader: Reader, name: str, inputs: list[str]) -> Translated:
    shape = reader.get("target_shape")
    if not isinstance(shape, list) or len(shape) not in (1, 3) or not all(isinstance(side, int) for side in shape):
        raise reader.refuse(f"the shape {shape!r:.60}")
    last = reader.context.channels_last
    shape = [shape[2], shape[0], shape[1]] if len(shape) == 3 and last else shape
    return Translated(specs=[{"name": name, "op": "reshape", "inputs": inputs, "shape": shape, "order": reader.order}])


def _permute(reader: Reader, name: str, inputs: list[str]) -> Translated:
    dims = reader.get("dims")
    if not isinstance(dims, list) or sorted(map(str, dims)) != ["1", "2", "3"]:
        raise reader.refuse(f"the order {dims!r:.60}")
    if reader.context.channels_last:  # Keras axes H, W, C are torch's 2, 3, 1
        torch_axis = {1: 2, 2: 3, 3: 1}
        by_axis = {torch_axis[position]: torch_axis[axis] for position, axis in enumerate(dims, start=1)}
        dims = [by_axis[1], by_axis[2], by_axis[3]]
    return Translated(specs=[{"name": name, "op": "permute", "inputs": inputs, "dims": dims}])


def _concatenate(reader: Reader, name: str, inputs: list[str]) -> Translated:
    axis = reader.get("axis", "concat_axis", default=-1)
    if axis not in (-1, 1, 2, 3):
        raise reader.refuse(f"axis {axis!r:.20}")
    return Translated(
        specs=[{"name": name, "op": "concatenate", "inputs": inputs, "axis": axis, "order": reader.order}]
    )


def _merge(reader: Reader, name: str, inputs: list[str]) -> Translated:
    kinds = {"sum": "add", "mul": "multiply", "ave": "average", "max": "maximum"}
    mode = reader.get("mode", default="sum")
    if mode == "concat":
        return _concatenate(reader, name, inputs)
    if mode not in kinds:
        raise reader.refuse(f"the mode {mode!r:.60}")
    return Translated(specs=[{"name": name, "op": "merge", "inputs": inputs, "kind": kinds[mode]}])


def _activation(reader: Reader, name: str, inputs: list[str]) -> Translated:
    spec = activation_spec(reader.get("activation"), name, inputs[0], reader)
    return Translated(specs=[spec] if spec else [])


def _relu(reader: Reader, name: str, inputs: list[str]) -> Translated:
    spec: Spec = {"name": name, "op": "activation", "inputs": inputs, "kind": "relu"}
    slope = reader.number("negative_slope", default=0.0)
    if reader.get("threshold", "theta", default=0.0) != 0:
        raise reader.refuse("a threshold other than 0")
    if reader.get("max_value") is not None:
        limit = reader.number("max_value", default=0.0)
        return Translated(specs=[{**spec, "kind": "clamp", "slope": slope, "limit": limit}])
    return Translated(specs=[{**spec, "kind": "leaky_relu", "slope": slope} if slope else spec])


def _leaky_relu(reader: Reader, name: str, inputs: list[str]) -> Translated:
    slope = reader.number("negative_slope", "alpha", default=0.3)
    return Translated(
        specs=[{"name": name, "op": "activation", "inputs": inputs, "kind": "leaky_relu", "slope": slope}]
    )


def _elu(reader: Reader, name: str, inputs: list[str]) -> Translated:
    alpha = reader.number("alpha", default=1.0)
    return Translated(specs=[{"name": name, "op": "activation", "inputs": inputs, "kind": "elu", "alpha": alpha}])


def _softmax(reader: Reader, name: str, inputs: list[str]) -> Translated:
    axis = reader.get("axis", default=-1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, 1):
        raise reader.refuse(f"axis {axis!r:.20}")
    return Translated(specs=[{"name": name, "op": "activation", "inputs": inputs, "kind": "softmax"}])


def _zero_pad(reader: Reader, name: str, inputs: list[str]) -> Translated:
    value = reader.get("padding", default=1)
    value = [value, value] if isinstance(value, int) else value
    if isinstance(value, list) and len(value) == 2:
        rows, columns = ([side, side] if isinstance(side, int) else side for side in value)
        if all(isinstance(side, list) and len(side) == 2 for side in (rows, columns)):
            return Translated(specs=[{"name": name, "op": "zero_pad", "inputs": inputs, "pads": [*columns, *rows]}])
    raise reader.refuse(f"the padding {value!r:.60}")


def _rescaling(reader: Reader, name: str, inputs: list[str]) -> Translated:
    scale, offset = (
        value if isinstance(value, list) else [value]
        for value in (reader.get("scale", default=1.0), reader.get("offset", default=0.0))
    )
    return Translated(specs=[{"name": name, "op": "rescale", "inputs": inputs, "scale": scale, "offset": offset}])


TRANSLATORS: dict[str, Callable[[Reader, str, list[str]], Translated]] = {
    "Conv2D": _conv,
    "Convolution2D": _conv,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Concatenate": _concatenate,
    "Merge": _merge,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
    "ZeroPadding2D": _zero_pad,
    "Rescaling": _rescaling,
}
