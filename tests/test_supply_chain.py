"""What goodnet installs: every dependency has a licence on the page and a version with hashes in the lock file."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11) or not (ROOT / "requirements.lock").is_file(),
    reason="needs Python 3.11 (tomllib) and the checkout",
)


def groups() -> dict[str, list[Requirement]]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in listed.items()}


def names(*left_out: str) -> set[str]:
    return {canonicalize_name(one.name) for group, lines in groups().items() if group not in left_out for one in lines}


def table() -> dict[str, tuple[str, str, str]]:
    """Version, licence and group of each package on the page."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (.+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text(), re.M)
    return {name: (version, licence, group) for name, version, licence, group in rows if name != "package"}


def locked() -> dict[str, list[tuple[str, int]]]:
    """Versions of each package in the lock file, and how many hashes each has."""
    found: dict[str, list[tuple[str, int]]] = {}
    for block in re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text()):
        head = re.match(r"([a-z0-9-]+)==([^ ;]+)", block)
        if head:
            found.setdefault(head[1], []).append((head[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block))))
    return found


def test_every_dependency_has_a_licence_on_the_page() -> None:
    rows = table()
    assert {"torch", "modelscan", "keras", "mkdocs", "pytest"} <= names() <= set(rows)
    assert all(licence.strip() for _, licence, _ in rows.values())
    for name in names(
        "onnx", "keras", "scan-code", "serve", "ray", "docs", "notebooks", "mlflow", "mlflow-test", "dev"
    ):
        assert rows[name][2] == "core"
    assert rows["modelscan"][2] == "[scan-code]"
    assert rows["mkdocs"][2] == "[docs]"
    silent = {name for name, (_, licence, _) in rows.items() if "not stated" in licence}
    assert not silent & names()


def test_the_page_says_what_the_packages_say() -> None:
    from bench.licences import licence

    compared = 0
    for name, (version, said, _) in table().items():
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if package.version.partition("+")[0] == version:
            assert licence(package) == said
            compared += 1
    assert compared > 0 or pytest.skip("none of the versions on the page is installed here")


def test_every_dependency_is_locked_with_its_hashes() -> None:
    lock = locked()
    assert "torch" not in lock  # its hash hangs on the index; the Makefile pins its version
    assert names("ray", "scan-code", "docs", "notebooks", "mlflow", "mlflow-test") - {"torch"} <= set(lock)
    assert all(hashes > 0 for versions in lock.values() for _, hashes in versions)
    for lines in (lines for group, lines in groups().items() if group not in ("scan-code", "docs")):
        for requirement in lines:
            for version, _ in lock.get(canonicalize_name(requirement.name), []):
                assert requirement.specifier.contains(version), requirement
    assert not [name for name in lock if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_makefile_and_the_lock_agree_on_torch() -> None:
    import tomllib

    pinned = re.search(r"^TORCH \?= (torch==[0-9.]+)$", (ROOT / "Makefile").read_text(), re.M)
    assert pinned is not None
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    assert tool["constraint-dependencies"] == [pinned[1]]
    assert [f"torch=={entry['version']}" for entry in tool["dependency-metadata"]] == [pinned[1]]
