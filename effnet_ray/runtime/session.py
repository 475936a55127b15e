"""Joins a Ray cluster or starts Ray on this machine, and checks that it can hold the workers."""

import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from effnet_ray.errors import ClusterError
from effnet_ray.placement import Placement
from effnet_ray.runtime import nodes, ray_start, shared_folders

GLOO = "gloo"
NCCL = "cpu:gloo,cuda:nccl"
"""NCCL for gradients, gloo for the few numbers that are on the CPU."""
LOOPBACK = "127.0.0.1"
UNUSED_PORT = 1
"""Nothing listens on port 1."""
DASHBOARD_ENV = "RAY_API_SERVER_ADDRESS"
"""Where Ray's processes look first for the dashboard's address."""
CONNECT_TIMEOUT_S = 10
"""Seconds in which a cluster's head accepts a connection. Chosen, not measured."""
QUIET_ENV = {
    # Ray 2.60 warns, unless set, that later versions will not hide GPUs from CPU-only workers.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Train exports metrics for Ray's dashboards alone.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray warns of more than four times as many processes as may start at once; sweeps have more.
    "RAY_worker_maximum_startup_concurrency": "16",
}
"""Settings that Ray and its processes read when they start, for fewer warnings."""
LOCAL_ENV = {
    # Nobody takes this machine away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Counts executions of Ray Data for Ray's usage statistics.
    "RAY_DATA_USAGE_DISABLED": "1",
}
"""Settings of a local Ray, for two processes less, each of which imports Ray for seconds."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The workers to request from Ray."""

    workers: int | tuple[int, int]
    """Their number, or the smallest and the largest."""
    use_gpu: bool
    resources_per_worker: dict[str, float]
    backend: str
    """Of torch.distributed."""
    accelerators: tuple[str, ...] = ()
    """Allowed GPU types. Default: any."""

    @property
    def labels(self) -> dict[str, str]:
        """Ray's label selector for each worker."""
        if not self.accelerators:
            return {}
        return {nodes.ACCELERATOR_LABEL: f"in({','.join(self.accelerators)})"}

    def describe(self, workers: int) -> str:
        """Describe a number of workers, as `2 workers with 1 CPU and 1 GPU (L4) each`."""
        resources = [
            f"{amount:g} {name}" for name, amount in self.resources_per_worker.items() if amount
        ]
        gpu_types = f" ({' or '.join(self.accelerators)})" if self.accelerators else ""
        plural, suffix = ("s", " each") if workers > 1 else ("", "")
        return f"{workers} worker{plural} with {' and '.join(resources)}{gpu_types}{suffix}"


def is_submitted_job() -> bool:
    """Whether this process is a job on a cluster: `ray job submit` sets RAY_ADDRESS."""
    return bool(os.environ.get("RAY_ADDRESS"))


def is_connected() -> bool:
    """Whether this process has joined or started Ray."""
    return bool(ray.is_initialized())


def connect(placement: Placement, *, local: bool, verbose: bool, dashboard: bool = False) -> str:
    """Join the cluster that this job was submitted to, else start Ray here; describe which.

    Only RAY_ADDRESS (set by `ray job submit`) makes a job join a cluster: a Ray that happens to
    run on this machine is left alone. `dashboard` also starts Ray's dashboard: without it Ray
    never frees the resources of a killed run. A sweep stops trials and therefore needs it.
    """
    if ray.is_initialized():
        return "the Ray this process is connected to"
    if not verbose:
        for name, value in QUIET_ENV.items():
            os.environ.setdefault(name, value)
    options = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if is_submitted_job() and not local:
        _check_address(os.environ["RAY_ADDRESS"])
        ray_start.init(**options)
        _start_ray_data_actors()
        return f"the cluster at {os.environ['RAY_ADDRESS']}"
    cpus = max(os.cpu_count() or 1, placement.worker_range[1])
    start_local(cpus, dashboard=dashboard, **options)
    return f"a local Ray on this machine ({cpus} CPUs)"


def start_local(cpus: int, *, dashboard: bool = False, **options: Any) -> None:
    """Start Ray on this machine for this process alone; `options` are passed to `ray.init`.

    Ray Train asks a dashboard every second whether a run's controller is alive, and frees the
    resources of a dead one (ray 2.60 `placement_group_cleaner.py`). Ray's processes look for the
    dashboard's address in RAY_API_SERVER_ADDRESS, RAY_ADDRESS, the last `ray start` on this
    machine and the only Ray that runs here, in this order. The dashboard of another cluster
    reports an unknown controller as dead. So this Ray's processes get their own dashboard's
    address; without a dashboard, a port where nothing listens, since port 8265, which Ray would
    use, may belong to another Ray.
    """
    ray_start.check_space()
    port = _free_port() if dashboard else UNUSED_PORT
    settings = {name: os.environ.get(name, value) for name, value in LOCAL_ENV.items()}
    with environment_variables({**settings, DASHBOARD_ENV: f"http://{LOOPBACK}:{port}"}):
        ray_start.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_host=LOOPBACK,
            dashboard_port=port if dashboard else None,
            **options,
        )


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which processes and actors started in the context inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def _check_address(address: str) -> None:
    """Raise ClusterError for an invalid address, or if nothing answers: Ray would retry long."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", host) or not port.isdigit():
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}: expected HOST:PORT of the cluster that this process "
            "joins, as set by `ray job submit`; to choose where jobs are submitted to, set "
            "RAY_API_SERVER_ADDRESS"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no cluster answers at RAY_ADDRESS {address} ({error}): start it, or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from None


def _start_ray_data_actors() -> None:
    """Make Ray Data start its own actors on this node, the head, where submitted jobs run.

    They stay as long as the cluster does, on the node of the first process that uses Ray Data
    (ray 2.60 `stats.py`, `default_autoscaling_coordinator.py`). On a launched machine they would
    prevent the autoscaler from ever terminating it.
    """
    import ray.data  # takes a second

    level = logging.getLogger("ray.data").level
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # num_cpus=0: the cluster may have no CPUs yet.
    ray.data.from_items([0]).map_batches(lambda batch: batch, num_cpus=0).materialize()
    logging.getLogger("ray.data").setLevel(level)


def request_resources(placement: Placement, uris: Sequence[str]) -> ResourceRequest:
    """Return the request for a placement.

    Raises ClusterError if this cluster can never hold the workers or cannot reach the URIs.
    """
    shared_folders.check_reachable(uris)
    low, high = placement.worker_range
    resources: dict[str, float] = {"CPU": _cpus_per_worker(nodes.alive_nodes(), high)}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    # NCCL refuses two workers on one GPU.
    use_nccl = placement.gpus_per_worker == 1
    request = ResourceRequest(
        workers=low if low == high else (low, high),
        use_gpu=placement.on_gpu,
        resources_per_worker=resources,
        accelerators=placement.accelerators,
        backend=NCCL if use_nccl else GLOO,
    )
    _check_capacity(request, low)
    return request


def _cpus_per_worker(machines: Sequence[nodes.Machine], workers: int) -> float:
    """Return 1, or less if one machine with fewer CPUs than workers must hold all of them."""
    cpus = sum(machine.resources.get("CPU", 0) for machine in machines)
    if len(machines) > 1 or cpus < 1 or cpus >= workers:
        return 1
    return math.floor(100 * cpus / workers) / 100


def _check_capacity(request: ResourceRequest, workers: int) -> None:
    """Raise ClusterError if the cluster cannot hold the workers even after scaling up."""
    capacity = nodes.worker_capacity(request.resources_per_worker, request.accelerators)
    if workers <= capacity.maximum:
        return
    scaled_up = (
        f", or {capacity.maximum:g} when scaled up"
        if capacity.machine_types
        else ", and its autoscaler cannot launch machines for more"
    )
    raise ClusterError(
        f"not enough resources for {request.describe(workers)}: this cluster has room for "
        f"{capacity.now:g}{scaled_up}: lower --workers or --gpus-per-worker, or add machines"
    )
