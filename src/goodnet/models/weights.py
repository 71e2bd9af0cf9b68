"""Putting a stranger's weights into a net: every key, shape and number checked first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from goodnet.errors import ModelError, UsageError
from goodnet.models.arch import NOTES, Architecture, architecture, build, matching
from goodnet.models.classifier import Recipe
from goodnet.models.formats import Loaded, LoadOptions, one_line


def load_weights(net: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Loads `state` into `net` strictly (only BatchNorm's `num_batches_tracked` may be missing).

    Raises:
        ModelError: missing or unexpected keys, other shapes, NaN or infinite values.
    """
    check_fit(net, state, name=name)
    check_finite(state, name=name)
    counters = {key: value for key, value in net.state_dict().items() if key not in state}
    net.load_state_dict({**counters, **state})


def sketch(recipe: Recipe, *, name: str) -> nn.Module:
    """The net of a stranger's recipe without memory (on `meta`): `check_fit` with it comes before any is taken.

    Raises:
        ModelError, UnsafeFileError: as `build`.
    """
    try:
        with torch.device("meta"):
            return build(recipe)
    except ModelError as error:  # UnsafeFileError is one
        raise type(error)(f"{name}: {error}") from error


def check_fit(net: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Raises ModelError where keys or shapes are not those of `net`, which may be on `meta`."""
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in wanted]
    wrong = [_few("missing", missing), _few("unknown", extra)]
    if missing or extra:
        raise ModelError(f"{name}: the weights do not fit the net: {'; '.join(filter(None, wrong))}")
    odd = [key for key, value in state.items() if value.shape != wanted[key].shape]
    if odd:
        first = f"{odd[0]} is {tuple(state[odd[0]].shape)}, expected {tuple(wanted[odd[0]].shape)}"
        raise ModelError(f"{name}: {len(odd)} weights have another shape: {first}")


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, in one piece each and sharing nothing: what safetensors can hold."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def write_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes safetensors in place, with the permissions of any new file (its own writer leaves it to the owner alone).

    Raises:
        OSError: of the disk.
    """
    path.write_bytes(save(own_tensors(state), None if metadata is None else dict(metadata)))


def check_finite(state: Mapping[str, Tensor], *, name: str) -> None:
    """Raises ModelError naming the first tensor that holds NaN or infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name}: {key} holds NaN or infinite weights; such a net gives no answers")


def load_ours(state: Mapping[str, Tensor], options: LoadOptions, *, name: str) -> Loaded:
    """One of our architectures with `state` in it; its options are read off the state's shapes.

    Raises:
        UsageError: no `--arch`, an unknown one, or `classes` and `input_shape` that contradict the file.
        ModelError: the weights are not that architecture's.
    """
    fits = matching(state)
    hint = f"its weights look like {' or '.join(fits)}" if fits else f"it holds {_few('', list(state))}"
    if options.arch is None:
        raise UsageError(f"{name}: holds weights alone, so say which net they belong to with --arch; {hint}")
    known = architecture(options.arch)
    resolved = _resolve(known, state, options, name=name, hint=hint)
    recipe = Recipe(arch=options.arch, options=resolved)
    net = build(recipe)
    load_weights(net, state, name=name)
    shape = known.input_shape(resolved)
    notes = (NOTES[options.arch],) if options.arch in NOTES else ()
    if options.input_shape is not None and "height" not in known.options and options.input_shape[0] == shape[0]:
        shape = options.input_shape
    if options.input_shape not in (None, shape):
        raise UsageError(f"{name}: expected input shape {shape} from its weights, got {options.input_shape}")
    return Loaded(net=net, recipe=recipe, shape=shape, notes=notes)


def _resolve(
    known: Architecture, state: Mapping[str, Tensor], options: LoadOptions, *, name: str, hint: str
) -> dict[str, object]:
    try:
        resolved = dict(known.options_from_state(state))
    except (KeyError, ValueError, IndexError) as error:
        detail = one_line(error)
        raise ModelError(
            f"{name}: these are not the weights of {options.arch} (looked for {detail}); {hint}"
        ) from error
    if options.classes not in (None, resolved["classes"]):
        raise UsageError(f"{name}: expected {resolved['classes']} classes from its weights, got {options.classes}")
    if options.input_shape is not None and "height" in known.options:
        resolved.update(height=options.input_shape[1], width=options.input_shape[2])
    return resolved


def _few(what: str, keys: Iterable[str], limit: int = 3) -> str:
    listed = list(keys)
    if not listed:
        return ""
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{what} {', '.join(key[:80] for key in listed[:limit])}{more}".strip()
