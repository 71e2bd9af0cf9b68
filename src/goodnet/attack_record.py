"""The record of a planted backdoor: `attack.json`, beside the net and the poisoned test sets that it describes."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodnet import strict_json
from goodnet.record import DataInfo, Environment, MethodInfo, ModelInfo, Poisoned, Share

FORMAT = "goodnet.attack/1"


@dataclass(frozen=True, kw_only=True)
class PoisonedFile:
    """One trigger's test set: `file` is relative to the record's folder."""

    trigger: str
    file: str
    data: DataInfo


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """All of an attack (`attack.json`).

    Attributes:
        attack: which one, with its settings as passed and as resolved.
        targets: the labels that the triggers lead to; all labels for all-to-all.
        training: architecture, epochs, learning rate, images a step, and the net's hash that it started from, if any.
        n_clean: clean images that were trained on, those replaced by poisoned ones among them.
        n_poisoned: with the trigger and the target's label.
        n_covers: triggered, or nearly so, and with their true labels.
        acc: on the clean test images.
        poisoned: a figure for each of `poisoned_files`, in their order.
        model: the net as it was read back from `net_file`.
        net_file, poisoned_files: what lies beside the record.
        load: the options with which a command reads `net_file`.
        data, test: clean images: given for training, and measured on; `test_given` false where `test` was split off.
    """

    attack: MethodInfo
    targets: tuple[int, ...]
    training: dict[str, Any]
    n_clean: int
    n_poisoned: int
    n_covers: int
    acc: Share | None
    poisoned: tuple[Poisoned, ...]
    model: ModelInfo
    net_file: str
    poisoned_files: tuple[PoisonedFile, ...]
    load: tuple[str, ...]
    data: DataInfo
    test: DataInfo
    test_given: bool
    seconds: float
    environment: Environment
    format: str = FORMAT


def read_attack(path: Path) -> AttackRecord:
    """Reads `attack.json`. Raises DataError where it is not one."""
    return typing.cast(AttackRecord, strict_json.read(path, {FORMAT: AttackRecord}))
