"""`python -m goodnet.peers.child FOLDER [PARENT]`: runs one program on the task in a folder and leaves there what it
said. It ends when the process of the number PARENT does."""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
import time
import traceback
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from goodnet.peers.registry import PEERS, Peer
from goodnet.peers.task import read_task, write_begun, write_failed, write_said


def main(folder: Path, parent: int) -> None:
    """Whatever the program does wrong becomes a line; the whole of it goes to stderr, which is kept beside."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    name, task = read_task(folder)
    peer = PEERS[name]
    random.seed(task.seed)
    np.random.seed(task.seed)  # noqa: NPY002  (the programs draw from it)
    torch.manual_seed(task.seed)
    write_begun(folder, _version(peer))
    try:
        said = importlib.import_module(f"goodnet.peers.{peer.adapter}").run(task, peer.name)
    except Exception as error:
        traceback.print_exc()
        write_failed(folder, _line(error))
    else:
        write_said(folder, said)


def _end_with(parent: int) -> None:
    """Ends this process once the one that started it is gone: nobody waits for what it says."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _version(peer: Peer) -> str:
    try:
        return metadata.version(peer.package or "goodnet")
    except metadata.PackageNotFoundError:
        return ""


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
