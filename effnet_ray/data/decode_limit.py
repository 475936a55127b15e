"""One limit of decode tasks for all windows of a stream.

A window is a Ray Data execution with a limit of its own. While the next window starts, two would
decode at once, with twice as many tasks.
"""

import threading
from typing import Any
from weakref import WeakKeyDictionary

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

STREAM = "effnet_ray.stream"
"""Key of a DataContext's configuration: the id of the stream that an execution belongs to."""

_lock = threading.Lock()
_windows: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Operators of this process that decode → their streams, the oldest first."""


class SharedLimit(BackpressurePolicy):  # type: ignore[misc]  # Ray Data has no types
    """A window starts a task while its stream, older windows included, runs fewer than its limit.

    Ray Data lets an execution without any running task start one regardless of its policies
    (ray 2.60 `select_operator_to_run`), so a stream runs at most one task more.
    """

    def __init__(self, context: DataContext, topology: Any, resources: Any) -> None:
        super().__init__(context, topology, resources)
        self._stream: str = context.get_config(STREAM)
        with _lock:
            for operator in topology:
                if operator.get_max_concurrency_limit() is not None:
                    _windows[operator] = self._stream

    def can_add_input(self, op: Any) -> bool:
        """Whether the operator may start another task."""
        limit = op.get_max_concurrency_limit()
        return limit is None or running_tasks(self._stream) < limit


def share_limit(context: DataContext, stream: str) -> None:
    """Make executions of this context share the limit of their stream's tasks."""
    context.set_config(STREAM, stream)
    context.set_config(
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, SharedLimit]
    )


def running_tasks(stream: str) -> int:
    """Decode tasks that the stream's windows run now."""
    with _lock:
        operators = [operator for operator, its in _windows.items() if its == stream]
    return sum(operator.num_active_tasks() for operator in operators)
