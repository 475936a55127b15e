"""Why a run has no workers: what the cluster has free, and what its autoscaler is doing."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.runtime.nodes import ACCELERATOR_LABEL
from effnet_ray.runtime.polling import call_every
from effnet_ray.runtime.session import ResourceRequest

GRACE_S = 5
"""Nothing is reported in this time, in which a cluster with enough free resources starts workers:
a shorter time would report every start as a wait. Chosen, not measured."""
REPEAT_S = 60
"""Interval between reports of an unchanged reason: a log shows that the wait goes on, in a line
per minute."""
POLL_S = 2
"""Interval between queries of the cluster's status, which load its head."""
START_S = 60
"""Time in which workers start once they have their resources, imports from a cold disk
included. In a shorter one, resources that these workers hold would be reported as missing."""
MAX_DETAILS_CHARS = 200
"""Maximum number of reported characters of a cloud's message on a refused machine."""


class WaitReporter:
    """Emits `WaitingForWorkers` between `start` and `stop`, for new reasons and repeatedly."""

    def __init__(
        self, reason: Callable[[Any, float], str], on_event: Callable[[WaitingForWorkers], None]
    ) -> None:
        """`reason` returns a sentence from Ray's `ClusterStatus` and the seconds waited so far."""
        self._reason, self._on_event = reason, on_event
        self._since: float | None = None
        self._reported, self._reported_at = "", 0.0

    def start(self) -> None:
        """Record that workers are missing."""
        self._since = self._since or time.monotonic()

    def stop(self) -> None:
        """Record that no workers are missing."""
        self._since, self._reported = None, ""

    @property
    def active(self) -> bool:
        """Whether workers are missing."""
        return self._since is not None

    def update(self, status: Any) -> None:
        """Emit an event if workers are missing and the reason is due to be reported."""
        since, now = self._since, time.monotonic()
        if since is None or now - since < GRACE_S:
            return
        reason = self._reason(status, now - since)
        if reason and (reason != self._reported or now - self._reported_at >= REPEAT_S):
            self._reported, self._reported_at = reason, now
            self._on_event(WaitingForWorkers(reason, now - since))


@contextmanager
def report_waiting(
    request: ResourceRequest, on_event: Callable[[WaitingForWorkers], None]
) -> Iterator[WaitReporter]:
    """Report why the requested workers have not started.

    Workers are missing at first. The caller calls `stop` on the yielded reporter when they have
    started, and `start` when they are lost.
    """
    reporter = WaitReporter(
        lambda status, waited_s: waiting_reason(request, status, waited_s), on_event
    )
    reporter.start()

    def poll() -> None:
        if reporter.active:
            reporter.update(cluster_status())

    with call_every(POLL_S, poll, name="waiting"):
        yield reporter


@contextmanager
def report_waiting_trials(on_event: Callable[[WaitingForWorkers], None]) -> Iterator[None]:
    """Report why workers of some of the concurrent trials have not started."""
    reporter = WaitReporter(lambda status, waited_s: waiting_trials(status), on_event)

    def poll() -> None:
        status = cluster_status()
        if waiting_trials(status):
            reporter.start()
        else:
            reporter.stop()
        reporter.update(status)

    with call_every(POLL_S, poll, name="waiting"):
        yield


def cluster_status() -> Any:
    """Return Ray's `ClusterStatus`, or None if Ray does not answer."""
    from ray.autoscaler.v2.sdk import get_cluster_status  # what `ray status` reads

    try:
        return get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # gRPC's or any other: a missing report must not end the run
        return None


def waiting_reason(request: ResourceRequest, status: Any, waited_s: float) -> str:
    """Return one sentence, or an empty string if the workers have their resources.

    `status` is Ray's `ClusterStatus` or None. Resources that are not free may be used by these
    very workers while they start. So a reason requires unmet demand, a cluster that is too small,
    or `waited_s` of at least `START_S`.
    """
    if status is None:
        return ""
    workers = request.workers if isinstance(request.workers, int) else request.workers[0]
    shortage = _shortage(request, workers, status)
    unmet, too_small = _unmet_groups(status), _too_small(request, workers, status)
    if not shortage or not (unmet or too_small or waited_s >= START_S):
        return ""
    return (
        f"{request.describe(workers)}: {shortage}; {_describe_remedy(status, too_small=too_small)}"
    )


def waiting_trials(status: Any) -> str:
    """Return the reason for many runs, as `the workers of 3 trials: …`; empty if none waits."""
    unmet = _unmet_groups(status) if status else 0
    if not unmet:
        return ""
    plural = "s" if unmet > 1 else ""
    return f"the workers of {unmet} trial{plural}: {_describe_remedy(status, too_small=False)}"


def _unmet_groups(status: Any) -> int:
    """Count the placement groups (each a run's workers) that Ray could not place."""
    return len(status.resource_demands.placement_group_demand)


def _describe_remedy(status: Any, *, too_small: bool) -> str:
    """Describe machines that are starting or unavailable; if none are, how to get resources."""
    starting, unavailable = _starting_machines(status), _unavailable_machines(status)
    parts = []
    if starting:
        parts.append(f"machines being started: {starting}")
    if unavailable:
        parts.append(f"unavailable: {unavailable}")
    if not parts:
        action = (
            "add machines, or lower --workers"
            if too_small
            else "resources become free when other jobs end"
        )
        parts.append(f"no machine is being started: {action}")
    return "; ".join(parts)


def _per_worker(request: ResourceRequest) -> dict[str, float]:
    """Return the resources that a worker requests, without zero amounts."""
    return {name: amount for name, amount in request.resources_per_worker.items() if amount}


def _shortage(request: ResourceRequest, workers: int, status: Any) -> str:
    """Describe the resources that do not suffice, as `1 of 2 GPU free`."""
    usage = _usage(request, status)
    parts = []
    for name, amount in _per_worker(request).items():
        total, used = usage[name]
        if total - used + 1e-6 < amount * workers:
            parts.append(f"{total - used:g} of {total:g} {name} free")
    return ", ".join(parts)


def _too_small(request: ResourceRequest, workers: int, status: Any) -> bool:
    """Whether the current machines could not hold the workers even when idle."""
    usage = _usage(request, status)
    required = {name: amount * workers for name, amount in _per_worker(request).items()}
    return any(usage[name][0] + 1e-6 < amount for name, amount in required.items())


def _usage(request: ResourceRequest, status: Any) -> dict[str, tuple[float, float]]:
    """Return total and used amounts of each requested resource.

    If the request names accelerators, only machines that have one of them count.
    """
    amounts = dict.fromkeys(_per_worker(request), (0.0, 0.0))
    usages = [status.cluster_resource_usage]
    if request.accelerators:
        usages = [
            node.resource_usage.usage
            for node in [*status.active_nodes, *status.idle_nodes]
            if node.resource_usage
            and (node.labels or {}).get(ACCELERATOR_LABEL) in request.accelerators
        ]
    for usage in itertools.chain.from_iterable(usages):
        if usage.resource_name in amounts:
            total, used = amounts[usage.resource_name]
            amounts[usage.resource_name] = (total + usage.total, used + usage.used)
    return amounts


def _starting_machines(status: Any) -> str:
    """List machines that were launched but have not joined, as `2 gpu-small`."""
    counts = Counter[str](node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        counts[launch.ray_node_type_name] += launch.count
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _unavailable_machines(status: Any) -> str:
    """List machine types that the cloud refused to launch, with its message."""
    details = {
        launch.ray_node_type_name: " ".join(str(launch.details or "no reason given").split())
        for launch in status.failed_launches
    }
    return ", ".join(
        f"{name} ({message[:MAX_DETAILS_CHARS]})" for name, message in sorted(details.items())
    )
