"""A folder of Hugging Face's with an image classifier, read as data: nothing of `transformers` is imported or run.

`config.json` (strict JSON) says what net it is, `model.safetensors` or its shards, or else `pytorch_model.bin` (tensors
alone, as any PyTorch file), hold the weights, `preprocessor_config.json` says how images are normalised. Every other
file is left alone; code that lies in the folder, or that `auto_map` asks for, never runs and is named in the notes.

The SHA-256 of a folder is that of the list of the files that were read, in the order above, as `sha256sum` writes it:
`sha256sum config.json preprocessor_config.json model.safetensors | sha256sum` gives the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from goodnet.errors import ModelError, UnsafeFileError, UsageError
from goodnet.models import state_dict
from goodnet.models.arch import GRAPH, build
from goodnet.models.arch.fields import Fields
from goodnet.models.classifier import InputSpec, Recipe
from goodnet.models.formats import MAX_BYTES, Loaded, LoadOptions, Shape, check_shape, one_line
from goodnet.models.hugging_face_drawing import Drawing, pair, settings_of
from goodnet.models.hugging_face_nets import HEADS, NETS, SIZED, draw_net
from goodnet.models.weights import check_fit, load_weights, sketch

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_MAX_JSON = 8 << 20
_MAX_SHARDS = 256
_SHARD = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,200}\.safetensors")
_LEFT = ("pooler.", "relative_position_index", "mask_token")
"""In the folder, but no part of a classifier: transformers leaves them out, too."""
_SAFE = "ask for safetensors"


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What is read of a folder. `files` are the names, in the order in which they are hashed."""

    path: Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    files: tuple[str, ...]
    index: Mapping[str, Any] | None

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if name not in (CONFIG, PREPROCESSOR, INDEX))


def load_hugging_face(path: Path, options: LoadOptions) -> Loaded:
    """Reads an image classifier.

    Raises:
        UsageError: `--arch` is given, or an input shape that the net does not take.
        UnsafeFileError: sizes out of bounds, a shard outside the folder, pickles that want to run code.
        ModelError: no config or weights, a model type that is not read, weights that do not fit.
    """
    if options.arch is not None:
        raise UsageError(f"{path}: describes its own net, so --arch {options.arch} has no place; leave it out")
    folder = _open(path)
    kind = folder.config.get("model_type")
    if not isinstance(kind, str) or kind not in NETS:
        raise ModelError(
            f"{path}: expected an image classifier of model_type {', '.join(NETS)}; got {kind!r:.60}; convert it to "
            "ONNX where you trust it: optimum-cli export onnx --model FOLDER OUT"
        )
    where = f"{path}/{CONFIG}"
    spec = _input(folder, options, kind)
    state, notes = _weights(folder)
    classes = _classes(folder, state)
    drawing = draw_net(folder.config, spec.shape, classes, where)
    recipe = Recipe(arch=GRAPH, options={"input": list(spec.shape), "layers": drawing.specs, "output": drawing.last})
    drawn = sketch(recipe, name=str(path))
    ours, left = _translated(drawing, state, str(path))
    check_fit(drawn, ours, name=str(path))
    net = build(recipe)
    load_weights(net, ours, name=str(path))
    said = () if left == 0 else (f"left {left} weights that are no part of the classifier",)
    return Loaded(
        net=net,
        recipe=recipe,
        shape=spec.shape,
        input=spec,
        notes=(*notes, *said, *_notes(folder, options, spec)),
    )


def folder_files(path: Path) -> tuple[str, ...]:
    """Names of what is read of a folder, as they are hashed. Only the list of shards is opened, where there is one.

    Raises:
        UnsafeFileError: more than MAX_BYTES in all, pipes, a shard outside the folder.
        ModelError: no config, no weights, or a shard is missing.
    """
    return _listed(path)[0]


def folder_sha256(path: Path, file_sha256: Callable[[Path], str]) -> str:
    """The hash of what is read of a folder; the module's docstring says of what. Raises ModelError, UnsafeFileError."""
    lines = "".join(f"{file_sha256(path / name)}  {name}\n" for name in folder_files(path))
    return hashlib.sha256(lines.encode()).hexdigest()


def _open(path: Path) -> _Folder:
    """The descriptions in a folder, and which files hold its weights."""
    files, index = _listed(path)
    return _Folder(
        path=path,
        config=_json(path / CONFIG),
        preprocessor=_json(path / PREPROCESSOR) if PREPROCESSOR in files else None,
        files=files,
        index=index,
    )


def _listed(path: Path) -> tuple[tuple[str, ...], Mapping[str, Any] | None]:
    """What is read of a folder, and the list of shards, if it has one."""
    if not _there(path, CONFIG):
        raise ModelError(
            f"{path}: a folder without {CONFIG}: expected a model file, or a folder of Hugging Face's; a folder of "
            "images goes to --clean"
        )
    index = None
    if _there(path, WEIGHTS):
        weights: tuple[str, ...] = (WEIGHTS,)
    elif _there(path, INDEX):
        index = _json(path / INDEX)
        weights = (INDEX, *_shards(index, path))
    elif _there(path, PICKLE):
        weights = (PICKLE,)
    else:
        raise ModelError(f"{path}: expected weights in {WEIGHTS}, {INDEX} or {PICKLE}; found none; {_SAFE}")
    missing = next((name for name in weights if not _there(path, name)), None)
    if missing is not None:
        raise ModelError(f"{path}: its shard {missing} is missing; fetch the folder again")
    files = (CONFIG, *([PREPROCESSOR] if _there(path, PREPROCESSOR) else []), *weights)
    if sum((path / name).stat().st_size for name in files) > MAX_BYTES:
        raise UnsafeFileError(f"{path}: more than {MAX_BYTES >> 30} GiB of weights; refused")
    return files, index


def _there(path: Path, name: str) -> bool:
    """Whether it is there, and a file, no pipe or device; through links, which Hugging Face's own cache is made of."""
    try:
        mode = (path / name).stat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        raise UnsafeFileError(f"{path}: {name} is no plain file; refused")
    return True


def _json(path: Path) -> dict[str, Any]:
    """A JSON object: bounded, no NaN, no key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands in it twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        if path.stat().st_size > _MAX_JSON:
            raise UnsafeFileError(f"{path}: larger than {_MAX_JSON >> 20} MiB; refused")
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_JSON), object_pairs_hook=once, parse_constant=refuse)
    except RecursionError as error:
        raise UnsafeFileError(f"{path}: nested too deeply; refused") from error
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is one
        raise ModelError(f"{path}: expected JSON, but it cannot be read ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _shards(index: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{path}/{INDEX}: expected weight_map to say which file holds which weights")
    names = sorted(set(where.values()))
    odd = next((name for name in names if not _SHARD.fullmatch(name) or ".." in name), None)
    if odd is not None:
        raise UnsafeFileError(
            f"{path}/{INDEX}: expected names of .safetensors files beside it, got {odd!r:.80}; refused"
        )
    if len(names) > _MAX_SHARDS:
        raise UnsafeFileError(f"{path}/{INDEX}: {len(names)} shards, more than {_MAX_SHARDS}; refused")
    return tuple(names)


def _weights(folder: _Folder) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All weights by the folder's names, float32. What the index says must be what the shards hold."""
    path = folder.path
    if folder.shards == (PICKLE,):
        return state_dict.read_torch(path / PICKLE)
    state: dict[str, Tensor] = {}
    notes: tuple[str, ...] = ()
    for name in folder.shards:
        part, said = state_dict.read_safetensors(path / name)
        again = next((key for key in part if key in state), None)
        if again is not None:
            raise ModelError(f"{path}: {again!r:.80} is in two shards")
        state.update(part)
        notes = (*notes, *said)
    if sum(4 * value.numel() for value in state.values()) > MAX_BYTES:
        raise UnsafeFileError(f"{path}: more than {MAX_BYTES >> 30} GiB of weights; refused")
    if folder.index is not None and not notes and set(folder.index["weight_map"]) != set(state):
        odd = sorted(set(folder.index["weight_map"]) ^ set(state))[0]
        raise ModelError(f"{path}: {INDEX} and the shards differ: {odd!r:.80} is in one of them alone")
    return state, notes


def _classes(folder: _Folder, state: Mapping[str, Tensor]) -> int:
    """Rows of the last layer, which must be as many as the config names."""
    heads = [state[f"{name}.weight"] for name in HEADS if f"{name}.weight" in state]
    if not heads or heads[0].ndim != 2:
        held = ", ".join(list(state)[:3])
        raise ModelError(
            f"{folder.path}: expected an image classifier, whose last layer is called classifier; its weights ({held}, "
            "...) have none, as a net without a head or with another task"
        )
    classes = len(heads[0])
    names = folder.config.get("id2label")
    said = len(names) if isinstance(names, dict) else folder.config.get("num_labels", classes)
    if names is not None and not isinstance(names, dict):
        raise ModelError(f"{folder.path}/{CONFIG}: expected id2label to name the classes, got {names!r:.60}")
    if said != classes:
        raise ModelError(f"{folder.path}: its config names {said!r:.40} classes, but its last layer has {classes}")
    return classes


def _translated(drawing: Drawing, state: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], int]:
    """The folder's weights under our names, and how many of them are no part of the net."""
    missing = [key for key in drawing.keys.values() if key not in state]
    wanted = set(drawing.keys.values())
    extra = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    left = [key for key in extra if any(part in key for part in _LEFT)]
    if missing or len(left) != len(extra):
        odd = next((key for key in extra if key not in left), None)
        what = f"missing {missing[0]:.80}" if missing else f"unknown {odd:.80}"
        raise ModelError(f"{name}: the weights do not fit its {CONFIG}: {what}")
    ours = {}
    for key, theirs in drawing.keys.items():
        ours[key] = drawing.made[key](state[theirs]) if key in drawing.made else state[theirs]
    return ours, len(left)


def _input(folder: _Folder, options: LoadOptions, kind: str) -> InputSpec:
    """What the net expects: the user's words, else the preprocessor's, else 0..1."""
    shape = _shape(folder, options, kind)
    said = options.input_range != "0..1" or options.mean or options.std
    if said or folder.preprocessor is None:
        return options.input_spec(shape)
    where = f"{folder.path}/{PREPROCESSOR}"
    raw = folder.preprocessor
    fields = settings_of(
        raw, {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": "image_mean" in raw, "image_mean": [0.5],
              "image_std": [0.5], "do_flip_channel_order": False, "offset": False}, where
    )  # fmt: skip
    if fields.flag("do_flip_channel_order") or fields.flag("offset"):
        raise ModelError(f"{where}: swaps channels or shifts pixels, which goodnet does not do")
    scale = 255 * (fields.number("rescale_factor", 1e-6, 1e3) if fields.flag("do_rescale") else 1.0)
    scale = 1.0 if abs(scale - 1) < 1e-5 else scale
    if not fields.flag("do_normalize"):
        return InputSpec(channels=shape[0], height=shape[1], width=shape[2], scale=scale)
    mean, std = (_per_channel(fields, key, raw.get(key, [0.5] * shape[0]), shape[0]) for key in _MEANS)
    if min(std) <= 0:
        raise fields.error("image_std", "numbers above 0", list(std))
    return InputSpec(channels=shape[0], height=shape[1], width=shape[2], scale=scale, mean=mean, std=std)


_MEANS = ("image_mean", "image_std")


def _per_channel(fields: Fields, key: str, value: Any, channels: int) -> tuple[float, ...]:
    one = isinstance(value, int | float) and not isinstance(value, bool)
    found = Fields({key: [value] if one else value}, fields.where).numbers(key)
    if len(found) not in (1, channels):
        raise fields.error(key, f"1 or {channels} numbers", value)
    return found * channels if len(found) == 1 else found


def _shape(folder: _Folder, options: LoadOptions, kind: str) -> Shape:
    """(C, H, W): the config's where the net takes no other; else the user's, the preprocessor's, the config's."""
    where = f"{folder.path}/{CONFIG}"
    fields = settings_of(folder.config, {"num_channels": 3}, where)
    channels = fields.whole("num_channels", 1, 3)
    height, width = pair(fields, folder.config, "image_size", 224)
    if kind not in SIZED:
        height, width = _prepared_size(folder) or (height, width)
    shape = (channels, height, width)
    given = options.input_shape
    if given is not None and given != shape:
        if kind in SIZED or given[0] != channels:
            raise UsageError(f"{folder.path}: expected input shape {shape} as in its config, got {given}")
        shape = given
    try:
        check_shape(shape)
    except UsageError as error:
        raise ModelError(f"{where}: {error}") from error
    return shape


def _prepared_size(folder: _Folder) -> tuple[int, int] | None:
    """Rows and columns of what a preprocessor gives, where it says so."""
    raw = folder.preprocessor or {}
    cropped = raw.get("do_center_crop") is True and raw.get("crop_size") is not None
    if not cropped and raw.get("do_resize", True) is not True:
        return None
    key = "crop_size" if cropped else "size"
    size = raw.get(key)
    if isinstance(size, dict):
        size = size.get("shortest_edge", [size.get("height"), size.get("width")])
    if size is None:
        return None
    where = f"{folder.path}/{PREPROCESSOR}"
    return pair(Fields({}, where), {key: size}, key, 224)


def _notes(folder: _Folder, options: LoadOptions, spec: InputSpec) -> tuple[str, ...]:
    """What a user should know of how the folder was read."""
    names, config = folder.config.get("id2label"), folder.config
    notes = [f"read of the folder, and hashed: {', '.join(folder.files)}"]
    if isinstance(names, dict) and any(not str(name).startswith("LABEL_") for name in names.values()):
        some = ", ".join(f"{key!s:.10} {name!r:.40}" for key, name in list(names.items())[:3])
        notes.append(f"the config names {len(names)} classes: {some}, ...")
    prepared = folder.preprocessor
    if prepared is None:
        notes.append(f"no {PREPROCESSOR}: pass --input-range, --mean and --std if the net wants more than 0..1")
    elif options.input_range != "0..1" or options.mean or options.std:
        notes.append(f"--input-range, --mean and --std stand instead of {PREPROCESSOR}")
    if prepared is not None and (prepared.get("do_resize", True) or prepared.get("do_center_crop")):
        notes.append(f"its preprocessor resizes and crops; goodnet does not: give images of {spec.height}x{spec.width}")
    code = sorted(entry.name for entry in folder.path.iterdir() if entry.suffix == ".py")
    if code or "auto_map" in config or config.get("trust_remote_code"):
        some = f": {', '.join(name[:60] for name in code[:3])}" if code else ""
        notes.append(f"the folder brings or asks for code of its own{some}; none of it runs")
    return tuple(notes)
