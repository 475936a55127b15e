"""The machines of a cluster: those it has, those its autoscaler may buy, and what they hold."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from effnet_ray.errors import ClusterError

MACHINES_ENV = "EFFNET_MACHINES"
"""Where Ray's autoscaler lives beside the cluster (KubeRay), what it may start: YAML as under
`available_node_types` of a file for `ray up`."""
ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label by which Ray says what a machine's GPUs are."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster, or a type of which the autoscaler may buy `count`."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    count: float = 1
    node_id: str = ""
    """Ray's; empty for a type."""

    def max_workers(self, worker: Mapping[str, float], accelerators: Sequence[str] = ()) -> float:
        """How many workers one such machine holds.

        Infinitely many where a type's file does not say its resources: the cloud knows them.
        """
        if accelerators and self.labels.get(ACCELERATOR_LABEL) not in accelerators:
            return 0
        if not self.resources:
            return math.inf
        each = [
            (self.resources.get(name, 0) + 1e-6) // amount
            for name, amount in worker.items()
            if amount
        ]
        return min(each, default=math.inf)


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many workers a cluster holds if nothing else runs on it."""

    now: float
    maximum: float
    """When its autoscaler has bought all it may; infinite where nobody knows."""
    machine_types: tuple[Machine, ...]
    """Types of which one holds a worker at least."""


def alive_nodes() -> list[Machine]:
    """The machines that live."""
    return [
        Machine(
            node["NodeManagerHostname"],
            node["Resources"],
            node.get("Labels") or {},
            node_id=node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def launchable() -> list[Machine] | None:
    """Types of which the autoscaler may buy some; empty without one, None where nobody knows.

    Ray tells a job nothing about it (ray 2.60: only `report_cluster_config` would, and no open
    autoscaler calls it), but the autoscaler is a process of the head, where drivers run, and its
    file lies there. Raises ClusterError where EFFNET_MACHINES cannot be read.
    """
    told = os.environ.get(MACHINES_ENV)
    if told:
        return _types(MACHINES_ENV, {"available_node_types": _yaml(MACHINES_ENV, told)})
    arguments = _autoscaler(ray.get_runtime_context().gcs_address)
    if arguments is None:
        return None
    file = arguments.get("--autoscaling-config")
    if not file:
        return []
    path = Path(file).expanduser()
    try:
        return _types(file, _yaml(file, path.read_text()))
    except OSError:
        return None


def _autoscaler(gcs_address: str) -> dict[str, str] | None:
    """The arguments of this cluster's autoscaler, if it runs on this machine.

    Ray starts one with every head, also where it has nothing to buy; KubeRay has its own.
    """
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(word.endswith("/monitor.py") for word in line[:4]):
            given = dict(word.partition("=")[::2] for word in line)
            if given.get("--gcs-address") == gcs_address:
                return given
    return None


def _yaml(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClusterError(f"{where} is no YAML ({' '.join(str(error).split())})") from None


def _types(where: str, config: Any) -> list[Machine]:
    """The types of a file for `ray up`, all but its head's."""
    try:
        most = config.get("max_workers", math.inf)
        return [
            Machine(
                name,
                each.get("resources") or {},
                each.get("labels") or {},
                min(each.get("max_workers", most), most),
            )
            for name, each in config["available_node_types"].items()
            if name != config.get("head_node_type")
        ]
    except (AttributeError, KeyError, TypeError):
        raise ClusterError(
            f"{where} names no machines: expected, for each type, its resources, labels and "
            "max_workers, as a file for `ray up` has them under available_node_types"
        ) from None


def worker_capacity(worker: Mapping[str, float], accelerators: Sequence[str] = ()) -> Capacity:
    """For workers that each lease `worker`, on GPUs of one of these types if any are given."""
    return compute_capacity(alive_nodes(), launchable(), worker, accelerators)


def compute_capacity(
    living: Iterable[Machine],
    types: Iterable[Machine] | None,
    worker: Mapping[str, float],
    accelerators: Sequence[str],
) -> Capacity:
    """The same, of known machines.

    A machine that was bought counts twice when grown, once by its type: so `grown` is a bound,
    and what lies above it can never be had.
    """
    now = sum(machine.max_workers(worker, accelerators) for machine in living)
    if types is None:
        return Capacity(now, math.inf, ())
    offers = tuple(kind for kind in types if kind.count and kind.max_workers(worker, accelerators))
    bought = sum(kind.count * kind.max_workers(worker, accelerators) for kind in offers)
    return Capacity(now, now + bought, offers)


def max_resource(resource: str, accelerators: Sequence[str] = ()) -> float:
    """How much of a resource the cluster has when its autoscaler has grown it.

    On machines with one of these accelerators, if any are given. Where nobody knows what the
    autoscaler may buy, it is what is here.
    """
    living = sum(_amount(machine, resource, accelerators) for machine in alive_nodes())
    bought = sum(kind.count * _amount(kind, resource, accelerators) for kind in launchable() or ())
    return max(living, bought)


def _amount(machine: Machine, resource: str, accelerators: Sequence[str]) -> float:
    fits = not accelerators or machine.labels.get(ACCELERATOR_LABEL) in accelerators
    return machine.resources.get(resource, 0) if fits else 0
