"""MkDocs hook: the root's pages join those of docs/, and links between files become links between pages.

On a code host a page links to files of the checkout, as `../SECURITY.md` or `../examples/csaw.py`. On the site docs/ is
the root and the root's own pages lie beside it; what is no page there (source code) stays as its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
_FENCED = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)`*[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<to>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def relinked(markdown: str, page: str) -> str:
    """The page's text with its links as the site needs them; code blocks stay as they are.

    Args:
        page: the page's name on the site, `methods/anp.md`.
    """
    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [_LINK.sub(lambda m: _link(m, page), markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _LINK.sub(lambda m: _link(m, page), markdown[end:])])


def _link(match: re.Match[str], page: str) -> str:
    folder = posixpath.dirname(page if page in ROOT_PAGES else f"docs/{page}")
    file = posixpath.normpath(posixpath.join(folder, match["to"]))
    if not (ROOT / file).exists():
        return match[0]  # MkDocs warns, and the build, which is strict, fails
    if file not in ROOT_PAGES and not file.startswith("docs/"):
        return match["text"]
    there = posixpath.relpath(file.removeprefix("docs/"), posixpath.dirname(page) or ".")
    return f"{match['image']}[{match['text']}]({there}{match['anchor'] or ''})"


def on_files(files: Any, config: Any) -> Any:
    """Adds the root's pages."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by MkDocs with each page's text."""
    return relinked(markdown, page.file.src_uri)
