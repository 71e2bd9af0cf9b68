"""`python -m bench.licences`: docs/licences.md, what goodnet and its extras install, with versions and licences.

Read off what the packages say of themselves, where they are installed; `--site DIR` looks in further folders of
packages, for extras that do not fit beside the others. Needs Python 3.11.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_SILENT = "not stated in the package"
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
_HEAD = """# Licences of what goodnet installs

Made by `python -m bench.licences` from what the packages say of themselves on Linux, Python 3.11; `core` is what every
install brings, the others are extras. What torch brings for CUDA is not listed: NVIDIA's own licences hold there. What
each direct dependency is for: [dependencies.md](dependencies.md).

| package | version | licence | comes with |
|---|---|---|---|
"""


def wanted() -> dict[str, list[Requirement]]:
    """The requirements in pyproject.toml: `core` and each extra."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def closure(requirements: Sequence[Requirement], found: Mapping[str, metadata.Distribution]) -> set[str]:
    """Names of the requirements and of all that they need. Raises SystemExit where one is not installed."""
    seen: set[str] = set()
    queue = deque((requirement, "") for requirement in requirements)
    while queue:
        requirement, extra = queue.popleft()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        if name not in found:
            sys.exit(f"{name} is not installed; install goodnet with all extras, or say with --site where it is")
        seen.add(name)
        queue += [(Requirement(line), "") for line in found[name].requires or ()]
    return seen


def licence(package: metadata.Distribution) -> str:
    """As the package states it: the expression, the classifiers, else the first line of the old field or the file."""
    about = package.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    kinds = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    words = str(about.get("License") or "").strip().splitlines() or _file(package)
    return ", ".join(kinds) or (words[0].strip()[:80] if words else _SILENT)


def _file(package: metadata.Distribution) -> list[str]:
    """The lines of the licence that comes with the package."""
    for file in package.files or ():
        if file.name in ("LICENSE", "LICENSE.txt"):
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            return [line for line in lines if "licen" in line.lower()]
    return []


def page(sites: Sequence[str]) -> str:
    """The whole page."""
    found: dict[str, metadata.Distribution] = {}
    for package in (*metadata.distributions(), *metadata.distributions(path=list(sites))):
        found.setdefault(canonicalize_name(package.metadata["Name"]), package)
    groups = {group: closure(lines, found) for group, lines in wanted().items()}
    rows = []
    for name in sorted(set().union(*groups.values())):
        comes = (
            "core" if name in groups["core"] else ", ".join(f"[{g}]" for g, names in groups.items() if name in names)
        )
        version = re.sub(r"\+.*", "", found[name].version)
        rows.append(f"| {name} | {version} | {licence(found[name])} | {comes} |")
    return _HEAD + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.licences", description=__doc__)
    parser.add_argument("--site", action="append", default=[], help="a further folder of installed packages")
    PAGE.write_text(page(parser.parse_args().site), encoding="utf-8")


if __name__ == "__main__":
    main()
