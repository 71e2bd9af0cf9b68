"""Processes that end as no process should, and rows of a fleet's summary made by hand."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from goodnet.fleet.nets import Net
from goodnet.fleet.worker import LOOK, Job, Settings
from goodnet.fleet_record import EXIT_CODES, FleetRecord, NetRow, PassedOver, counts, exit_code
from goodnet.models.formats import LoadOptions
from goodnet.staged import Staged
from report_records import environment

KILLER = """
import os, signal, sys
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 11), nn.ReLU(), nn.Linear(11, 10))

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def crashed():
    import ctypes
    ctypes.string_at(0)
"""


def net_job(name: str = "net", origin: str = "", *, time_limit: float = 60.0) -> Job:
    net = Net(name=name, path=Path(name), clean=Path("clean.npz"), load=LoadOptions(), origin=origin)
    settings = Settings(
        method=Staged(), seed=0, check_input=True, device="cpu", sandbox=False, threads=1, time_limit=time_limit
    )
    return Job(net=net, settings=settings, task=LOOK, out=Path("out"), command=())


def killed(job: Job, pipe: Connection, log: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def broken(job: Job, pipe: Connection, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    raise ZeroDivisionError("of ours")


def silent(job: Job, pipe: Connection, log: Path) -> None:
    pass


def endless(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send_bytes(b'{"seconds": 1e9}')
    time.sleep(600)


def noisy(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send_bytes(b"x" * (1 << 20))
    time.sleep(600)


def pickled(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send(os.getcwd)  # a pickle, which nobody may read as one
    time.sleep(600)


def starved(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send_bytes(b'{"error": "not enough memory", "again": true}')


def lying(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send_bytes(b'{"scanned": true}')
    sys.exit(3)


def telling(job: Job, pipe: Connection, log: Path) -> None:
    pipe.send_bytes(f'{{"seconds": {job.net.origin}, "waits": true}}'.encode())


def row(name: str, status: str = "clean", **more: Any) -> NetRow:
    given = {"model": f"/nets/{name}", "clean": "/clean.npz", "seconds": 12.0, **more}
    return NetRow(name=name, status=status, exit_code=EXIT_CODES[status], **given)


def fleet(*rows: NetRow, passed_over: tuple[PassedOver, ...] = (), source: str = "nets", **more: Any) -> FleetRecord:
    given: dict[str, Any] = {"finished": True, "jobs": 2, "seconds": 60.0, **more}
    ran = environment("goodnet", "scan", source, "--clean", "clean.npz", "--out", "out")
    return FleetRecord(
        exit_code=exit_code(rows), counts=counts(rows), nets=rows, passed_over=passed_over, source=source,
        environment=ran, **given,
    )  # fmt: skip
