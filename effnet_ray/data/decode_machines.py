"""On which machine each decode task runs: by cores.

Ray deals tasks that request no CPU to all machines in turn, the head node included (Ray Data 2.60,
`DataContext.scheduling_strategy` is SPREAD). So a machine of 4 cores gets as many as one of 96.
Here every task names its machine. Machines that join or leave are dealt with within seconds, but
the number of parallel tasks is that of a Ray Data execution's start: the next window has another.
A task whose machine has gone runs on another one.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOK_EVERY_S = 5.0
"""Seconds between looks at the cluster's machines: one call to the head node. Chosen, not
measured."""
HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head node."""

Shares = Mapping[str, float]
"""Node id → decode tasks at a time, any number above 0."""


@dataclass(frozen=True, slots=True)
class DecodeMachine:
    """A machine as decoding sees it."""

    node_id: str
    cores: float
    is_head: bool = False

    @classmethod
    def alive(cls) -> list[Self]:
        """The cluster's live machines."""
        return [
            cls(node["NodeID"], node["Resources"].get("CPU", 0.0), HEAD in node["Resources"])
            for node in ray.nodes()
            if node["Alive"]
        ]


def cluster_shares(machines: Iterable[DecodeMachine] | None = None) -> dict[str, float]:
    """Every machine by its cores; the head node only if no other machine has any.

    Default: the cluster's live machines.
    """
    alive = DecodeMachine.alive() if machines is None else machines
    with_cores = [machine for machine in alive if machine.cores > 0]
    others = [machine for machine in with_cores if not machine.is_head]
    return {machine.node_id: machine.cores for machine in others or with_cores}


def worker_shares(
    machines: Iterable[DecodeMachine],
    own: str,
    own_tasks: float,
    *,
    workers: int,
    workers_machines: Collection[str],
) -> dict[str, float]:
    """What one of `workers` training workers runs: `own_tasks` on its own machine, and its share
    of each machine that none of them occupies, except for the head node."""
    spare = {
        machine.node_id: machine.cores / workers
        for machine in machines
        if machine.cores > 0
        and not machine.is_head
        and machine.node_id not in {own, *workers_machines}
    }
    return {own: own_tasks, **spare}


class TaskDealer:
    """Deals tasks to machines in proportion to their shares; Ray Data asks it before each task."""

    def __init__(self, look: Callable[[], Shares]) -> None:
        """`look` returns the shares now, those of the own machine first."""
        self._look = look
        self._shares: Shares = {}
        self._credit: dict[str, float] = {}
        self._looked = -LOOK_EVERY_S

    def next(self) -> str | None:
        """The node of the next task: the one that is furthest behind its share. None: any."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._shares, self._looked = self._look(), time.monotonic()
            self._credit = {node: self._credit.get(node, 0.0) for node in self._shares}
        for node, share in self._shares.items():
            self._credit[node] += share
        chosen = max(self._credit, key=self._credit.__getitem__, default=None)
        if chosen is not None:
            self._credit[chosen] -= sum(self._shares.values())
        return chosen

    def ray_options(self) -> dict[str, Any]:
        """The next task's options: its machine, or another one if that has gone."""
        node = self.next()
        if node is None:
            return {}
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}


def map_on_machines(
    dataset: Any, function: Callable[..., Any], *, tasks: int, dealer: TaskDealer
) -> Any:
    """Ray Data's `map_batches` of whole blocks, in up to `tasks` tasks on the dealer's machines.

    Tasks request no logical CPUs: Ray Data divides those that Ray Train leaves over among its
    executors in whole numbers; on a small machine that is none, and an execution would wait
    forever. `Placement.decode_tasks` limits the parallelism instead.
    """
    return dataset.map_batches(
        function,
        batch_size=None,
        num_cpus=0,
        concurrency=tasks,
        ray_remote_args_fn=dealer.ray_options,
    )
