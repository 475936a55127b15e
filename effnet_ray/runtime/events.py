"""Events on their way from Ray actors to the driver, and the event that the driver itself adds."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class WaitingForWorkers:
    """The cluster lacks the resources for the workers."""

    reason: str
    seconds: float
    """How long the workers have been missing."""


class EventQueue:
    """Keeps events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def post(self, event: Any) -> None:
        """Add an event. Called by workers."""
        self._events.append(event)

    def take(self) -> list[Any]:
        """Return all events since the last call, in order. Called by the driver."""
        events, self._events = self._events, []
        return events


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


@contextmanager
def deliver_events(queue: Any, on_event: Callable[[Any], None]) -> Iterator[None]:
    """Call `on_event`, in a thread, with every event posted to the `EventQueue` actor."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            _deliver(queue, on_event)
            time.sleep(POLL_S)

    thread = threading.Thread(target=poll, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _deliver(queue, on_event)


def _deliver(queue: Any, on_event: Callable[[Any], None]) -> None:
    try:
        events = ray.get(queue.take.remote())
    except ray.exceptions.RayError:
        return  # The cluster is shutting down; the run record in storage has the outcome.
    for event in events:
        on_event(event)
