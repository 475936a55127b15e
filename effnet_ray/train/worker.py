"""What Ray Train runs on every worker: reads its rank from Ray and calls `run_worker`."""

import math
import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from effnet_ray.data.decode_machines import DecodeMachine, Shares, worker_shares
from effnet_ray.data.ray_executor import RayExecutor
from effnet_ray.model.network import fix_order_of_sums
from effnet_ray.placement import Placement
from effnet_ray.runtime.actors import call
from effnet_ray.runtime.preemption import PreemptionWatch
from effnet_ray.train.events import Event, StepDone
from effnet_ray.train.worker_job import WorkerJob, WorkerRank
from effnet_ray.train.worker_loop import run_worker


@dataclass(frozen=True, slots=True)
class RayWorkerConfig:
    """The config of Ray Train's train function."""

    job: WorkerJob
    channel: Any
    """Actor handle of the run's EventChannel."""
    reports: bool = False
    """Whether callbacks receive each epoch's metrics; workers then wait for Ray Train."""


def train(config: dict[str, RayWorkerConfig]) -> None:
    """Train on this worker; Ray Train calls it, and again after a failure."""
    fix_order_of_sums()
    settings = config["worker"]
    job, context = settings.job, ray.train.get_context()
    local_workers = context.get_local_world_size()
    rank = WorkerRank(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )
    cores, store_mb = _node_share(job.placement, local_workers)
    if rank.device.type == "cpu":
        torch.set_num_threads(max(1, cores // local_workers))
    elif rank.device.type == "cuda":  # workers on one GPU would take each other's memory
        torch.cuda.set_per_process_memory_fraction(job.placement.gpus_per_worker or 1, rank.device)
    run_worker(
        job,
        rank,
        ActorChannel(settings.channel),
        _executor(job, rank, cores, local_workers, store_mb),
        report=ray.train.report if settings.reports else None,
        should_stop=PreemptionWatch().is_draining,
    )


def _executor(
    job: WorkerJob, rank: WorkerRank, cores: int, local_workers: int, store_mb: float
) -> RayExecutor:
    """Decodes on this worker's share of its machine, and of those that have no workers.

    `--cores` limits it to this machine.
    """
    own = ray.get_runtime_context().get_node_id()
    # A GPU worker keeps a core to itself, to launch kernels.
    free = cores - local_workers if rank.device.type == "cuda" else cores
    own_tasks = max(1.0, (free + 1) / local_workers)
    occupied = _workers_machines()

    def shares() -> Shares:
        if job.placement.cores is not None:
            return {own: own_tasks}
        machines = DecodeMachine.alive()
        return worker_shares(
            machines, own, own_tasks, workers=rank.workers, workers_machines=occupied
        )

    elsewhere = sum(shares().values()) - own_tasks
    _, prefetch_mb = job.placement.decoding(free, local_workers, store_mb, elsewhere)
    lanes = job.dataset.plan.workers_lanes(rank.rank, rank.workers)
    tasks = job.placement.decode_tasks
    return RayExecutor(tasks, prefetch_mb, local_chunks=len(lanes), shares=shares)


def _workers_machines() -> set[str]:
    """Node ids of the machines with workers of this run."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return set()
    nodes: dict[int, str] = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return set(nodes.values())


def _node_share(placement: Placement, local_workers: int) -> tuple[int, float]:
    """Cores and MB of object store on this node that the run's workers may use."""
    cores, store_mb = _node_resources()
    if placement.cores is None:
        return cores, store_mb
    share = min(cores, placement.cores * local_workers)
    return share, store_mb * share / cores


def _node_resources() -> tuple[int, float]:
    """Cores and MB of object store of this node by Ray: a container has less than its host."""
    node_id = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next(
        node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id
    )
    # A local Ray is started with more cores than exist if there are more workers than cores.
    cores = max(1, min(os.cpu_count() or 1, int(resources.get("CPU", 1))))
    return cores, resources.get("object_store_memory", math.inf) / 1024**2


class ActorChannel:
    """An EventChannel that is an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def post(self, event: Event) -> None:
        """Send an event; waits until it has arrived, except for the frequent `StepDone`.

        A call that is still on its way is lost when the worker ends or is killed.
        """
        if isinstance(event, StepDone):
            self._actor.post.remote(event)
        else:
            call(self._actor.post, event)

    def has_failed(self) -> bool:
        """Whether a worker ended the run."""
        return bool(call(self._actor.has_failed))

    def failed_before(self, message: str) -> bool:
        """Whether the run failed with this message before; remembers it."""
        return bool(call(self._actor.failed_before, message))

    def limit_passes(self, images: int) -> None:
        """Make the next workers compute at most so many images at once."""
        call(self._actor.limit_passes, images)

    def pass_limit(self) -> int:
        """Maximum number of images that the next workers compute at once; 0: no limit."""
        return int(call(self._actor.pass_limit))
