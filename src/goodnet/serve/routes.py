"""What the page answers to. Ids are matched before anything is looked up, and no name from outside is ever a path."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from goodnet.errors import DataError, GoodnetError
from goodnet.report import policy
from goodnet.serve import jobs, pages
from goodnet.serve.choices import choices_of
from goodnet.serve.jobs import Choices, Job, Jobs
from goodnet.serve.runner import Runner, new_picture
from goodnet.serve.security import Guarded, Session
from goodnet.serve.uploads import MIB, Form, Refused, TooLarge, Wanted, read_form, read_upload

_STATIC = {
    "report.css": ("goodnet.report", "text/css"),
    "serve.css": ("goodnet.serve", "text/css"),
    "serve.js": ("goodnet.serve", "text/javascript"),
    "icon.svg": ("goodnet.serve", "image/svg+xml"),
}
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large what comes in may be, in MB of 2^20 bytes."""

    model_mb: int = 2048
    data_mb: int = 2048
    picture_mb: int = 16

    @property
    def model(self) -> int:
        return self.model_mb * MIB

    @property
    def data(self) -> int:
        return self.data_mb * MIB

    @property
    def picture(self) -> int:
        return self.picture_mb * MIB


def create_app(all_jobs: Jobs, session: Session, limits: Limits, runner: Runner) -> ASGIApp:
    """The application, behind its checks."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.open()
        yield
        await runner.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    shown = _Shown(jobs=all_jobs, runner=runner, session=session, limits=limits)
    app.include_router(_static())
    app.include_router(_reading(shown))
    app.include_router(_doing(shown))
    app.add_exception_handler(GoodnetError, _refused)
    app.add_exception_handler(AnyHTTPException, _missing)
    app.add_exception_handler(RequestValidationError, _missing)
    app.add_exception_handler(OSError, _no_room)
    return Guarded(app, session)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What routes share."""

    jobs: Jobs
    runner: Runner
    session: Session
    limits: Limits

    def job(self, name: str) -> Job:
        if name not in self.jobs:
            raise HTTPException(404)
        return self.jobs[name]

    async def view(self, name: str) -> pages.View:
        """Reads records, which takes too long for the event loop."""
        return await run_in_threadpool(pages.view, self.job(name), self.jobs.place(name), self.runner.standing(name))

    async def page(self, name: str, answer: dict[str, Any] | None = None) -> HTMLResponse:
        given = {"csrf": self.session.csrf, "limits": self.limits, "answer": answer}
        return HTMLResponse(await run_in_threadpool(pages.job_page, await self.view(name), **given))

    async def form(self, request: Request) -> Form:
        return await read_form(request, self.session.allows)


def _reading(shown: _Shown) -> APIRouter:
    """What changes nothing."""
    router = APIRouter()

    @router.get("/")
    async def start() -> HTMLResponse:
        rows = [(job, shown.runner.standing(job.id), shown.jobs.place(job.id)) for job in shown.jobs.all()]
        given = {"csrf": shown.session.csrf, "limits": shown.limits, "choices": Choices()}
        return HTMLResponse(await run_in_threadpool(pages.start_page, rows, **given))

    @router.get("/jobs/{name}")
    async def job(name: Id) -> HTMLResponse:
        return await shown.page(name)

    @router.get("/jobs/{name}/events")
    async def events(name: Id) -> StreamingResponse:
        shown.job(name)
        return StreamingResponse(_stream(shown, name), media_type="text/event-stream")

    @router.get("/jobs/{name}/report")
    def report(name: Id, download: bool = False) -> Response:
        job = shown.job(name)
        # a page of its own origin, which could not reach ours even if something in it ran
        headers = {"content-security-policy": f"sandbox allow-scripts; frame-ancestors 'none'; {policy()}"}
        if download:
            headers["content-disposition"] = f'attachment; filename="{pages.report_name(job)}"'
        return HTMLResponse(pages.report(job, shown.jobs.place(name)), headers=headers)

    @router.get("/jobs/{name}/goodnet")
    async def goodnet(name: Id) -> Response:
        file = (await shown.view(name)).goodnet
        if file is None:
            raise HTTPException(404)
        return FileResponse(shown.jobs.place(name).goodnet, media_type="application/octet-stream", filename=file)

    return router


def _static() -> APIRouter:
    """Style, script and icon."""
    router = APIRouter()

    @router.get("/favicon.ico")
    def icon() -> Response:  # browsers ask for it beside the report, which names none
        return static("icon.svg")

    @router.get("/static/{file}")
    def static(file: str) -> Response:
        if file not in _STATIC:
            raise HTTPException(404)
        package, kind = _STATIC[file]
        return Response(resources.files(package).joinpath(file).read_bytes(), media_type=kind)

    return router


def _doing(shown: _Shown) -> APIRouter:
    """What changes something: POST alone."""
    router = APIRouter()

    @router.post("/jobs")
    async def create(request: Request) -> RedirectResponse:
        with shown.jobs.receiving() as place:
            wanted = {
                "model": Wanted(path=place.model, what="The net", limit=shown.limits.model),
                "clean": Wanted(path=place.clean, what="The clean images", limit=shown.limits.data),
                "surrogate": Wanted(path=place.surrogate, what="The other pictures", limit=shown.limits.data),
            }
            form = await read_upload(request, wanted, shown.session.allows)
            missing = [wanted[name].what for name in ("model", "clean") if name not in form.files]
            if missing:
                raise DataError(f"{missing[0]}: expected a file, got none")
            names = {"surrogate": "", **form.files}
            job = shown.jobs.add(place, **names, choices=choices_of(form.fields))
        await shown.runner.submit(job.id, jobs.SCAN)
        return _to(job.id)

    @router.post("/jobs/{name}/scan")
    async def scan(name: Id, request: Request) -> RedirectResponse:
        shown.job(name)
        choices = choices_of((await shown.form(request)).fields)
        await shown.runner.submit(name, jobs.SCAN, choices=choices)
        return _to(name)

    @router.post("/jobs/{name}/repair")
    async def repair(name: Id, request: Request) -> RedirectResponse:
        shown.job(name)
        await shown.form(request)
        scanned = await run_in_threadpool(shown.jobs.place(name).scan)
        if scanned is None or not scanned.flagged_labels:
            raise DataError("there is no flagged label to repair; scan first")
        await shown.runner.submit(name, jobs.REPAIR)
        return _to(name)

    @router.post("/jobs/{name}/picture")
    async def picture(name: Id, request: Request) -> HTMLResponse:
        shown.job(name)
        place, file = shown.jobs.place(name), new_picture()
        path = place.folder / file
        try:
            wanted = {"picture": Wanted(path=path, what="The picture", limit=shown.limits.picture)}
            form = await read_upload(request, wanted, shown.session.allows)
            if "picture" not in form.files:
                raise DataError("The picture: expected a file, got none")
            answer = await shown.runner.picture(name, file, form.files["picture"])
        finally:
            path.unlink(missing_ok=True)
        return await shown.page(name, {**answer, "name": form.files["picture"]})

    for action, then in (("cancel", None), ("delete", shown.jobs.remove)):
        router.post(f"/jobs/{{name}}/{action}")(_ending(shown, then))
    return router


def _ending(shown: _Shown, then: Callable[[str], None] | None) -> Callable[..., Awaitable[RedirectResponse]]:
    async def ending(name: Id, request: Request) -> RedirectResponse:
        shown.job(name)
        await shown.form(request)
        await shown.runner.cancel(name)
        if then is None:
            return _to(name)
        await run_in_threadpool(then, name)
        return RedirectResponse("/", status_code=303)

    return ending


async def _stream(shown: _Shown, name: str) -> AsyncIterator[str]:
    """Server-sent events, the state of now first; a browser that lost the line asks again after two seconds."""
    yield "retry: 2000\n\n"
    async for standing in shown.runner.events(name):
        if standing is None:
            yield ": still here\n\n"
        elif name in shown.jobs:
            yield f"data: {json.dumps(asdict(pages.tell(standing, shown.jobs[name])))}\n\n"


def _to(name: str) -> RedirectResponse:
    return RedirectResponse(f"/jobs/{name}", status_code=303)


async def _refused(request: Request, error: Exception) -> HTMLResponse:
    status = 413 if isinstance(error, TooLarge) else 403 if isinstance(error, Refused) else 400
    return _error(request, status, str(error), "That did not work")


async def _no_room(request: Request, error: Exception) -> HTMLResponse:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "of the disk"
    return _error(request, 507, f"The file could not be kept: {reason}. Make room, and try again.", "That did not work")


async def _missing(request: Request, error: Exception) -> HTMLResponse:
    status = error.status_code if isinstance(error, AnyHTTPException) else 404
    return _error(request, status, "There is nothing here; the job may have been deleted.", "Not found")


def _error(request: Request, status: int, message: str, title: str) -> HTMLResponse:
    name = request.path_params.get("name", "")
    back = f"/jobs/{name}" if status != 404 and name else "/"
    return HTMLResponse(pages.error_page(message, title=title, back=back), status_code=status)
