"""Small actors beside the driver, and the events that they deliver to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet_ray.runtime.polling import call_every
from effnet_ray.storage.retry import with_retries

POLL_S = 0.25
"""Pause between two looks at the queue: a progress bar looks live. Chosen, not measured."""


def start_local_actor(
    actor_class: type, *arguments: Any, name: str | None = None, **options: Any
) -> Any:
    """Start an actor on this process's node; it requires no CPU. `options` are Ray's.

    Without the node affinity Ray could place it on any node and lose it with that node, although
    only this process needs it. With a `name`, a running actor of that name is returned instead.
    """
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    if name:
        options |= {"name": name, "get_if_exists": True}
    remote_class = ray.remote(num_cpus=0, scheduling_strategy=this_node)(actor_class)
    return remote_class.options(**options).remote(*arguments)


def call(method: Any, *arguments: Any) -> Any:
    """The result of an actor's method, called again while Ray restarts the actor.

    With Ray's own `max_task_retries`, each repeated call prints a line in the user's terminal.
    Raises ActorUnavailableError if the actor is not back in time.
    """
    return with_retries(
        lambda _: ray.get(method.remote(*arguments)),
        lambda error: isinstance(error, ActorUnavailableError),
    )


@contextmanager
def deliver_events(queue: Any, on_event: Callable[[Any], None]) -> Iterator[None]:
    """Call `on_event`, in a thread, with every event posted to the `EventQueue` actor."""
    try:
        with call_every(POLL_S, lambda: _deliver(queue, on_event), name="events"):
            yield
    finally:
        _deliver(queue, on_event)  # what was posted after the last call


def _deliver(queue: Any, on_event: Callable[[Any], None]) -> None:
    try:
        events = ray.get(queue.take.remote())
    except ray.exceptions.RayError:
        return  # The queue starts again, or the cluster shuts down: a run record has the outcome
    for event in events:
        on_event(event)
