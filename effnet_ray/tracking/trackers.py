"""Sending a run's events to trackers, each in its own thread, without delaying training.

Metrics that cannot be logged during the run are dropped. At the end of a run, and for runs that
finished earlier, missing epochs are logged from storage.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from effnet_ray.errors import RecipeError
from effnet_ray.release.names import Release
from effnet_ray.tracking.metrics import Logged, MetricPoint, point_of_epoch, point_of_event
from effnet_ray.tracking.mlflow import Mlflow
from effnet_ray.tracking.run_history import RunHistory, read_run_history
from effnet_ray.tracking.tensorboard import TensorBoard
from effnet_ray.tracking.tracker import RunStatus, Tracker, reason
from effnet_ray.train.events import Event, RunStarted

TRACKERS: Mapping[str, Callable[[], Tracker]] = {"mlflow": Mlflow, "tensorboard": TensorBoard}


def parse_trackers(flags: Iterable[str]) -> list[str]:
    """Names of trackers in comma-separated lists, without repetitions. Raises RecipeError."""
    names = [name for flag in flags for name in flag.split(",") if name]
    for name in names:
        if name not in TRACKERS:
            expected = " or ".join(TRACKERS)
            raise RecipeError(
                f"tracker {name!r} is unknown: expected {expected}; separate several by commas"
            )
    return list(dict.fromkeys(names))


def check_tracker(name: str) -> str:
    """Return a description of where the tracker records runs. Raises TrackerError."""
    return TRACKERS[name]().check()


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run ended without a release."""

    status: RunStatus


Message = RunStarted | MetricPoint | Release | RunEnded
"""A Release says that the run finished, and is complete in storage."""


class Trackers:
    """The trackers of a job. As a context manager, it waits at its end until all have finished."""

    def __init__(self, names: Sequence[str], notify: Callable[[str], None]) -> None:
        """`notify` is called with a sentence when a tracker fails."""
        self._threads = [TrackerThread(TRACKERS[name](), notify) for name in names]

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = RunStatus.INTERRUPTED if interrupted else RunStatus.FAILED
        for thread in self._threads:
            thread.close(RunEnded(status) if kind else None)
        for thread in self._threads:
            thread.join()

    def on_event(self, event: Event) -> None:
        """Log an event of a run."""
        message = event if isinstance(event, RunStarted) else point_of_event(event)
        if message:
            self._send(message)

    def on_release(self, release: Release) -> None:
        """Log what is missing of a finished run, and register its release."""
        self._send(release)

    @property
    def locations(self) -> dict[str, str]:
        """Where to view the run, by tracker."""
        return {thread.name: thread.location for thread in self._threads if thread.location}

    def _send(self, message: Message) -> None:
        for thread in self._threads:
            thread.send(message)


class TrackerThread:
    """Passes messages to one tracker in a thread of its own."""

    def __init__(self, tracker: Tracker, notify: Callable[[str], None]) -> None:
        self._tracker, self._notify = tracker, notify
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        """None closes it."""
        self._run: RunStarted | None = None
        self._logged: Logged | None = None
        """None until the tracker has started the run, and again after an error."""
        self._failure_reported = False
        self._thread = Thread(target=self._loop, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The tracker's name."""
        return self._tracker.name

    @property
    def location(self) -> str:
        """Where to view the run."""
        return self._tracker.location

    def send(self, message: Message) -> None:
        """Queue a message and return at once."""
        self._queue.put(message)

    def close(self, ending: RunEnded | None) -> None:
        """Queue the last message, if any: none may follow."""
        if ending:
            self._queue.put(ending)
        self._queue.put(None)

    def join(self) -> None:
        """Wait until all messages are delivered or have failed."""
        self._thread.join()

    def _loop(self) -> None:
        is_open = True
        while is_open:
            messages, is_open = self._receive()
            starts = [message for message in messages if isinstance(message, RunStarted)]
            points = [message for message in messages if isinstance(message, MetricPoint)]
            self._deliver(starts, points)
            for message in messages:
                if isinstance(message, Release | RunEnded):
                    self._deliver([message], [])

    def _receive(self) -> tuple[list[Message], bool]:
        """Wait for a message; return all that are queued, and whether the queue is still open."""
        messages = [self._queue.get()]
        while not self._queue.empty():
            messages.append(self._queue.get())
        return [message for message in messages if message is not None], None not in messages

    def _deliver(
        self, messages: Sequence[RunStarted | Release | RunEnded], points: list[MetricPoint]
    ) -> None:
        """Pass messages and points to the tracker. Its errors are reported, not raised."""
        try:
            for message in messages:
                self._handle(message)
            self._log(points)
        except Exception as error:
            self._logged = None  # ask the tracker again what it has logged
            run_ended = any(isinstance(message, Release) for message in messages)
            self._report_failure(error, run_ended=run_ended)

    def _handle(self, message: RunStarted | Release | RunEnded) -> None:
        match message:
            case RunStarted():
                self._run, self._logged = message, None
                self._start_run()
            case Release():
                self._log_finished_run(read_run_history(message))
            case RunEnded() if self._logged is not None:  # else unreachable: do not wait for it
                self._tracker.end_run(message.status)

    def _log_finished_run(self, history: RunHistory) -> None:
        if self._run is None or self._run.run_uri != history.run_uri:
            self._run, self._logged = RunStarted(history.run, history.run_uri), None
        self._start_run()
        self._log([point_of_epoch(report) for report in history.history])
        self._tracker.register_release(history)
        self._tracker.end_run(RunStatus.FINISHED)

    def _start_run(self) -> Logged:
        assert self._run is not None  # RunStarted is the first event of a run
        if self._logged is None:
            self._logged = self._tracker.start_run(self._run.run, self._run.run_uri)
        return self._logged

    def _log(self, points: Sequence[MetricPoint]) -> None:
        new = self._start_run().select_new(points) if points else []
        if new:
            self._tracker.log(new)

    def _report_failure(self, error: Exception, *, run_ended: bool) -> None:
        """Report an error at the end of the run, or the first one before that."""
        why = reason(error)
        if run_ended:
            self._notify(
                f"{self.name} does not have the whole run ({why}): run the same command again "
                "to log the rest"
            )
        elif not self._failure_reported:
            self._failure_reported = True
            self._notify(
                f"{self.name} cannot log the run ({why}): training continues; missing epochs "
                "are logged when the run ends"
            )
