"""The runtime's own event, and the queue that carries events to the driver. Imports no Ray."""

from dataclasses import dataclass
from typing import Any


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
