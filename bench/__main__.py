"""`python -m bench [NAME ...]`: runs the named benchmarks, or those that need no training."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

from bench import engine, fine_pruning, gangsweep, null_scale

BENCHMARKS = {
    "engine": engine.main,
    "gangsweep": gangsweep.main,
    "null-scale": null_scale.main,
    "fine-pruning": fine_pruning.main,
}
QUICK = ("engine",)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"bench: expected names out of {', '.join(BENCHMARKS)}; got {unknown[0]!r}", file=sys.stderr)
        return 3
    for name in names or QUICK:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()
    return 0


sys.exit(main(sys.argv[1:]))
