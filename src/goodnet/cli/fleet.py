"""`goodnet scan` of many nets: a folder, a manifest, or a model of a registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from goodnet.cli import progress
from goodnet.cli.manifest import read_manifest
from goodnet.cli.options import ModelOptions, command_line, resolve_device, take_model_options
from goodnet.cli.output import note
from goodnet.cli.running import take_runner
from goodnet.errors import GoodnetError, UsageError
from goodnet.fleet.away import share_out_on
from goodnet.fleet.keys import sandboxed
from goodnet.fleet.machine import cores, share_out
from goodnet.fleet.nets import ENDINGS, Fleet, Net, is_one_net, nets_in, size_of
from goodnet.fleet.registry import SCHEME, Registry
from goodnet.fleet.run import check_out, plan_fleet, scan_fleet
from goodnet.fleet.worker import Settings
from goodnet.fleet_record import EXIT_CODES, PAGE, SUMMARY, WAITING, NetRow, read_fleet
from goodnet.models.formats import LoadOptions
from goodnet.models.hugging_face import CONFIG
from goodnet.outputs import claimed
from goodnet.report import figures, fleet_words
from goodnet.runners import OnRay
from goodnet.scan import Detector
from goodnet.strict_json import to_json

HOUR = 3600.0
_DOWNLOADS = ".goodnet-downloads-"
_PLAIN = {"input_range": "0..1", "method": "staged", "seed": 0, "false_alarm_rate": 0.01, "precision": "auto",
          "device": "auto"}  # fmt: skip
_WORDS = ("arch", "classes", "input_range", "mean", "std", "input_shape", "data_range", "labels", "method",
          "exhaustive", "false_alarm_rate", "block", "memory", "precision", "seed", "device",
          "no_preflight")  # fmt: skip


def is_fleet(source: Path) -> bool:
    """Whether the argument of `goodnet scan` names many nets rather than one."""
    if str(source).startswith(SCHEME) and not source.exists():
        return True
    return not is_one_net(source) if source.is_dir() else source.suffix.lower() == ".csv" and source.is_file()


def scan_many(source: Path, clean: Path | None, options: dict[str, Any], method: Detector) -> int:
    """The command, once it is known to be of many nets. `options` are those of `goodnet scan`."""
    for name in ("sarif", "junit"):
        if options[name] is not None:
            raise UsageError(f"--{name}: is of one net; goodnet report DIR/nets/NAME --{name} FILE writes it of each")
    where = take_runner(options, cores=cores())
    out = options["out"]
    earlier = check_out(out, str(source), overwrite=options["overwrite"])
    given = {**options, **{name: options[name] for name in ModelOptions.__dataclass_fields__}}
    model_options = take_model_options(options)
    as_json, only_plan = options["as_json"], options["only_plan"]
    with ExitStack() as stack:
        kept = out is not None and not only_plan
        place = out if kept else Path(stack.enter_context(TemporaryDirectory(prefix="goodnet-")))
        stack.enter_context(claimed(out if kept else None))
        fleet = stack.enter_context(_found(source, clean, out, given, place))
        device = resolve_device(model_options.device)
        largest = max((_size(net.path) for net in fleet.nets if net.path is not None), default=0)
        given_out = {"device": device, "largest": largest, "nets": len(fleet.nets), "memory": options["memory"]}
        runner, away = stack.enter_context(where), None
        if isinstance(runner, OnRay):
            jobs, away = share_out_on(runner, options["jobs"], **given_out)
            threads = away.needs.threads
        else:
            jobs, threads = share_out(options["jobs"], **given_out)
        if options["jobs"] is not None and jobs < min(options["jobs"], len(fleet.nets)):
            note(f"goodnet: --jobs {options['jobs']}: there is {'memory' if away is None else 'room'} for {jobs}")
        settings = Settings(
            method=method,
            seed=options["seed"],
            check_input=not options["no_preflight"],
            device=device,
            sandbox=sandboxed(model_options.sandbox),
            threads=threads,
            time_limit=options["time_limit"] or HOUR,
            memory=options["memory"],
        )
        if only_plan:
            with progress.shown(as_json) as report:
                rows = plan_fleet(fleet, settings, jobs=jobs, away=away, progress=report)
            return _say_plan(rows, jobs, as_json)
        try:
            with progress.shown(as_json) as report:
                record = scan_fleet(
                    fleet, settings, out=place, jobs=jobs, away=away, earlier=earlier,
                    command=command_line(), progress=report, told=_tell(as_json),
                    begins=_begins(as_json, len(fleet.nets), jobs, out),
                )  # fmt: skip
        except KeyboardInterrupt:
            return _interrupted(out)
    if as_json:
        click.echo(to_json(record), nl=False)
    else:
        click.echo(fleet_words.table(record, None if out is None else str(out / PAGE)))
        if out is None:
            click.echo("Pass --out DIR for the reports, and to go on after an interruption.")
    return record.exit_code


@contextmanager
def _found(source: Path, clean: Path | None, out: Path | None, given: dict[str, Any], place: Path) -> Iterator[Fleet]:
    """The fleet; what was downloaded for it, into `place`, is removed at the end."""
    if str(source).startswith(SCHEME) and not source.exists():
        for left in place.glob(f"{_DOWNLOADS}*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        with TemporaryDirectory(prefix=_DOWNLOADS, dir=place) as folder:
            yield _registered(str(source), clean, given, Path(folder).absolute())
    elif source.is_dir():
        yield _in_folder(source, clean, out, given)
    else:
        nets = [_net(cells, clean, given, f"{source}, line {line}: ") for line, cells in read_manifest(source)]
        yield Fleet(source=str(source), nets=tuple(nets))


def _in_folder(source: Path, clean: Path | None, out: Path | None, given: dict[str, Any]) -> Fleet:
    leave = tuple(path for path in (clean, out) if path is not None)
    paths, passed = nets_in(source, leave=leave)
    if not paths:
        found = f"{CONFIG}, but no weights beside it" if (source / CONFIG).is_file() else f"a folder without {CONFIG}"
        raise UsageError(
            f"{source}: {found}, and no nets below: expected a folder of Hugging Face's, or files that end in "
            f"{', '.join(ENDINGS)}; a folder of images goes to --clean"
        )
    cells = [{"model": str(path), "name": path.relative_to(source).as_posix()} for path in paths]
    return Fleet(
        source=str(source), nets=tuple(_net(one, clean, given, "") for one in cells), passed_over=tuple(passed)
    )


def _registered(address: str, clean: Path | None, given: dict[str, Any], folder: Path) -> Fleet:
    registry = Registry(address)
    nets = []
    with progress.shown(given["as_json"]) as report:
        for turn, version in enumerate(registry.versions):
            report("downloading", turn, len(registry.versions))
            cells: dict[str, Any] = {"model": registry.uri(version), "name": f"{registry.model}/{version}"}
            try:
                cells["path"] = registry.fetch(version, folder / version)
            except GoodnetError as error:
                cells["problem"] = str(error)
            nets.append(_net(cells, clean, given, ""))
        report("downloading", len(nets), len(nets))
    return Fleet(source=address, nets=tuple(nets))


def _net(cells: dict[str, Any], clean: Path | None, given: dict[str, Any], where: str) -> Net:
    """One net: what its own cells say, else what the command line does. Raises UsageError, naming `where`."""
    own = {**given, **cells}
    images = Path(cells["clean"]) if "clean" in cells else clean
    if images is None:
        raise UsageError(f"{where}no clean images: pass --clean, or name them in a column clean of a manifest")
    try:
        load = LoadOptions(**{name: own[name] for name in LoadOptions.__dataclass_fields__})
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error
    fetched = "path" in cells or "problem" in cells
    return Net(
        name=cells["name"],
        path=cells.get("path") if fetched else Path(cells["model"]).absolute(),
        clean=images.absolute(),
        load=load,
        labels=own["labels"],
        data_range=own["data_range"],
        origin=cells["model"] if fetched else "",
        command=("goodnet", "scan", cells["model"], "--clean", str(images), *_words(own)),
        problem=cells.get("problem", ""),
    )


def _words(own: dict[str, Any]) -> list[str]:
    """The options of a scan of this net alone."""
    words: list[str] = []
    for name in _WORDS:
        value = own[name]
        if value in (None, (), False) or value == _PLAIN.get(name):
            continue
        text = ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)
        text += "B" if name == "memory" else ""
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", text]
    return words


def _size(path: Path) -> int:
    try:
        return size_of(path)
    except OSError:  # its row will say so
        return 0


def _tell(as_json: bool) -> Any:
    def told(row: NetRow) -> None:
        if not as_json:
            note(fleet_words.row_line(row))

    return told


def _begins(as_json: bool, nets: int, jobs: int, out: Path | None) -> Any:
    def said(count: int) -> None:
        if as_json:
            return
        note(f"goodnet: {nets:,} nets, {jobs} at a time, the cheapest first")
        if count:
            note(f"goodnet: going on where an earlier run stopped: {count:,} nets are done")
        if out is not None:
            note(f"goodnet: {figures.visible(str(out / PAGE))} shows what is done so far")

    return said


def _interrupted(out: Path | None) -> int:
    if out is None or not (out / SUMMARY).is_file():
        text = "interrupted: nothing was kept; with --out the same command would go on"
    else:
        rows = read_fleet(out / SUMMARY).nets
        done = sum(row.status != WAITING for row in rows)
        text = f"interrupted: {done:,} of {len(rows):,} nets are done and kept in {out}: the same command goes on there"
    click.echo(f"goodnet: {figures.visible(text)}", err=True)
    return EXIT_CODES[WAITING]


def _say_plan(rows: Sequence[NetRow], jobs: int, as_json: bool) -> int:
    """The plan as the answer; 3 where a net would be refused, as of a single one."""
    code = max((row.exit_code for row in rows if row.status != WAITING), default=0)
    ordered = sorted(rows, key=lambda row: (row.status != WAITING, row.estimated_seconds or 0.0))
    seconds = sum(row.estimated_seconds or 0.0 for row in rows) / jobs
    if as_json:
        keys = ("name", "status", "estimated_seconds", "reason")
        nets = [{key: asdict(row)[key] for key in keys} for row in ordered]
        click.echo(
            to_json({"format": "goodnet.fleet-plan/1", "seconds": seconds, "jobs": jobs, "nets": nets}), nl=False
        )
        return code
    click.echo("Plan:")
    for row in ordered:
        click.echo(fleet_words.plan_line(row))
    click.echo(f"  at most {figures.duration(seconds)} in all, {jobs} at a time; reading and judging come on top")
    return code
