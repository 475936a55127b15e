"""The machines of a cluster, those its autoscaler may launch, and how many workers they hold."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet_ray import safe_yaml
from effnet_ray.errors import ClusterError

MACHINES_ENV = "EFFNET_MACHINES"
"""The machine types that an autoscaler outside of the cluster (KubeRay) may launch: YAML in the
format of `available_node_types` in a file for `ray up`."""
ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label in which Ray keeps the type of a machine's GPUs."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster, or a machine type that the autoscaler may launch."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    count: float = 1
    """How many machines of a type the autoscaler may launch."""
    node_id: str = ""
    """Ray's node id; empty for a type."""

    def has_accelerator(self, accelerators: Sequence[str]) -> bool:
        """Whether the machine's GPUs are of one of these types; true for an empty list."""
        return not accelerators or self.labels.get(ACCELERATOR_LABEL) in accelerators

    def max_workers(self, worker: Mapping[str, float], accelerators: Sequence[str] = ()) -> float:
        """Return how many workers with these resources one such machine holds.

        Infinite for a type without resources in its file: only the cloud knows them.
        """
        if not self.has_accelerator(accelerators):
            return 0
        if not self.resources:
            return math.inf
        limits = [
            _fitting(self.resources.get(name, 0), amount, whole=name == "GPU")
            for name, amount in worker.items()
            if amount
        ]
        return min(limits, default=math.inf)


def _fitting(available: float, amount: float, *, whole: bool) -> float:
    """How often an amount fits; `whole`: a share below 1 lies within one unit, as with GPUs."""
    if whole and amount < 1:
        return available // 1 * _fitting(1, amount, whole=False)
    return (available + 1e-6) // amount


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many workers a cluster holds when nothing else runs on it."""

    now: float
    maximum: float
    """With all machines that the autoscaler may launch; infinite if those are unknown."""
    machine_types: tuple[Machine, ...]
    """The launchable types of which one machine holds at least one worker."""


def alive_nodes() -> list[Machine]:
    """Return the cluster's live machines."""
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


def has_left(machine: Machine) -> bool:
    """Whether a machine that the cluster had is no longer alive."""
    return machine.node_id not in {node.node_id for node in alive_nodes()}


def task_on(machine: Machine, function: Callable[..., Any], **options: Any) -> Any:
    """A Ray task of a function that runs on one machine, beside what computes there."""
    affinity = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
    return ray.remote(function).options(
        **({"num_cpus": 0, "max_retries": 0, "scheduling_strategy": affinity} | options)
    )


def launchable() -> list[Machine] | None:
    """Return the machine types that the autoscaler may launch.

    Empty without an autoscaler, None if they are unknown. Ray does not expose them to a job
    (ray 2.60: only `report_cluster_config` would, and no open-source autoscaler calls it). But
    the autoscaler is a process on the head, where drivers run, and so is its configuration file.
    Raises ClusterError if EFFNET_MACHINES or the file cannot be parsed.
    """
    machines = os.environ.get(MACHINES_ENV)
    if machines:
        return parse_machines(machines)
    arguments = _autoscaler_arguments(ray.get_runtime_context().gcs_address)
    if arguments is None:
        return None
    file = arguments.get("--autoscaling-config")
    if not file:
        return []
    path = Path(file).expanduser()
    try:
        return _machine_types(file, _parse_yaml(file, path.read_text("utf-8")))
    except OSError:
        return None


def _autoscaler_arguments(gcs_address: str) -> dict[str, str] | None:
    """Return the arguments of this cluster's autoscaler process if it runs on this machine.

    Ray starts one with every head, even if there is nothing to launch; KubeRay has its own.
    """
    for process in psutil.process_iter():
        try:
            command_line = process.cmdline()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(word.endswith("/monitor.py") for word in command_line[:4]):
            arguments = dict(word.partition("=")[::2] for word in command_line)
            if arguments.get("--gcs-address") == gcs_address:
                return arguments
    return None


def parse_machines(text: str) -> list[Machine]:
    """The machine types that EFFNET_MACHINES has. Raises ClusterError if they cannot be parsed."""
    return _machine_types(MACHINES_ENV, {"available_node_types": _parse_yaml(MACHINES_ENV, text)})


def _parse_yaml(source: str, text: str) -> Any:
    try:
        return next(iter(safe_yaml.parse(text)), None)
    except ValueError as error:
        raise ClusterError(f"{source} is not valid YAML ({error}): correct it") from None


def _machine_types(source: str, config: Any) -> list[Machine]:
    """Return the types of a file for `ray up`, except its head's."""
    try:
        max_total = config.get("max_workers", math.inf)
        return [
            Machine(
                name,
                node_type.get("resources") or {},
                node_type.get("labels") or {},
                min(node_type.get("max_workers", max_total), max_total),
            )
            for name, node_type in config["available_node_types"].items()
            if name != config.get("head_node_type")
        ]
    except (AttributeError, KeyError, TypeError):
        raise ClusterError(
            f"{source} contains no machine types: expected the resources, labels and max_workers "
            "of each type, in the format of available_node_types in a file for `ray up`"
        ) from None


def worker_capacity(worker: Mapping[str, float], accelerators: Sequence[str] = ()) -> Capacity:
    """Return the capacity for workers with these resources each.

    With `accelerators`, only machines with GPUs of one of these types count.
    """
    return compute_capacity(alive_nodes(), launchable(), worker, accelerators)


def compute_capacity(
    machines: Iterable[Machine],
    machine_types: Iterable[Machine] | None,
    worker: Mapping[str, float],
    accelerators: Sequence[str],
) -> Capacity:
    """Return the capacity of live machines and of launchable types (None: unknown).

    A launched machine counts twice in `maximum`: as a machine and in its type's count. So
    `maximum` is an upper bound.
    """
    now = sum(machine.max_workers(worker, accelerators) for machine in machines)
    if machine_types is None:
        return Capacity(now, math.inf, ())
    suitable = tuple(
        machine_type
        for machine_type in machine_types
        if machine_type.count and machine_type.max_workers(worker, accelerators)
    )
    launched = sum(kind.count * kind.max_workers(worker, accelerators) for kind in suitable)
    return Capacity(now, now + launched, suitable)


def max_resource(resource: str, accelerators: Sequence[str] = ()) -> float:
    """Return how much of a resource the cluster has after scaling up.

    With `accelerators`, only machines with GPUs of one of these types count. If it is unknown
    what the autoscaler may launch, this is what the live machines have.
    """

    def amount(machine: Machine) -> float:
        return machine.resources.get(resource, 0) if machine.has_accelerator(accelerators) else 0

    live = sum(map(amount, alive_nodes()))
    launched = sum(kind.count * amount(kind) for kind in launchable() or ())
    return max(live, launched)
