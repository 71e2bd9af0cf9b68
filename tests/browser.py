"""Chromium without a window, for tests that look at pages as people do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_QUIET = (
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def program() -> str:
    """Path of the browser; skips where there is none, fails where $GOODNET_NEED_BROWSER says that there must be."""
    named = os.environ.get("GOODNET_CHROMIUM", "")
    for name in (named, *_PROGRAMS):
        found = shutil.which(name) if name else None
        if found:
            return found
    reason = f"no browser: none of {', '.join(_PROGRAMS)} is there; install Debian's chromium or set GOODNET_CHROMIUM"
    if os.environ.get("GOODNET_NEED_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(eq=False)
class Looked:
    """A tab, and what went on in it beside what it shows.

    Attributes:
        page: Playwright's.
        errors: what the console called an error, and exceptions.
        left: addresses of another origin, or of other files, that the page asked for; they are refused.
    """

    page: Any
    origin: str
    errors: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def axe(self, *, serious: tuple[str, ...] = ("serious", "critical")) -> list[str]:
        """What axe-core finds that is at least serious, as `rule: selector`."""
        from axe_playwright_python.sync_playwright import Axe

        found = [one for one in Axe().run(self.page).response["violations"] if one["impact"] in serious]
        return [f"{one['id']}: {node['target'][0]}" for one in found for node in one["nodes"]]


class Browser:
    """Opens tabs, each with storage of its own."""

    def __init__(self, chromium: Any):
        self._chromium = chromium
        self._contexts: list[Any] = []

    def open(self, address: str, **options: Any) -> Looked:
        """A tab at an address, `file:` ones too; options as of Playwright's `new_context`.

        Whatever is not of the address's origin (its very file, for `file:`) is refused and noted.
        """
        context = self._chromium.new_context(**options)
        self._contexts.append(context)
        page = context.new_page()
        looked = Looked(page=page, origin=_origin(address))
        page.on("console", lambda said: looked.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: looked.errors.append(str(error)))

        def decide(route: Any) -> None:
            if route.request.url.startswith(("data:", "blob:")) or _origin(route.request.url) == looked.origin:
                route.continue_()
            else:
                looked.left.append(route.request.url)
                route.abort()

        page.route("**/*", decide)
        page.goto(address)
        return looked

    def close_tabs(self) -> None:
        while self._contexts:
            self._contexts.pop().close()


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"file:{parts.path}" if parts.scheme == "file" else f"{parts.scheme}://{parts.netloc}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Playwright's browser, one for all tests of a process."""
    path = program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # as root, which CI may be, Chromium starts without its own sandbox alone
        sandbox = os.name == "posix" and os.geteuid() != 0
        browser = playwright.chromium.launch(executable_path=path, args=list(_QUIET), chromium_sandbox=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    opened = Browser(chromium)
    yield opened
    opened.close_tabs()


def file_address(path: Path) -> str:
    return path.resolve().as_uri()
