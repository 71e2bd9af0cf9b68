"""The shape of the code: short files, short functions, and reports that need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import goodnet

PACKAGE = Path(goodnet.__file__).parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def long_functions(source: str, limit: int) -> Iterator[str]:
    """Name and length of each function, docstring and decorators included, that is over the limit."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = (node.end_lineno or first) - first + 1
            if lines > limit:
                yield f"{node.name}: {lines} lines"


def test_long_functions_are_found() -> None:
    source = "class A:\n    @property\n    def f(self):\n        a = 1\n        return a\n\n\ndef g():\n    pass\n"
    assert list(long_functions(source, 3)) == ["f: 4 lines"]
    assert list(long_functions(source, 4)) == []


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
