"""The interface of experiment trackers.

Another tracker is a module with this interface, and a row of `trackers.TRACKERS`.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from effnet_ray.errors import EffnetRayError, one_line
from effnet_ray.tracking.metrics import Logged, MetricPoint
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.train.run_record import Run

MAX_ERROR_CHARS = 300
"""Three lines of a terminal."""


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


def redact(text: str | Exception) -> str:
    """The text or error as one line of at most 300 characters, without passwords in URLs.

    For a network error this is the text of its innermost cause, which is the shortest.
    """
    if isinstance(text, Exception):
        cause = _innermost(text)
        is_network_error = isinstance(cause, OSError) and not isinstance(text, EffnetRayError)
        line = one_line(cause if is_network_error else text)
    else:
        line = " ".join(text.split())
    return re.sub(r"//[^/@\s]+@", "//", line)[:MAX_ERROR_CHARS]


def _innermost(error: BaseException) -> BaseException:
    cause = error.__cause__ or error.__context__
    return _innermost(cause) if cause else error
