"""The interface of experiment trackers.

Another tracker is a module with this interface, and a row of `trackers.TRACKERS`.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from effnet_ray.errors import EffnetRayError, quote
from effnet_ray.tracking.metrics import Logged, MetricPoint
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.train.run_record import Run


class RunStatus(Enum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Tracker(Protocol):
    """Records one run at a time. Its methods may raise any error of its library."""

    name: str
    location: str
    """Where to view the run; empty before `start_run`."""

    def check(self) -> str:
        """Return a description of where runs are recorded. Raises TrackerError if unreachable."""

    def start_run(self, run: Run, run_uri: str) -> Logged:
        """Find or create the run; return what is logged of it already."""

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Add metrics."""

    def register_release(self, history: RunHistory) -> None:
        """Register the run's release, unless it is registered already."""

    def end_run(self, status: RunStatus) -> None:
        """Record how the run ended."""


def reason(error: Exception) -> str:
    """The error's text as one line, without secrets, cut to its first MAX_QUOTED_CHARS characters.

    For a network error this is the text of its innermost cause, which is the shortest.
    """
    cause = _innermost(error)
    is_network_error = isinstance(cause, OSError) and not isinstance(error, EffnetRayError)
    return quote(cause if is_network_error else error)


def _innermost(error: BaseException) -> BaseException:
    cause = error.__cause__ or error.__context__
    return _innermost(cause) if cause else error
