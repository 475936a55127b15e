"""A Ray cluster of several raylets on this machine, and its processes by what they do."""

import contextlib
import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from ray.cluster_utils import Cluster
from support.servers import free_port

WORKERS = 3
"""Machines beside the head, of one CPU each: one more than a run needs."""
TITLES = {
    "train worker": ("ray::RayTrainWorker", "ray::_RayTrainWorker"),
    "data task": ("ray::MapBatches", "ray::Map"),
    "controller": ("ray::TrainController",),
    "event channel": ("ray::EventChannel",),
}
"""How the titles of Ray's processes begin."""
KINDS = ("train worker", "data task", "raylet", "controller", "driver", "event channel")
ENDING_S = 60
"""Seconds in which processes end after their driver or their raylet. Chosen, not measured."""
MARK = "EFFNET_CHAOS"
"""Environment variable that all processes of a cluster inherit, and keep without a parent."""
QUIET = (
    "ray::IDLE", "ray::_AutoscalingCoordinatorActor", "ray::_UsageCollectionActor",
    "ray::_StatsActor", "ray::PlacementGroupCleaner", "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)  # fmt: skip
"""Ray's own processes, which stay between runs. The cleaner of a killed controller frees its
resources, but it stays: `exit_actor` ends its thread alone (ray 2.60)."""


@dataclass
class Machines:
    """A head without CPUs, and machines that come and go."""

    cluster: Any
    mark: str
    """Value of `MARK`."""
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return str(self.cluster.address)

    def add(self) -> None:
        """Add a machine."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=100 * 1024**2))

    def processes(self, kind: str) -> list[psutil.Process]:
        """The processes of one of `TITLES`, as far as they run now."""
        return [process for process, title in self.titles() if title.startswith(TITLES[kind])]

    def titles(self) -> list[tuple[psutil.Process, str]]:
        """Ray's worker processes with their titles."""
        named = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, IndexError):
                title = process.cmdline()[0]
                # Titles first: there are many processes, and a task may end soon.
                if title.startswith("ray::") and process.environ().get(MARK) == self.mark:
                    named.append((process, title))
        return named

    def kill_machine(self, draws: random.Random) -> None:
        """SIGKILL the raylet of a machine, which ends all processes there; add another one."""
        node = draws.choice(self.nodes)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()

    def check_idle(self) -> None:
        """Raise RuntimeError if a run's processes do not end after its driver."""
        until = time.monotonic() + ENDING_S
        while True:
            busy = [title for _, title in self.titles() if not title.startswith(QUIET)]
            if not busy:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"processes do not end: {busy}")
            time.sleep(0.2)


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster of its own; raises RuntimeError if a process of it is left afterwards."""
    with marking() as mark:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "object_store_memory": 100 * 1024**2,
                "include_dashboard": True, "dashboard_port": free_port(),
            },
        )  # fmt: skip
        running = Machines(cluster, mark)
        try:
            for _ in range(WORKERS):
                running.add()
            yield running
        finally:
            for node in [*running.nodes, cluster.head_node]:
                cluster.remove_node(node, allow_graceful=False)  # else each drains for 30 s


@contextmanager
def marking() -> Iterator[str]:
    """Mark the processes that are started here; raises RuntimeError if one is left at the end."""
    mark = os.environ[MARK] = uuid.uuid4().hex
    try:
        yield mark
    finally:
        del os.environ[MARK]
        _, left = psutil.wait_procs(marked(mark), timeout=ENDING_S)
        for process in left:
            process.kill()
    if left:
        raise RuntimeError(f"processes are left: {[process.info['name'] for process in left]}")


def marked(mark: str) -> list[psutil.Process]:
    """All processes of a cluster but this one."""
    result = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                result.append(process)
    return result
