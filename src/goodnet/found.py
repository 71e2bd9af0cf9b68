"""What a scan of a net has found, for what repairs it and for what judges the repair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from goodnet.errors import DataError
from goodnet.record import ScanRecord, read_record
from goodnet.stamps import PlainStamp
from goodnet.triggers.files import read_triggers
from goodnet.triggers.inversion import Schedule
from goodnet.triggers.trigger import Trigger

_SUSPICIOUS = 0.1


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a scan of the net found, to repair and to judge by.

    Attributes:
        triggers: of the flagged labels, fitted with this seed on these images, so that the judging split is new to
            them. Empty if nothing was flagged: then the backdoor cannot be judged.
        labels: flagged labels of which no trigger was kept; they are searched anew.
        further: labels that were not flagged but are suspicious, the most suspicious first: by their p-values, one
            innocent label in ten is one.
        stamps: plain ones that lead to flagged labels, where a scan has looked for them.
        median_norm: mask norm of an innocent label, in pixels; None where unknown.
        schedule: of the search that gave that norm; a search on the repaired net must be the same to be compared.
    """

    triggers: tuple[Trigger, ...] = ()
    labels: tuple[int, ...] = ()
    further: tuple[int, ...] = ()
    stamps: tuple[PlainStamp, ...] = ()
    median_norm: float | None = None
    schedule: Schedule = Schedule(steps=160, batch=16)

    @property
    def targets(self) -> tuple[int, ...]:
        """All flagged labels, each once."""
        return tuple(dict.fromkeys([*(trigger.target for trigger in self.triggers), *self.labels]))

    @staticmethod
    def in_folder(folder: Path) -> tuple[Found, ScanRecord]:
        """Reads what `goodnet scan --out` left. Raises DataError where that is not a scan's."""
        record = read_record(folder / "scan.json")
        if not isinstance(record, ScanRecord):
            raise DataError(f"--scan: expected {folder / 'scan.json'} to be a scan's record, got {record.format}")
        if record.method.name == "gangsweep":  # its sizes are not those of masks, its triggers no fixed ones
            return Found(labels=record.flagged_labels, further=_suspicious(record)), record
        kept = read_triggers(folder / "triggers.npz")
        flagged = tuple(trigger for trigger in kept if trigger.target in record.flagged_labels)
        missing = tuple(label for label in record.flagged_labels if label not in {t.target for t in flagged})
        resolved = record.method.resolved
        try:
            search = (resolved["masks"] if record.method.name == "staged" else resolved)["search"]
            schedule = Schedule(steps=int(search["steps"]), batch=int(search["batch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"--scan: {folder / 'scan.json'} does not say how long the search was") from error
        stamped = {row.label: row.stamp for row in record.labels if row.flagged and row.stamp is not None}
        if any(stamp.label != label for label, stamp in stamped.items()):  # edited: it may name a label of no net
            raise DataError(f"--scan: {folder / 'scan.json'} has a plain stamp of another label than its row's")
        median = record.decision.median_norm
        found = Found(
            triggers=flagged,
            labels=missing,
            further=_suspicious(record),
            stamps=tuple(stamped.values()),
            median_norm=median,
            schedule=schedule,
        )
        return found, record


def _suspicious(record: ScanRecord) -> tuple[int, ...]:
    """Labels that a scan has not flagged and has cause to look at, by their p-values.

    Of a thousand labels that is a hundred, of which repairs take the first; of ten it is one, or none: to watch what a
    scan has found to be as innocent as the others costs accuracy for nothing.
    """
    found = sorted((row.p_value, row.label) for row in record.labels if not row.flagged and row.p_value is not None)
    return tuple(label for p_value, label in found if p_value <= _SUSPICIOUS)
