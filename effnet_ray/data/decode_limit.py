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
_windows: WeakKeyDictionary[Any, tuple[str, Any]] = WeakKeyDictionary()
"""Operators of this process that decode → their stream and state, the oldest first."""


class SharedLimit(BackpressurePolicy):  # type: ignore[misc]  # Ray Data has no types
    """A window starts a task while its stream runs fewer tasks than its limit.

    The blocks of the older window are used first. So the next one begins only when the older has
    started all its tasks: else its finished ones, which wait to be read, would count against it.
    Ray Data lets an execution without any running task start one regardless of its policies
    (ray 2.60 `select_operator_to_run`), so a stream runs at most one task more.
    """

    def __init__(self, context: DataContext, topology: Any, resources: Any) -> None:
        super().__init__(context, topology, resources)
        self._stream: str = context.get_config(STREAM)
        with _lock:
            for operator, state in topology.items():
                if operator.get_max_concurrency_limit() is not None:
                    _windows[operator] = self._stream, state

    def can_add_input(self, op: Any) -> bool:
        """Whether the operator may start another task."""
        if op.get_max_concurrency_limit() is None:
            return True
        windows = _windows_of(self._stream)
        operators = [operator for operator, _ in windows]
        older = windows[: operators.index(op)]
        if any(_has_tasks_to_start(*window) for window in older):
            return False
        limit = max(operator.get_max_concurrency_limit() for operator in operators)
        return bool(sum(operator.num_active_tasks() for operator in operators) < limit)


def share_limit(context: DataContext, stream: str) -> None:
    """Make executions of this context share the limit of their stream's tasks."""
    context.set_config(STREAM, stream)
    context.set_config(
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, SharedLimit]
    )


def _windows_of(stream: str) -> list[tuple[Any, Any]]:
    """Operators and states of the stream's windows, the oldest first."""
    with _lock:
        return [(operator, state) for operator, (its, state) in _windows.items() if its == stream]


def _has_tasks_to_start(operator: Any, state: Any) -> bool:
    waiting = not operator._inputs_complete or state.total_enqueued_input_blocks() > 0
    return bool(waiting and not operator.has_completed())
