"""A function over items, in Ray tasks all over the cluster."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

AHEAD = 2
"""Tasks under way per CPU of the cluster: enough to keep them busy, few enough to stop soon."""


def ray_map(apply: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Results in the items' order. A task's own exception is raised here as it was raised there.

    A task that dies with its node is done again elsewhere.
    """
    remote = ray.remote(num_cpus=1, max_retries=3)(apply)
    waiting: deque[Any] = deque()
    left = iter(items)
    try:
        while True:
            for item in left:
                waiting.append(remote.remote(item))
                if len(waiting) >= AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))):
                    break
            if not waiting:
                return
            yield _result(waiting.popleft())
    finally:
        for task in waiting:
            ray.cancel(task)


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise getattr(error, "cause", None) or error from None
