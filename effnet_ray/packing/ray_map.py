"""`map`, in Ray tasks all over the cluster."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from effnet_ray.errors import ClusterError, quote

TASKS_PER_CPU = 2
"""Concurrent tasks per CPU of the cluster: enough to keep the CPUs busy, few enough to cancel
quickly."""


def ray_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yield the results in the items' order; raise a task's exception as it was raised there.

    A task whose node dies is retried elsewhere. Raises ClusterError if it cannot run at all.
    """
    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    running: deque[Any] = deque()
    remaining = iter(items)
    try:
        while True:
            for item in remaining:
                running.append(remote.remote(item))
                cpus = int(ray.cluster_resources().get("CPU", 1))
                if len(running) >= TASKS_PER_CPU * max(1, cpus):
                    break
            if not running:
                return
            yield _get_result(running.popleft())
    finally:
        for task in running:
            ray.cancel(task)


def _get_result(task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise getattr(error, "cause", None) or error from None
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"packing failed ({type(error).__name__}: {quote(error)}): run the same command again "
            "to continue; if memory ran out, on machines with more memory"
        ) from error
