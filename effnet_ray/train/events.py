"""What a run says while it goes: small events from workers to the driver, through one actor."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Run

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The driver knows what will run, and it stands in storage: no event comes before this."""

    run: Run
    run_uri: str


@dataclass(frozen=True, slots=True)
class ComputingFeatures:
    """Features of a frozen backbone are being computed."""

    done: int
    images: int
    """All that are to be."""


@dataclass(frozen=True, slots=True)
class WorkersStarted:
    """A worker group begins, or begins again."""

    workers: int
    step: int
    """The step it resumes from; 0 for a fresh run."""
    steps: int
    """Steps of the whole run."""
    device: str
    phases: str = ""
    """What learns when, in words."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Training goes on."""

    step: int
    loss: float
    """Mean over the epoch so far."""
    images_per_s: float
    """Over the epoch so far, all workers."""


@dataclass(frozen=True, slots=True)
class MicroBatchSplit:
    """A micro-batch does not fit into memory at once."""

    pieces: int
    """In how many parts it is computed."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained, and evaluated where it was to be."""

    report: EpochReport
    seconds: float
    """Wall time of the epoch, any evaluation included."""
    images_per_s: float
    """Train images over the time of the train steps, all workers."""
    first_batch_s: float
    """From the epoch's start to its first batch, on worker 0."""
    data_wait_s: float
    """Time that worker 0 waited for data, train and eval, the first batch included."""


@dataclass(frozen=True, slots=True)
class ImagesQuarantined:
    """Images that could not be read."""

    images: dict[int, str]
    """id → path and reason."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """Workers died; Ray Train starts them anew, if it may."""

    why: str


@dataclass(frozen=True, slots=True)
class Preempted:
    """The workers saved their state and left, since a machine of theirs is being taken away."""

    step: int
    """At which they stopped: the next group begins with it."""


@dataclass(frozen=True, slots=True)
class WaitingForWorkers:
    """There are no workers, for want of room."""

    why: str
    seconds: float
    """Since when."""


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run was given up, for a reason that trying again cannot mend."""

    message: str
    bad_images: bool = False
    """Whether too many images could not be read: `ImagesQuarantined` names some."""


Event = (
    RunStarted
    | ComputingFeatures
    | WorkersStarted
    | StepDone
    | MicroBatchSplit
    | EpochDone
    | ImagesQuarantined
    | WorkerDied
    | Preempted
    | WaitingForWorkers
    | RunFailed
)


class EventChannel:
    """Keeps events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._failed = False
        self._stumbled = set[int]()
        self._pieces = 1

    def post(self, event: Event) -> None:
        """Called by workers."""
        self._events.append(event)
        self._failed |= isinstance(event, RunFailed)

    def failed(self) -> bool:
        """Whether a worker has given the run up."""
        return self._failed

    def stumbles(self, step: int) -> bool:
        """Whether the run has come to grief at this step before; remembered from now on."""
        before = step in self._stumbled
        self._stumbled.add(step)
        return before

    def divide(self, pieces: int) -> None:
        """The workers that come next begin with lanes in so many parts."""
        self._pieces = max(self._pieces, pieces)

    def pieces(self) -> int:
        """Into how many parts lanes are divided at least."""
        return self._pieces

    def take(self) -> list[Event]:
        """Called by the driver: everything since it last asked, in order."""
        taken, self._events = self._events, []
        return taken


def start_event_channel() -> Any:
    """Start the actor that carries events."""
    return start_local_actor(EventChannel)


def start_local_actor(kind: type, *, name: str | None = None) -> Any:
    """Start an actor that needs no CPU on this process's machine, and nowhere else.

    Ray would place it on any, and take it away with it; without this process nobody needs it.
    Of one `name` there is only one: another process's, if that was first.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(kind)
    return actor.options(name=name, get_if_exists=True).remote() if name else actor.remote()


@contextmanager
def deliver_events(board: Any, hear: Callable[[Event], None]) -> Iterator[None]:
    """Call `hear` with every event posted meanwhile, from a thread of its own."""
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            _deliver(board, hear)
            time.sleep(POLL_S)

    thread = threading.Thread(target=listen, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _deliver(board, hear)


def _deliver(board: Any, hear: Callable[[Event], None]) -> None:
    try:
        events = ray.get(board.take.remote())
    except ray.exceptions.RayError:
        return  # the cluster is going down; the run's own record tells the rest
    for event in events:
        hear(event)
