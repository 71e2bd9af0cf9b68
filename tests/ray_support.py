"""A Ray cluster of several nodes on this machine, and what its processes are at."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent


def differing(one: Any, other: Any, path: str = "") -> set[str]:
    """Names of the fields in which two parsed records differ. By another runner they may only be `seconds`, how long it
    took, and `command`, what the user typed."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return set().union(*(differing(one.get(key), other.get(key), key) for key in keys))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return set().union(*(differing(a, b, path) for a, b in zip(one, other)))
    return set() if one == other and type(one) is type(other) else {path}


def need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        reason = "ray is not installed: pip install -e '.[ray]'"
        if os.environ.get("GOODNET_NEED_RAY"):
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Nodes:
    """A cluster of several nodes, on this machine."""

    address: str
    cluster: Any
    nodes: list[Any]

    def raylet(self, node: int) -> int:
        """Process of a node."""
        return int(self.nodes[node].all_processes["raylet"][0].process.pid)

    def busy(self, node: int) -> list[int]:
        """A node's processes that are at a block of ours."""
        return [pid for pid, parent, title in processes() if parent == self.raylet(node) and "ray::goodnet" in title]

    def lose(self, node: int) -> None:
        """All of the node's processes that Ray has started are gone, as with the machine."""
        for pid in (self.raylet(node), *self.busy(node)):
            os.kill(pid, signal.SIGKILL)

    def node_of(self, pid: int) -> int:
        """Which node a process belongs to, whoever between them has started it."""
        parents = {one: parent for one, parent, _ in processes()}
        raylets = [self.raylet(node) for node in range(len(self.nodes))]
        while pid not in raylets:
            pid = parents[pid]
        return raylets.index(pid)


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, twice, and ::1, as Linux writes them."""


def listens(pid: int) -> set[str]:
    """The addresses that a process takes connections at."""
    try:
        opened = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it has ended
        return set()
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in opened}


def processes() -> list[tuple[int, int, str]]:
    """(process, its parent, title) of all there are."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in listed.stdout.splitlines()[1:])
    return [(int(pid), int(parent), title) for pid, parent, title in rows]


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What it gives, once that is something."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    return pytest.fail(f"{what} took longer than {seconds} s")


@contextmanager
def cluster_of(*cores: int) -> Iterator[Nodes]:
    """A cluster of nodes with so many cores each, the head first; nodes that die are soon known to."""
    need_ray()
    set_for_ray = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in set_for_ray}
    os.environ.update(set_for_ray)
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    memory = {"object_store_memory": 100 << 20}
    head = {"num_cpus": cores[0], **memory, "include_dashboard": False, "_system_config": quick}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.head_node, *(cluster.add_node(wait=False, num_cpus=some, **memory) for some in cores[1:])]
        cluster.wait_for_nodes()
        yield Nodes(address=cluster.address, cluster=cluster, nodes=nodes)
        cluster.shutdown()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
