"""Joining a Ray cluster, or starting one on this machine; and what it can hold."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.recipe import Placement

GLOO = "gloo"
NCCL = "cpu:gloo,cuda:nccl"
"""NCCL for gradients, gloo for the few numbers that live on the CPU."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What to ask Ray for."""

    workers: int | tuple[int, int]
    use_gpu: bool
    resources_per_worker: dict[str, float]
    backend: str


def submitted() -> bool:
    """Whether this process is a job on a cluster, which `ray job submit` says by RAY_ADDRESS."""
    return bool(os.environ.get("RAY_ADDRESS"))


def connect(placement: Placement, *, local: bool, verbose: bool, dashboard: bool = False) -> str:
    """Join the cluster this job was submitted to, else start Ray here; say which.

    `dashboard`: start Ray's, too. Ray Train asks it whether a run's controller still lives, and
    without an answer never returns what a killed one had leased (ray 2.60
    `placement_group_cleaner.py`): a sweep, which stops trials, needs it.
    Only RAY_ADDRESS (which `ray job submit` sets) makes a job join a cluster: one that merely
    happens to run on this machine is left alone.
    """
    if ray.is_initialized():
        return "the Ray this process is connected to"
    joins = not local and submitted()
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
        ray.init(**options)
        _settle_ray_data()
        return f"the cluster at {os.environ['RAY_ADDRESS']}"
    cpus = max(os.cpu_count() or 1, placement.worker_range[1])
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=dashboard,
        **options,
    )
    return f"a local Ray on this machine ({cpus} CPUs)"


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
def leaving() -> Iterator[None]:
    """Leave Ray at the end, if it was joined meanwhile."""
    joined = ray.is_initialized()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def lease(placement: Placement, uris: Sequence[str]) -> Lease:
    """What to ask for. Raises ClusterError where this cluster can never give it."""
    check_reach(uris)
    nodes = _nodes()
    low, high = placement.worker_range
    _check_capacity(placement, low)
    shared = placement.gpus_per_worker and placement.gpus_per_worker < 1
    resources: dict[str, float] = {"CPU": _cpus_per_worker(nodes, high)}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    return Lease(
        workers=low if low == high else (low, high),
        use_gpu=bool(placement.gpus_per_worker),
        resources_per_worker=resources,
        # NCCL refuses two workers on one GPU.
        backend=NCCL if placement.gpus_per_worker and not shared else GLOO,
    )


def check_reach(uris: Sequence[str]) -> None:
    """Raises ClusterError for a local path where the cluster has several nodes."""
    for uri in uris:
        if not storage.is_remote(uri) and len(_nodes()) > 1:
            raise ClusterError(
                f"{uri} is a folder of one machine, but the cluster has {len(_nodes())} nodes: "
                "use an s3:// URI that all of them can reach"
            )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _cpus_per_worker(nodes: Sequence[dict[str, dict[str, float]]], workers: int) -> float:
    """1, or less where one machine with fewer cores than workers must hold them all."""
    cpus = sum(node["Resources"].get("CPU", 0) for node in nodes)
    if len(nodes) > 1 or cpus < 1 or cpus >= workers:
        return 1
    return math.floor(100 * cpus / workers) / 100


def _check_capacity(placement: Placement, workers: int) -> None:
    """What a cluster can never give is refused at once."""
    wanted = placement.gpus_per_worker * workers
    have, most = capacity("GPU")
    if wanted > most:
        grows = f"grows to {most:g} at most" if most > have else "does not grow"
        raise ClusterError(
            f"{workers} workers with {placement.gpus_per_worker:g} GPUs each need {wanted:g} "
            f"GPUs, the cluster has {have:g} and {grows}: lower --workers or --gpus-per-worker, "
            "or add machines"
        )


def capacity(resource: str) -> tuple[float, float]:
    """How much of a resource the cluster has, and has when its autoscaler has grown it."""
    from ray._private.state import state  # the only place where Ray tells an autoscaler's limits

    have = ray.cluster_resources().get(resource, 0)
    limits = state.get_max_resources_from_cluster_config() or {}
    return have, max(have, limits.get(resource, 0))
