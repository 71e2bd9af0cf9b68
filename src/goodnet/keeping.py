"""What a repair leaves: the GoodNet's file, and the folder with its record and triggers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from goodnet.export import save_goodnet
from goodnet.models.classifier import Classifier
from goodnet.outputs import check_file, check_folder
from goodnet.record import RepairRecord
from goodnet.strict_json import writing_record
from goodnet.triggers.files import write_pictures, write_triggers
from goodnet.triggers.trigger import Trigger


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a repair goes: the GoodNet's file, the folder for `repair.json`; None writes neither.

    `keep_rejected` writes the GoodNet even if the limits do not accept it; `arch_name` is the user's own code.
    """

    goodnet: Path | None = None
    folder: Path | None = None
    overwrite: bool = False
    keep_rejected: bool = False
    arch_name: str | None = None


def check_output(output: Output) -> None:
    """Raises UsageError where something is there already that must not be replaced, or nothing can be written."""
    check_folder(output.folder, "repair.json", overwrite=output.overwrite)
    if output.goodnet is not None:
        check_file(output.goodnet, overwrite=output.overwrite)


def keep(record: RepairRecord, goodnet: Classifier, triggers: Sequence[Trigger], output: Output) -> RepairRecord:
    """Writes the GoodNet, if it was accepted or may be kept all the same, then the folder; the record names the file.

    Raises:
        UsageError: something is there already.
        ModelError: what was written is not what was meant; the file is removed.
    """
    if output.goodnet is not None and (record.accepted or output.keep_rejected):
        digest = save_goodnet(goodnet, output.goodnet, overwrite=output.overwrite, arch_name=output.arch_name)
        record = replace(record, goodnet_file=str(output.goodnet), goodnet_sha256=digest)
    if output.folder is not None:
        output.folder.mkdir(parents=True, exist_ok=True)
        with writing_record(record, output.folder / "repair.json"):
            if triggers:
                write_pictures(output.folder / "triggers", triggers)
                write_triggers(output.folder / "triggers.npz", triggers)
    return record
