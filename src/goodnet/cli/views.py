"""--sarif and --junit: a record once more, for pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from goodnet.errors import UsageError
from goodnet.outputs import check_file, write_text
from goodnet.record import RepairRecord, ScanRecord
from goodnet.report.junit import render_junit
from goodnet.report.sarif import render_sarif

_F = TypeVar("_F", bound=Callable[..., Any])
_OURS = ("scan.json", "repair.json", "evaluate.json", "report.html", "triggers.npz")


def view_options(command: _F) -> _F:
    """--sarif and --junit; the command hands its options to `Views.of`."""
    decorators = [
        click.option("--sarif", type=click.Path(path_type=Path), metavar="FILE",
                     help="Write the result as SARIF 2.1.0, too, for code scanning."),
        click.option("--junit", type=click.Path(path_type=Path), metavar="FILE",
                     help="Write the result as JUnit XML, too, for CI servers."),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Views:
    """Where the views go; None for those that were not asked for."""

    sarif: Path | None
    junit: Path | None

    @staticmethod
    def of(options: dict[str, Any], *, out: Path | None, keep: Sequence[Path]) -> Views:
        """Takes the options out of a command's keyword arguments.

        Args:
            out: the folder of the record, which may be made only later.
            keep: files of the user's that no view may replace, not even with --overwrite.

        Raises:
            UsageError: a view would replace something, or cannot be written. Nothing has been written then.
        """
        views = Views(sarif=options.pop("sarif"), junit=options.pop("junit"))
        files = {"--sarif": views.sarif, "--junit": views.junit}
        if views.sarif is not None and views.junit is not None and views.sarif.resolve() == views.junit.resolve():
            raise UsageError("--junit: expected another file than that of --sarif, got the same")
        records = () if out is None else tuple(out / name for name in _OURS)
        kept = [path.resolve() for path in (*keep, *records)]
        for option, path in files.items():
            if path is None:
                continue
            if path.resolve() in kept:
                raise UsageError(f"{option}: expected a file of its own, got {path}, which is needed")
            inside = out is not None and not out.exists() and path.parent.resolve() == out.resolve()
            if not inside:
                check_file(path, overwrite=options["overwrite"], option=option)
        return views

    @contextmanager
    def written_after(self, *records: ScanRecord | RepairRecord) -> Iterator[None]:
        """Writes once the `with` is over: after the answer, which a full disk then cannot hide."""
        try:
            yield
        finally:
            self.write(*records)

    def write(self, *records: ScanRecord | RepairRecord) -> None:
        """Raises OSError where the disk does not take them."""
        if self.sarif is not None:
            write_text(self.sarif, render_sarif(records))
        if self.junit is not None:
            write_text(self.junit, render_junit(records))
