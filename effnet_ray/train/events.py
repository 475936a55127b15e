"""What a run says while it goes: small events from workers to the driver, through one actor."""

from dataclasses import dataclass
from typing import Any

from effnet_ray.runtime.actors import start_local_actor
from effnet_ray.runtime.events import EventQueue, WaitingForWorkers
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Run


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


class EventChannel(EventQueue):
    """The events of a run, and what its workers must remember when Ray starts them again."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = False
        self._stumbled = set[int]()
        self._pieces = 1

    def post(self, event: Event) -> None:
        """Add an event. Called by workers."""
        super().post(event)
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


def start_event_channel() -> Any:
    """Start the actor that carries events."""
    return start_local_actor(EventChannel)
