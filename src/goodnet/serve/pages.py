"""What the pages show: templates, and the words for where a job stands. Everything from outside is escaped."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import jinja2

from goodnet.errors import DataError
from goodnet.models.arch import ARCHITECTURES
from goodnet.record import RepairRecord, ScanRecord
from goodnet.report import Part, figures
from goodnet.report.compare import Comparison, compare_repair
from goodnet.report.page import environment, render_report
from goodnet.report.pictures import Pair, gallery
from goodnet.serve import jobs
from goodnet.serve.jobs import Job, Place
from goodnet.serve.runner import Standing

_STAGES = {
    "reading the files": "Reading the files",
    "margins": "How far any input can be pushed towards each label",
    "search": "Searching for small triggers",
    "judging": "Checking triggers on images that the search has not seen",
    "fit ASR": "Checking triggers on the images of the search",
    "all-to-all": "Looking for one trigger that moves every class",
}
_START = re.compile(r"(.+), start (\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Told:
    """Where a job stands, in words.

    Attributes:
        title: a sentence.
        stage: what goes on, empty where nothing does.
        percent: of the stage; None where unknown.
        times: how long it has taken and how much is left.
    """

    version: int
    active: bool
    title: str
    stage: str
    percent: int | None
    times: str


@dataclass(frozen=True, kw_only=True)
class View:
    """One job as its page shows it; what is not there yet is None.

    Attributes:
        pair: an image before and after the first flagged trigger.
        steps: what to do where there is nothing to repair.
        problem: why the records cannot be read.
    """

    job: Job
    told: Told
    scan: ScanRecord | None = None
    pair: Pair | None = None
    repair: RepairRecord | None = None
    comparison: Comparison | None = None
    goodnet: str | None = None
    problem: str = ""


def view(job: Job, place: Place, standing: Standing) -> View:
    """Reads the job's records."""
    shown = View(job=job, told=tell(standing, job))
    try:
        scan, repair = place.scan(), place.repair()
        pair = _pair(scan, place) if scan is not None else None
    except DataError as error:
        return replace(shown, problem=str(error).replace(f"{place.folder}/", ""))
    kept = repair is not None and bool(repair.accepted) and place.goodnet.is_file()
    return replace(
        shown,
        scan=scan,
        pair=pair,
        repair=repair,
        comparison=compare_repair(repair) if repair is not None else None,
        goodnet=goodnet_name(job) if kept else None,
    )


def report(job: Job, place: Place) -> str:
    """The report as `goodnet report` writes it, naming no folder of ours. Raises DataError where there is none."""
    scan, repair = place.scan(), place.repair()
    if repair is not None and repair.goodnet_file is not None:
        repair = replace(repair, goodnet_file=goodnet_name(job))
    return render_report([Part(title=job.model, folder=place.out, scan=scan, repair=repair, lasting=False)])


def goodnet_name(job: Job) -> str:
    """The name that a browser saves the GoodNet under."""
    return f"{_file_stem(job)}-goodnet.safetensors"


def report_name(job: Job) -> str:
    return f"{_file_stem(job)}-report.html"


def _file_stem(job: Job) -> str:
    stem = _UNSAFE.sub("_", PurePath(job.model).stem).strip("._-")
    return stem[:60] or "net"


def _pair(scan: ScanRecord, place: Place) -> Pair | None:
    shown = [one for one in gallery(scan, place.out).triggers if one.flagged and one.pairs]
    return shown[0].pairs[0] if shown else None


def tell(standing: Standing, job: Job) -> Told:
    """Where a job stands, in words."""
    share = standing.share
    return Told(
        version=standing.version,
        active=standing.state in jobs.ACTIVE,
        title=_title(standing, job),
        stage=_stage(standing.stage) if standing.state == jobs.RUNNING else "",
        percent=round(100 * share) if share >= 0 else None,
        times=_times(standing) if standing.state == jobs.RUNNING else "",
    )


def _title(standing: Standing, job: Job) -> str:
    doing = {jobs.SCAN: "Scanning", jobs.REPAIR: "Repairing"}[standing.task]
    thing = {jobs.SCAN: "The scan", jobs.REPAIR: "The repair"}[standing.task]
    before = standing.place - 1
    ahead = "next in line" if before <= 0 else f"{before} more before it" if before > 1 else "one more before it"
    return {
        jobs.QUEUED: f"Waiting for another job to end: {ahead}",
        jobs.RUNNING: f"{doing} {job.model}",
        jobs.DONE: f"{thing} is done",
        jobs.FAILED: f"{thing} could not be done",
        jobs.CANCELLED: f"{thing} was cancelled",
        jobs.INTERRUPTED: f"{thing} was interrupted",
    }[standing.state]


def _stage(name: str) -> str:
    again = _START.fullmatch(name)
    if again:
        return f"{_stage(again[1])}, once more from start {again[2]}"
    method, colon, step = name.partition(": ")
    if colon:
        return f"Trying {method}: {step}"
    return _STAGES.get(name) or (name[:1].upper() + name[1:] if name else "Starting")


def _times(standing: Standing) -> str:
    parts = [f"{_time(standing.elapsed)} so far"]
    if standing.left >= 0:
        parts.append(f"about {_time(standing.left)} left of this step")
    if standing.at_most >= 0:
        parts.append(f"the whole scan at most {_time(standing.at_most)}")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else figures.duration(seconds)


def start_page(all_jobs: Sequence[tuple[Job, Standing, Place]], **more: Any) -> str:
    """The form for a new job, and the jobs that there are."""
    rows = [(job, tell(standing, job), _verdict(place)) for job, standing, place in all_jobs]
    return _templates().get_template("start.html.j2").render(rows=rows, architectures=list(ARCHITECTURES), **more)


def job_page(shown: View, **more: Any) -> str:
    return _templates().get_template("job.html.j2").render(view=shown, architectures=list(ARCHITECTURES), **more)


def error_page(message: str, *, title: str, back: str) -> str:
    return _templates().get_template("error.html.j2").render(message=message, title=title, back=back)


def _verdict(place: Place) -> str:
    """Of the scan, empty where there is none."""
    try:
        scan = place.scan()
    except DataError:
        return ""
    return scan.verdict if scan is not None else ""


@functools.cache
def _templates() -> jinja2.Environment:
    """Those of the page, with the report's beside them."""
    loaders = [jinja2.PackageLoader("goodnet", "serve"), jinja2.PackageLoader("goodnet", "report")]
    return environment().overlay(loader=jinja2.ChoiceLoader(loaders))
