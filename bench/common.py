"""What benchmarks share."""

from __future__ import annotations

import os
from pathlib import Path


def shared_data() -> Path | None:
    """Folder of the real nets and images ($GOODNET_DATA, or beside the project); None where it is not."""
    root = Path(os.environ.get("GOODNET_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    return root if (root / "faces").is_dir() else None
