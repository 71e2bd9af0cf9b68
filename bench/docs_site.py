"""MkDocs hook: the root's pages and the notebooks join those of docs/; links between files become links between pages.

On a code host a page links to files of the checkout, as `../SECURITY.md` or `../examples/csaw.py`. On the site docs/ is
the root and the root's own pages lie beside it; what is no page there (source code) stays as its text. A notebook's
page has its text and its code; outputs are not kept, so there are none to show.
"""

from __future__ import annotations

import json
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
    if there.endswith(".ipynb"):
        there = there.removesuffix("ipynb") + "md"
    return f"{match['image']}[{match['text']}]({there}{match['anchor'] or ''})"


def notebook_page(notebook: str, name: str) -> str:
    """A notebook's cells as a page's Markdown; `name` is that of its file, which lies beside the page."""
    title, *cells = json.loads(notebook)["cells"]
    parts = ["".join(title["source"]), f'To run it: <a href="{name}" download>{name}</a>.']
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the root's pages and the notebooks'."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        content = notebook_page(path.read_text(encoding="utf-8"), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by MkDocs with each page's text."""
    return relinked(markdown, page.file.src_uri)
