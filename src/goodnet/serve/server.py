"""The server itself: a port of 127.0.0.1, a folder, and a tidy end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvicorn

from goodnet.errors import UsageError
from goodnet.outputs import claimed
from goodnet.serve.jobs import Jobs
from goodnet.serve.routes import Limits, create_app
from goodnet.serve.runner import Runner
from goodnet.serve.security import Session

_PATIENCE = 3  # seconds for answers that are under way when the server is stopped


def serve(folder: Path | None, *, port: int, limits: Limits, show: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C.

    Args:
        folder: where jobs live; None for a temporary one, which is removed at the end.
        port: 0 for any that is free.
        show: called with each link.

    Raises:
        UsageError: the port is taken, or the folder cannot be used.
    """
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"  # nothing of this is for anybody's telemetry
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))  # uploads and results are the user's alone
        place = stack.enter_context(_temporary()) if folder is None else folder
        stack.enter_context(claimed(place, option="--folder"))
        listening = stack.enter_context(_listening(port))
        session = Session(listening.getsockname()[1], show)
        runner = Runner(Jobs(place))
        app = create_app(runner.jobs, session, limits, runner)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, ws="none", server_header=False, date_header=False,
            proxy_headers=False, timeout_graceful_shutdown=_PATIENCE, lifespan="on",
        )  # fmt: skip
        session.new_link()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again that it was stopped by
            _Server(settings, runner).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Tells the runner first that it stops, for it would wait for streams of events."""

    def __init__(self, config: uvicorn.Config, runner: Runner):
        super().__init__(config)
        self.runner = runner

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.runner.let_go()
        await super().shutdown(sockets)


@contextmanager
def _temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="goodnet-serve-"))  # of mode 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        try:
            made.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"--port: port {port} of 127.0.0.1 cannot be had ({error.strerror}); "
                "pass another, or 0 for any that is free"
            ) from error
        yield made
    finally:
        made.close()
