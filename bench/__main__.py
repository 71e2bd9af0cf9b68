"""`python -m bench NAME ...`: runs the named benchmarks. Those of scans are `goodnet bench`."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

from bench import clean_only, fine_pruning, fleet, gangsweep, scale, scale_paper

BENCHMARKS = {
    "gangsweep": gangsweep.main,
    "fine-pruning": fine_pruning.main,
    "clean-only": clean_only.main,
    "fleet": fleet.main,
    "scale": scale.main,
    "scale-paper": scale_paper.main,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        print(
            f"bench: expected names out of {', '.join(BENCHMARKS)}; got {(unknown or ['none'])[0]!r}", file=sys.stderr
        )
        return 3
    for name in names:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()
    return 0


sys.exit(main(sys.argv[1:]))
