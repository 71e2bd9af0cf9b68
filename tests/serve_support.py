"""The local page without its processes: the application as a client sees it, and forms as a browser sends them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.testclient import TestClient

from goodnet.serve.jobs import Choices, Job, Jobs
from goodnet.serve.routes import Limits, create_app
from goodnet.serve.runner import Runner
from goodnet.serve.security import Session

T = TypeVar("T")
PORT = 8642
ORIGIN = f"http://127.0.0.1:{PORT}"
BOUNDARY = "----border"


@dataclass(eq=False)
class Served:
    """An application whose jobs wait for ever, for nothing runs them.

    Attributes:
        links: that a person at the terminal has seen.
    """

    app: Any
    session: Session
    jobs: Jobs
    runner: Runner
    links: list[str]

    def client(self, *, known: bool = True, origin: str | None = ORIGIN) -> TestClient:
        """A browser; `known` if it has opened the link."""
        headers = {} if origin is None else {"origin": origin}
        client = TestClient(self.app, base_url=ORIGIN, headers=headers, follow_redirects=False)
        if known:
            client.cookies.set(self.session.cookie, self.session.secret)
        return client

    def job(
        self, model: str = "net.pt", clean: str = "clean.npz", choices: Choices | None = None, surrogate: str = ""
    ) -> Job:
        """A job with two small files; what `surrogate` names is the caller's to write."""
        with self.jobs.receiving() as place:
            place.model.write_bytes(b"weights of " + model.encode("utf-8", "replace"))
            place.clean.write_bytes(b"images")
            given = choices or Choices()
            return self.jobs.add(place, model=model, clean=clean, surrogate=surrogate, choices=given)


def served(folder: Path, limits: Limits | None = None) -> Served:
    links: list[str] = []
    session = Session(PORT, links.append)
    all_jobs = Jobs(folder)
    runner = Runner(all_jobs)
    app = create_app(all_jobs, session, limits or Limits(), runner)
    return Served(app=app, session=session, jobs=all_jobs, runner=runner, links=links)


def multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Parts of (field, file name or None, content) as a browser sends them."""
    lines = []
    for field, name, content in parts:
        file = "" if name is None else f'; filename="{name}"'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()


MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def endless(token: str, block: bytes, sent: list[int]) -> Iterator[bytes]:
    """A form whose net has no end that an application should live to see; counts the bytes that were asked for."""
    head = multipart(("csrf", None, token.encode()), ("model", "net.pt", b"")).removesuffix(
        f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    yield head
    for _ in range(64):
        sent.append(len(block))
        yield block
    raise AssertionError("all of it was taken")


def complete(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives, in a thread of its own: a browser that another test has opened runs a loop in ours."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def ask(app: Any, path: str, headers: dict[str, str], chunks: Iterator[bytes]) -> tuple[int, bytes]:
    """A POST whose body the application takes piece by piece, as from a server; status and body of the answer."""
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    return answer[0]["status"], b"".join(message.get("body", b"") for message in answer[1:])
