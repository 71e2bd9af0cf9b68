"""The shape of the code: short files, short functions, and reports that need no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import goodnet

PACKAGE = Path(goodnet.__file__).parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def long_functions(source: str, limit: int) -> Iterator[str]:
    """Name and length of each function over the limit. Docstring and decorators (a command's options) do not count:
    a public function is not shorter for saying less about its arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            if lines > limit:
                yield f"{node.name}: {lines} lines"


def test_long_functions_are_found() -> None:
    source = "class A:\n    @property\n    def f(self):\n        'doc'\n        a = 1\n        return a\n"
    assert list(long_functions(source, 2)) == ["f: 3 lines"]
    assert list(long_functions(source, 3)) == []


def test_no_file_and_no_function_is_too_long() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert PACKAGE / "errors.py" in files
    found = []
    for file in files:
        source = file.read_text(encoding="utf-8")
        lines = source.count("\n")
        name = file.relative_to(PACKAGE)
        found += [f"{name}: {lines} lines"] if lines > MAX_FILE_LINES else []
        found += [f"{name}: {function}" for function in long_functions(source, MAX_FUNCTION_LINES)]
    assert not found


def test_reports_load_without_torch() -> None:
    code = "import sys, goodnet.report, goodnet.record, goodnet.stats; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_every_dependency_is_listed_with_its_licence() -> None:
    root = PACKAGE.parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("goodnet is not run from its checkout")
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    runtime = project[project.index("\ndependencies") :]
    runtime = runtime[: runtime.index("]")] + next(line for line in project.splitlines() if line.startswith("onnx = "))
    names = re.findall(r'"([a-z0-9_-]+)>=', runtime)
    assert {"torch", "onnx", "onnxruntime"} <= set(names)
    table = (root / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert [name for name in names if not re.search(rf"^\| {name}\b.*\|.*\|.*\|$", table, re.MULTILINE)] == []
