"""Events of a run, which its workers send to the driver. Imports neither Ray nor torch."""

from dataclasses import dataclass
from typing import Protocol

from effnet_ray.runtime.events import EventQueue, WaitingForWorkers
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.run_record import Run


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run is recorded in storage; always the first event."""

    run: Run
    run_uri: str


@dataclass(frozen=True, slots=True)
class ComputingFeatures:
    """Features of a frozen backbone, or a teacher's logits, are being computed."""

    done: int
    images: int
    """Images whose features are computed in total."""
    of_teacher: bool = False


@dataclass(frozen=True, slots=True)
class WorkersStarted:
    """A worker group starts, or starts again."""

    workers: int
    step: int
    """The step it resumes from; 0 for a new run."""
    steps: int
    """Steps of the whole run."""
    device: str
    phases: str = ""
    """Description of the recipe's phases."""


@dataclass(frozen=True, slots=True)
class CheckpointSkipped:
    """A damaged checkpoint is skipped; an older one, if there is one, is resumed from."""

    reason: str


@dataclass(frozen=True, slots=True)
class HeadSolved:
    """The head is solved; the epoch that follows measures it."""

    penalty: float
    passes: int
    converged: bool
    """As in `SolvedHead`."""
    seconds: float
    """Wall time of solving."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Progress within an epoch; not sent for every step."""

    step: int
    loss: float
    """Mean over the epoch so far."""
    images_per_s: float
    """As in `Throughput`, of all workers."""


@dataclass(frozen=True, slots=True)
class MicroBatchSplit:
    """A micro-batch does not fit into memory at once."""

    splits: int
    """Number of parts in which it is computed."""


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained, and evaluated if the recipe does."""

    report: EpochReport
    seconds: float
    """Wall time since the epoch began or the workers started in it, including evaluation."""
    train_images: int
    """Images that this worker group trained on in the epoch: fewer than the report's if the group
    resumed in the middle of the epoch."""
    train_s: float
    """Time of these train steps; see `Throughput`."""
    data_wait_s: float
    """Time that worker 0 waited for train and eval data, including the first batch."""

    @property
    def images_per_s(self) -> float:
        """Train images per second of all workers."""
        return self.train_images / max(1e-9, self.train_s)


@dataclass(frozen=True, slots=True)
class ImagesQuarantined:
    """Some images could not be read."""

    images: dict[int, str]
    """id → path and reason."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker died; Ray Train restarts the workers unless `max_failures` is reached."""

    reason: str


@dataclass(frozen=True, slots=True)
class Preempted:
    """The workers saved a checkpoint and stopped, because one of their machines is drained."""

    step: int
    """The step that the next workers continue from."""


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run failed for a reason that a retry cannot fix."""

    message: str
    bad_images: bool = False
    """Whether too many images could not be read; `ImagesQuarantined` names some of them."""


Event = (
    RunStarted
    | ComputingFeatures
    | WorkersStarted
    | CheckpointSkipped
    | HeadSolved
    | StepDone
    | MicroBatchSplit
    | EpochDone
    | ImagesQuarantined
    | WorkerDied
    | Preempted
    | WaitingForWorkers
    | RunFailed
)


class Channel(Protocol):
    """What workers see of an EventChannel, which is an actor in another process with Ray."""

    def post(self, event: Event) -> None:
        """Send an event to the driver."""
        ...

    def has_failed(self) -> bool:
        """Whether a worker ended the run."""
        ...

    def failed_before(self, message: str) -> bool:
        """Whether the run failed with this message before; remembers it."""
        ...

    def limit_passes(self, images: int) -> None:
        """Make the next workers compute at most so many images at once."""
        ...

    def pass_limit(self) -> int:
        """Maximum number of images that the next workers compute at once; 0: no limit."""
        ...


class EventChannel(EventQueue):
    """Carries a run's events, and remembers what its workers need after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = False
        self._failures = set[str]()
        self._pass_limit = 0

    def post(self, event: Event) -> None:
        """Add an event; called by workers and by the driver."""
        super().post(event)
        self._failed |= isinstance(event, RunFailed)

    def has_failed(self) -> bool:
        """Whether a worker ended the run."""
        return self._failed

    def failed_before(self, message: str) -> bool:
        """Whether the run failed with this message before; remembers it."""
        before = message in self._failures
        self._failures.add(message)
        return before

    def limit_passes(self, images: int) -> None:
        """Make the next workers compute at most so many images at once."""
        self._pass_limit = min(self._pass_limit or images, images)

    def pass_limit(self) -> int:
        """Maximum number of images that the next workers compute at once; 0: no limit."""
        return self._pass_limit
