"""Says why a run has no workers: what the cluster has free, and what its autoscaler is doing."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from effnet_ray.runtime.nodes import ACCELERATOR
from effnet_ray.runtime.session import ResourceRequest
from effnet_ray.train.events import (
    ComputingFeatures,
    Event,
    Preempted,
    WaitingForWorkers,
    WorkerDied,
    WorkersStarted,
)

PATIENCE_S = 5
"""A cluster that has room needs about so long; then it is worth a word."""
AGAIN_S = 60
"""Said again after this many seconds even if nothing has changed."""
LOOK_S = 2
STARTING_S = 60
"""Workers that have their place have started by then."""


@contextmanager
def report_waiting(
    lease: ResourceRequest, hear: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Pass events on to `hear`; tell it also of the waiting before workers start, or start again.

    Yields what is to hear the run's events.
    """
    watch = _Watch(lambda status, waited_s: reason(lease, status, waited_s), hear)
    watch.begin()

    def heard(event: Event) -> None:
        match event:
            case ComputingFeatures(done, images) if 0 < done < images:
                watch.end()
            case WorkersStarted():
                watch.end()
            case ComputingFeatures() | WorkerDied() | Preempted():
                watch.begin()
        hear(event)

    def look() -> None:
        if watch.waits:
            watch.look(cluster_status())

    with _looking(look):
        yield heard


@contextmanager
def report_waiting_trials(hear: Callable[[WaitingForWorkers], None]) -> Iterator[None]:
    """Tell `hear` while some of many runs side by side have no place for their workers."""
    watch = _Watch(lambda status, waited_s: waiting_trials(status), hear)

    def look() -> None:
        status = cluster_status()
        if waiting_trials(status):
            watch.begin()
        else:
            watch.end()
        watch.look(status)

    with _looking(look):
        yield


@contextmanager
def _looking(look: Callable[[], None]) -> Iterator[None]:
    """Look now and then, in a thread."""
    stop = threading.Event()

    def again() -> None:
        while not stop.wait(LOOK_S):
            look()

    thread = threading.Thread(target=again, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watch:
    """Knows since when there has been waiting, and what was last said about it."""

    def __init__(
        self, why: Callable[[Any, float], str], hear: Callable[[WaitingForWorkers], None]
    ) -> None:
        """`why` makes a sentence of Ray's `ClusterStatus` and the seconds waited."""
        self._why, self._hear = why, hear
        self._since: float | None = None
        self._said, self._said_at = "", 0.0

    def begin(self) -> None:
        """There is waiting; since now, unless there was before."""
        self._since = self._since or time.monotonic()

    def end(self) -> None:
        """There is none."""
        self._since, self._said = None, ""

    @property
    def waits(self) -> bool:
        """Whether there is waiting."""
        return self._since is not None

    def look(self, status: Any) -> None:
        """Say why, if it is new or was said long ago."""
        since, now = self._since, time.monotonic()
        if since is None or now - since < PATIENCE_S:
            return
        why = self._why(status, now - since)
        if why and (why != self._said or now - self._said_at >= AGAIN_S):
            self._said, self._said_at = why, now
            self._hear(WaitingForWorkers(why, now - since))


def cluster_status() -> Any:
    """Ray's `ClusterStatus`, or None where it does not answer."""
    from ray.autoscaler.v2.sdk import get_cluster_status  # what `ray status` reads

    try:
        return get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # of gRPC, or whatever else: a word less, not a run
        return None


def reason(lease: ResourceRequest, status: Any, waited_s: float) -> str:
    """One sentence; empty where the workers have their place, and are only starting.

    `status` is Ray's `ClusterStatus` or None. What is not free may be what they lease already:
    so it takes a demand that Ray has not met, a cluster too small, or `waited_s` of silence.
    """
    if status is None:
        return ""
    workers = lease.workers if isinstance(lease.workers, int) else lease.workers[0]
    short = _short(lease, workers, status)
    unmet, small = _unmet(status), _too_small(lease, workers, status)
    if not short or not (unmet or small or waited_s >= STARTING_S):
        return ""
    return f"{lease.describe(workers)}: {short}; {_outlook(status, small)}"


def waiting_trials(status: Any) -> str:
    """The same of many runs, as `the workers of 3 trials: …`; empty where all have their place."""
    unmet = _unmet(status) if status else 0
    if not unmet:
        return ""
    return (
        f"the workers of {unmet} trial{'s' if unmet > 1 else ''}: {_outlook(status, small=False)}"
    )


def _unmet(status: Any) -> int:
    """Groups of workers that Ray has found no place for."""
    return len(status.resource_demands.placement_group_demand)


def _outlook(status: Any, small: bool) -> str:
    """What is being done about it; `small`: the cluster, even if nothing else ran on it."""
    coming, refused = _coming(status), _refused(status)
    parts = []
    if coming:
        parts.append(f"machines being started: {coming}")
    if refused:
        parts.append(f"not to be had: {refused}")
    if not parts:
        when = "add some, or lower --workers" if small else "they come free when other jobs end"
        parts.append(f"no machine is being started: {when}")
    return "; ".join(parts)


def _asked(lease: ResourceRequest) -> dict[str, float]:
    return {name: amount for name, amount in lease.resources_per_worker.items() if amount}


def _short(lease: ResourceRequest, workers: int, status: Any) -> str:
    """What is missing, as `1 of 2 GPU free`."""
    usage = _usage(lease, status)
    found = []
    for name, amount in _asked(lease).items():
        total, used = usage[name]
        if total - used + 1e-6 < amount * workers:
            found.append(f"{total - used:g} of {total:g} {name} free")
    return ", ".join(found)


def _too_small(lease: ResourceRequest, workers: int, status: Any) -> bool:
    """Whether the machines that are here could not hold the workers even if they were idle."""
    usage = _usage(lease, status)
    return any(usage[name][0] + 1e-6 < amount * workers for name, amount in _asked(lease).items())


def _usage(lease: ResourceRequest, status: Any) -> dict[str, tuple[float, float]]:
    """Of each resource that is asked for, all there is and what is used of it.

    Where certain accelerators are asked for, on the machines that have them.
    """
    found = dict.fromkeys(_asked(lease), (0.0, 0.0))
    usages = [status.cluster_resource_usage]
    if lease.accelerators:
        usages = [
            node.resource_usage.usage
            for node in [*status.active_nodes, *status.idle_nodes]
            if node.resource_usage and (node.labels or {}).get(ACCELERATOR) in lease.accelerators
        ]
    for each in itertools.chain.from_iterable(usages):
        if each.resource_name in found:
            total, used = found[each.resource_name]
            found[each.resource_name] = (total + each.total, used + each.used)
    return found


def _coming(status: Any) -> str:
    """Machines bought and not yet here, as `2 gpu-small`."""
    counts = Counter[str](node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        counts[launch.ray_node_type_name] += launch.count
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _refused(status: Any) -> str:
    """Machines that the cloud would not give, and what it said."""
    said = {
        launch.ray_node_type_name: " ".join(str(launch.details or "no reason given").split())
        for launch in status.failed_launches
    }
    return ", ".join(f"{name} ({why[:200]})" for name, why in sorted(said.items()))
