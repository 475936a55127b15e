"""Joining a Ray cluster, or starting one on this machine; and what it can hold."""

import logging
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.placement import Placement
from effnet_ray.runtime import nodes

GLOO = "gloo"
NCCL = "cpu:gloo,cuda:nccl"
"""NCCL for gradients, gloo for the few numbers that live on the CPU."""
LOOPBACK, NOBODY = "127.0.0.1", 1
"""Nothing listens on port 1."""
DASHBOARD_ENV = "RAY_API_SERVER_ADDRESS"
"""Where processes of Ray look for the dashboard first."""
ANSWER_S = 10
"""In which a cluster's head accepts a connection."""


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What to ask Ray for."""

    workers: int | tuple[int, int]
    use_gpu: bool
    resources_per_worker: dict[str, float]
    backend: str
    accelerators: tuple[str, ...] = ()
    """On machines with one of these; none: on any."""

    @property
    def labels(self) -> dict[str, str]:
        """Ray's label selector for each worker."""
        if not self.accelerators:
            return {}
        return {nodes.ACCELERATOR_LABEL: f"in({','.join(self.accelerators)})"}

    def describe(self, workers: int) -> str:
        """So many workers in words, as `2 workers with 1 CPU and 1 GPU (L4) each`."""
        asked = [f"{each:g} {name}" for name, each in self.resources_per_worker.items() if each]
        which = f" ({' or '.join(self.accelerators)})" if self.accelerators else ""
        plural, apiece = ("s", " each") if workers > 1 else ("", "")
        return f"{workers} worker{plural} with {' and '.join(asked)}{which}{apiece}"


def is_submitted_job() -> bool:
    """Whether this process is a job on a cluster, which `ray job submit` says by RAY_ADDRESS."""
    return bool(os.environ.get("RAY_ADDRESS"))


def is_connected() -> bool:
    """Whether this process has joined or started a Ray."""
    return bool(ray.is_initialized())


def connect(placement: Placement, *, local: bool, verbose: bool, dashboard: bool = False) -> str:
    """Join the cluster this job was submitted to, else start Ray here; say which.

    `dashboard`: start Ray's, too. Without it, what a killed run had leased is never returned: a
    sweep, which stops trials, needs it.
    Only RAY_ADDRESS (which `ray job submit` sets) makes a job join a cluster: one that merely
    happens to run on this machine is left alone.
    """
    if ray.is_initialized():
        return "the Ray this process is connected to"
    joins = not local and is_submitted_job()
    if not verbose:
        # Ray decides about its dashboards' and workers' noise from these, when it starts.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        # Ray warns of four times as many processes as may start at once; a sweep has more.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    options = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if joins:
        _check_address(os.environ["RAY_ADDRESS"])
        _init(**options)
        _settle_ray_data()
        return f"the cluster at {os.environ['RAY_ADDRESS']}"
    cpus = max(os.cpu_count() or 1, placement.worker_range[1])
    start_local(cpus, dashboard=dashboard, **options)
    return f"a local Ray on this machine ({cpus} CPUs)"


def start_local(cpus: int, *, dashboard: bool = False, **options: Any) -> None:
    """Start a Ray of this process's own; `options` are `ray.init`'s.

    Ray Train asks a dashboard, each second, whether a run's controller still lives, and returns
    what a dead one had leased (ray 2.60 `placement_group_cleaner.py`). Which dashboard, its
    processes take from RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else from the last `ray start` on
    this machine, else from the only Ray that runs there; one that never heard of the run says
    that it is dead. So ours are told. A Ray without a dashboard names port 8265 all the same,
    where another's may be: its processes are sent to nobody.
    """
    port = _free_port() if dashboard else NOBODY
    with environment_variable(DASHBOARD_ENV, f"http://{LOOPBACK}:{port}"):
        _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_host=LOOPBACK,
            dashboard_port=port if dashboard else None,
            **options,
        )


def _init(**options: Any) -> None:
    """`ray.init`, after which the program's own handler of SIGTERM is in place again.

    Ray puts two in its stead; the second prints a C++ trace and aborts the process 3 s later,
    whatever that is still ending (2.60 `worker.py`; absl's `alarm_on_failure_secs`).
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Have an environment variable meanwhile: processes and actors that start take it over."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def _check_address(address: str) -> None:
    """Raises ClusterError where it is no cluster's, or nobody answers; Ray would try for long."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", host) or not port.isdigit():
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}: expected HOST:PORT of the cluster that this process is "
            "to join, as `ray job submit` sets it; where jobs are submitted to is "
            "RAY_API_SERVER_ADDRESS"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no cluster answers at RAY_ADDRESS {address} ({error}): start it, or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from None


def _settle_ray_data() -> None:
    """Have Ray Data start its own actors here, on the head, where a submitted job's driver runs.

    They stay for as long as the cluster does, on the node of the first process that uses Ray Data
    (ray 2.60 `stats.py`, `default_autoscaling_coordinator.py`). A bought machine would be kept by
    them for ever.
    """
    import ray.data  # takes a second

    level = logging.getLogger("ray.data").level
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # No CPU: there may be none yet.
    ray.data.from_items([0]).map_batches(lambda batch: batch, num_cpus=0).materialize()
    logging.getLogger("ray.data").setLevel(level)


@contextmanager
def shutdown_if_started() -> Iterator[None]:
    """Leave Ray at the end, if it was joined meanwhile."""
    joined = ray.is_initialized()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def request_resources(placement: Placement, uris: Sequence[str]) -> ResourceRequest:
    """What to ask for. Raises ClusterError where this cluster can never give it."""
    check_reachable(uris)
    low, high = placement.worker_range
    resources: dict[str, float] = {"CPU": _cpus_per_worker(nodes.alive_nodes(), high)}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    shared = placement.gpus_per_worker and placement.gpus_per_worker < 1
    asked = ResourceRequest(
        workers=low if low == high else (low, high),
        use_gpu=bool(placement.gpus_per_worker),
        resources_per_worker=resources,
        accelerators=placement.accelerators,
        # NCCL refuses two workers on one GPU.
        backend=NCCL if placement.gpus_per_worker and not shared else GLOO,
    )
    _check_room(asked, low)
    return asked


def check_reachable(uris: Sequence[str]) -> None:
    """Raises ClusterError for a local path where the cluster has several nodes."""
    for uri in uris:
        if not storage.is_remote(uri) and len(nodes.alive_nodes()) > 1:
            raise ClusterError(
                f"{uri} is a folder of one machine, but the cluster has "
                f"{len(nodes.alive_nodes())} nodes: use an s3:// URI that all of them can reach"
            )


def _cpus_per_worker(living: Sequence[nodes.Machine], workers: int) -> float:
    """1, or less where one machine with fewer cores than workers must hold them all."""
    cpus = sum(machine.resources.get("CPU", 0) for machine in living)
    if len(living) > 1 or cpus < 1 or cpus >= workers:
        return 1
    return math.floor(100 * cpus / workers) / 100


def _check_room(asked: ResourceRequest, workers: int) -> None:
    """What a cluster can never give is refused at once."""
    found = nodes.worker_capacity(asked.resources_per_worker, asked.accelerators)
    if workers <= found.maximum:
        return
    grows = (
        f"{found.maximum:g} when it has grown"
        if found.machine_types
        else "can buy no machine for more"
    )
    raise ClusterError(
        f"{asked.describe(workers)} cannot be had: this cluster holds {found.now:g} such, and "
        f"{grows}: lower --workers or --gpus-per-worker, or add machines"
    )
