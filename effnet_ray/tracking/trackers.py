"""Trackers of a run: each hears it in a thread of its own, and none can end it or hold it up.

What cannot be told to a tracker while a run goes is dropped. At the end all epochs that it has not
are told from the run's own record; so are those of a run that is over, when it is only reported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from effnet_ray.errors import RecipeError
from effnet_ray.release.names import Release
from effnet_ray.tracking import run_history as stories
from effnet_ray.tracking.metrics import Logged, MetricPoint, point_of_epoch, point_of_event
from effnet_ray.tracking.mlflow import FAILED, FINISHED, KILLED, Mlflow, redact
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.tracking.tensorboard import TensorBoard
from effnet_ray.train.events import Event, RunStarted
from effnet_ray.train.run_record import Run


class Tracker(Protocol):
    """Knows one run at a time. All of these may raise whatever its library raises."""

    name: str
    where: str
    """Where people find the run; empty before `begin`."""

    def check(self) -> str:
        """What it is told where. Raises TrackerError where it cannot be."""

    def begin(self, run: Run, run_uri: str) -> Logged:
        """Find or create the run; what is logged of it already."""

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Add figures."""

    def register(self, story: RunHistory) -> None:
        """The run's release; nothing where it is known."""

    def end(self, status: str) -> None:
        """The run has FINISHED, FAILED or was KILLED."""


KINDS: Mapping[str, Callable[[], Tracker]] = {"mlflow": Mlflow, "tensorboard": TensorBoard}


def parse_trackers(flags: Iterable[str]) -> list[str]:
    """Trackers by name, each once, of words with commas between. Raises RecipeError."""
    names = [name for flag in flags for name in flag.split(",") if name]
    for name in names:
        if name not in KINDS:
            raise RecipeError(f"tracker {name!r}: expected {' or '.join(KINDS)}, or both")
    return list(dict.fromkeys(names))


def check_tracker(name: str) -> str:
    """What a tracker is told where. Raises TrackerError where it cannot be."""
    return KINDS[name]().check()


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run ended, but well."""

    status: str


Heard = RunStarted | MetricPoint | Release | RunEnded
"""A Release is a run that ended well, all of it."""


class Trackers:
    """All that a job was told to tell. Use as a context, which ends when each knows everything."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._followers = [TrackerThread(KINDS[name](), say) for name in names]

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = KILLED if kind and issubclass(kind, KeyboardInterrupt) else FAILED
        for follower in self._followers:
            follower.leave(RunEnded(status) if kind else None)
        for follower in self._followers:
            follower.wait()

    def hear(self, event: Event) -> None:
        """An event of a run."""
        heard = event if isinstance(event, RunStarted) else point_of_event(event)
        if heard:
            self._pass_on(heard)

    def published(self, release: Release) -> None:
        """The run has ended, in this release."""
        self._pass_on(release)

    @property
    def locations(self) -> dict[str, str]:
        """Where people find the run, by tracker."""
        return {each.name: each.where for each in self._followers if each.where}

    def _pass_on(self, heard: Heard) -> None:
        for follower in self._followers:
            follower.hear(heard)


class TrackerThread:
    """Tells one tracker, from a thread of its own."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._heard: SimpleQueue[Heard | None] = SimpleQueue()
        self._run: RunStarted | None = None
        self._logged: Logged | None = None
        self._said = False
        self._thread = Thread(target=self._follow, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The tracker's."""
        return self._tracker.name

    @property
    def where(self) -> str:
        """Where people find the run."""
        return self._tracker.where

    def hear(self, heard: Heard) -> None:
        """At once; it is told later."""
        self._heard.put(heard)

    def leave(self, over: RunEnded | None) -> None:
        """Nothing comes any more."""
        if over:
            self._heard.put(over)
        self._heard.put(None)

    def wait(self) -> None:
        """Until all is told, or could not be."""
        self._thread.join()

    def _follow(self) -> None:
        goes_on = True
        while goes_on:
            heard, goes_on = self._waiting()
            points = [one for one in heard if isinstance(one, MetricPoint)]
            self._safely([one for one in heard if isinstance(one, RunStarted)], points)
            for one in heard:
                if isinstance(one, Release | RunEnded):
                    self._safely([one], [])

    def _waiting(self) -> tuple[list[Heard], bool]:
        """What has come since, and whether more may come."""
        heard = [self._heard.get()]
        while not self._heard.empty():
            heard.append(self._heard.get())
        return [one for one in heard if one is not None], None not in heard

    def _safely(
        self, heard: Sequence[RunStarted | Release | RunEnded], points: list[MetricPoint]
    ) -> None:
        """Whatever becomes of a tracker, the run goes on."""
        try:
            for one in heard:
                self._tell(one)
            self._log(points)
        except Exception as error:
            self._logged = None  # the tracker itself will say what it has
            self._say_once(error, ended=any(isinstance(one, Release) for one in heard))

    def _tell(self, heard: RunStarted | Release | RunEnded) -> None:
        match heard:
            case RunStarted():
                self._run, self._logged = heard, None
                self._begun()
            case Release():
                self._publish(stories.read(heard))
            case RunEnded() if self._logged is not None:  # else it cannot be reached: do not wait
                self._tracker.end(heard.status)

    def _publish(self, story: RunHistory) -> None:
        if self._run is None or self._run.run_uri != story.run_uri:
            self._run, self._logged = RunStarted(story.run, story.run_uri), None
        self._begun()
        self._log([point_of_epoch(report) for report in story.history])
        self._tracker.register(story)
        self._tracker.end(FINISHED)

    def _begun(self) -> Logged:
        assert self._run is not None  # it is heard of before its figures are
        if self._logged is None:
            self._logged = self._tracker.begin(self._run.run, self._run.run_uri)
        return self._logged

    def _log(self, points: Sequence[MetricPoint]) -> None:
        fresh = self._begun().fresh(points) if points else []
        if fresh:
            self._tracker.log(fresh)

    def _say_once(self, error: Exception, *, ended: bool) -> None:
        why = redact(error)
        if ended:
            self._say(
                f"{self.name} does not have all of the run ({why}): run the same command again, "
                "and it is told what it misses"
            )
        elif not self._said:
            self._said = True
            self._say(
                f"{self.name} cannot be told of the run ({why}): training goes on; the epochs "
                "that it misses are told at the end"
            )
