"""How a Ray cluster is named, and what is arranged before it is joined; `runners` alone has ray itself."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from goodnet.errors import UsageError

# Read when ray is imported or a cluster is started. The regular expression is of lines that Ray must not print, which
# it would on stdout, among our records; the last of LOCAL keeps every port of a local cluster on 127.0.0.1.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
}
LOCAL = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a block takes, and how many there may be.

    Attributes:
        threads: of torch, and as many cores; one core where it computes on a GPU.
        gpu: it computes on one.
        memory: bytes, of which a node runs as many blocks at a time as have room, but one at least; 0 for no count.
        at_once: blocks that are handed to Ray and not done.
    """

    threads: int = 1
    gpu: bool = False
    memory: int = 0
    at_once: int = 1000


def host_and_port(address: str) -> tuple[str, int]:
    """`head:6379` or `ray://head:10001` -> host, port. Raises UsageError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) >= 1 << 16:
        raise UsageError(f"--address: expected auto, host:port or ray://host:port, got {address!r}")
    return host.strip("[]"), int(port)


def check_answers(address: str, where: tuple[str, int]) -> None:
    """Raises UsageError where nobody answers."""
    try:
        socket.create_connection(where, timeout=5).close()
    except OSError as error:
        raise UsageError(f"--address: no Ray cluster at {address}: {error.strerror or error}") from None


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """This process' environment with these in it, until the end of the `with`."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    """Ray puts the current folder first in the path of all workers' imports: not one that a stranger's files are in."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
