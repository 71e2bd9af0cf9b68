"""The documentation as a site: built strictly, nothing fetched from elsewhere, and what it promises is there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench.docs_site import notebook_page, relinked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        reason = "mkdocs, mkdocs-material or mkdocstrings is not installed: pip install -e '.[docs]'"
        if os.environ.get("GOODNET_NEED_DOCS"):
            pytest.fail(reason)
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr  # never with --quiet, which also keeps warnings from being counted
    return out


class Loads(HTMLParser):
    """What a page has a browser fetch, and the text of its paragraphs."""

    def __init__(self, page: str):
        super().__init__()
        self.fetched: list[str] = []
        self.paragraphs: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "object"):
            self.fetched += [given.get(name) or "" for name in ("src", "srcset", "data") if name in given]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given.get("href") or "")
        if tag == "p":
            self.inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.paragraphs[-1] += data


def elsewhere(address: str) -> bool:
    return bool(re.match(r"(?:[a-z]+:)?//", address))


def test_what_a_page_fetches_is_seen() -> None:
    page = '<link rel="preconnect" href="https://a.b"><script src="//c.d/e.js"></script><a href="https://x.y">z</a>'
    assert [address for address in Loads(page).fetched if elsewhere(address)] == ["https://a.b", "//c.d/e.js"]


def test_no_page_asks_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loads = Loads(page.read_text(encoding="utf-8"))
        assert loads.fetched, page
        assert not [address for address in loads.fetched if elsewhere(address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_no_list_has_become_a_paragraph(site: Path) -> None:
    """A code host shows a list right under a line of text as a list; Python's Markdown wants an empty line between."""
    for page in site.rglob("*.html"):
        texts = Loads(page.read_text(encoding="utf-8")).paragraphs
        assert not [text for text in texts if re.search(r"^(?:[*-] |\d+\. |\|.*\|$)", text, re.MULTILINE)], page


def test_links_of_the_checkout_become_links_of_the_site() -> None:
    for page, text, wanted in (
        ("formats.md", "[a](../SECURITY.md#b)", "[a](SECURITY.md#b)"),
        ("README.md", "[a](docs/csaw.md) [b](SECURITY.md)", "[a](csaw.md) [b](SECURITY.md)"),
        ("guides/gate.md", "[a](../../SECURITY.md)", "[a](../SECURITY.md)"),
        ("design/decision.md", "![a](../images/detection.svg)", "![a](../images/detection.svg)"),
        ("csaw.md", "see [`csaw.py`](../examples/csaw.py).", "see `csaw.py`."),
        ("guides/vet.md", "[a](../notebooks/vet.ipynb)", "[a](../notebooks/vet.md)"),
        ("notebooks/vet.md", "[a](repair.ipynb)", "[a](repair.md)"),
        ("csaw.md", "[a](https://arxiv.org/abs/1) [b](#c)", "[a](https://arxiv.org/abs/1) [b](#c)"),
        (
            "csaw.md",
            "```\n[a](../SECURITY.md)\n```\n[a](../SECURITY.md)",
            "```\n[a](../SECURITY.md)\n```\n[a](SECURITY.md)",
        ),
        ("csaw.md", "[a](gone.md)", "[a](gone.md)"),  # left for the strict build to refuse
    ):
        assert relinked(text, page) == wanted


def test_a_notebook_becomes_a_page() -> None:
    cells = [("markdown", ["# Title\n", "said"]), ("code", ["x = 1\n", "x"]), ("markdown", ["more"])]
    text = json.dumps({"cells": [{"cell_type": kind, "source": source} for kind, source in cells]})
    page = '# Title\nsaid\n\nTo run it: <a href="a.ipynb" download>a.ipynb</a>.\n\n```python\nx = 1\nx\n```\n\nmore\n'
    assert notebook_page(text, "a.ipynb") == page


def test_the_notebooks_are_on_the_site(site: Path) -> None:
    for name, said in (("vet", "What the verdict rests on"), ("repair", "Keep and export")):
        page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert said in page
        assert f'<a href="{name}.ipynb" download' in page
        assert (site / "notebooks" / f"{name}.ipynb").is_file()


def links(file: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from (match[1] for match in re.finditer(r"\]\(([^)\s]+)\)", text))


def test_links_lead_somewhere_on_a_code_host() -> None:
    seen = 0
    for file in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"), *(ROOT / "examples").rglob("*.md")]:
        for link in links(file):
            path = link.partition("#")[0]
            if path and not elsewhere(path):
                assert (file.parent / path).exists(), f"{file.relative_to(ROOT)}: {link}"
                seen += 1
    assert seen > 100


def api_names() -> list[str]:
    pages = sorted((DOCS / "api").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)]


def imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", api_names())
def test_each_name_of_the_reference_exists_and_says_what_it_is(name: str) -> None:
    thing = imported(name)
    assert thing.__module__ == name.rpartition(".")[0], "defined elsewhere"
    own = thing.__doc__ or ""
    assert own.strip()
    assert not own.startswith(f"{thing.__name__}("), "the signature that dataclass puts where no docstring is"


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, thing in vars(module).items():
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__ and callable(thing):
            yield name, thing


def test_every_public_thing_beside_them_has_a_docstring() -> None:
    modules = sorted({name.rpartition(".")[0] for name in api_names()})
    assert "goodnet.scan" in modules
    missing = [
        f"{module}.{name}"
        for module in modules
        for name, thing in public(importlib.import_module(module))
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and (not (thing.__doc__ or "").strip() or (thing.__doc__ or "").startswith(f"{name}("))
    ]
    assert not missing


def test_names_in_the_text_exist() -> None:
    """`goodnet.a.b` in a page, as code, is a module or something in one."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    names = {name for page in pages for name in re.findall(r"`(goodnet(?:\.\w+)+)`", page.read_text(encoding="utf-8"))}
    assert "goodnet.detection.OwnDetector" in names
    for name in sorted(names):
        assert importlib.util.find_spec(name.rpartition(".")[0]) is not None, name
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            imported(name)


def test_the_reference_shows_what_the_docstrings_say(site: Path) -> None:
    for page, said in (
        ("scan", "Scans a net for backdoors."),
        ("detectors", "What <code>goodnet.scan.scan</code> takes as <code>method</code> beside goodnet"),
        ("detectors", "Searches for a backdoor."),
        ("inputs", "Reads a net from a file without running anything in it"),
    ):
        assert said in (site / "api" / f"{page}.html").read_text(encoding="utf-8")
