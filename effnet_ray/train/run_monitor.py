"""Tracks a run's events and builds its Result. Imports no Ray."""

from collections.abc import Callable

from effnet_ray.errors import TrainingError
from effnet_ray.train import checkpoint, events
from effnet_ray.train.checkpoint import Checkpoint
from effnet_ray.train.epoch_report import EpochReport, best, ended_early
from effnet_ray.train.metric_definitions import EVAL_METRICS
from effnet_ray.train.run_record import Result
from effnet_ray.train.worker_job import WorkerJob

OnEvent = Callable[[events.Event], None]
MAX_BAD_IMAGES = 3
"""Maximum number of bad images that the error of a failed run names."""


class RunMonitor:
    """Receives a run's events, passes them on, and builds the run's Result at the end."""

    def __init__(self, job: WorkerJob, on_event: OnEvent | None = None) -> None:
        self._job, self._pass_on = job, on_event
        self._started: events.WorkersStarted | None = None
        self._failed: events.RunFailed | None = None
        self._bad_images: dict[int, str] = {}
        self._train_images, self._train_s = 0, 0.0
        self.preempted = False
        """Whether the workers stopped before the end, to continue on other machines."""

    def on_event(self, event: events.Event) -> None:
        """Record what the Result needs, and pass the event on."""
        match event:
            case events.WorkersStarted():
                self._started, self.preempted = event, False
                self._train_images, self._train_s = 0, 0.0
            case events.Preempted():
                self.preempted = True
            case events.EpochDone():
                self._train_images += event.train_images
                self._train_s += event.train_s
            case events.ImagesQuarantined():
                self._bad_images |= event.images
            case events.RunFailed():
                self._failed = event
        if self._pass_on:
            self._pass_on(event)

    @property
    def train_images_per_s(self) -> float:
        """Rate over all train steps since the workers last started."""
        return self._train_images / self._train_s if self._train_s else 0.0

    def raise_if_failed(self) -> None:
        """Raises TrainingError if a worker ended the run."""
        if self._failed:
            message = self._failed.message
            if self._failed.bad_images:
                named = "; ".join(list(self._bad_images.values())[:MAX_BAD_IMAGES])
                message += (
                    f" ({named}): {self._job.quarantine_uri} lists all of them: repair them and "
                    "pack again, or raise --max-bad-fraction"
                )
            raise TrainingError(f"run {self._job.run.name!r} failed: {message}")

    def result(self, *, seconds: float) -> Result:
        """The result, from the run's checkpoints. Raises TrainingError if it is unfinished.

        `seconds`: wall time of the call.
        """
        self.raise_if_failed()
        job = self._job
        last, best_epoch = self._finished()
        return Result(
            run=job.run.name,
            run_uri=job.run_uri,
            checkpoint=f"{job.checkpoints_uri}/{checkpoint.folder(best_epoch.step)}",
            **{metric.key: getattr(best_epoch, metric.key) for metric in EVAL_METRICS},
            epochs=len(last.history),
            steps=last.step,
            resumed_from_step=self._started.step if self._started else 0,
            train_images_per_s=self.train_images_per_s,
            seconds=seconds,
            device_seconds=round(last.progress.device_s, 1),
            quarantined=last.history[-1].quarantined,
        )

    def _finished(self) -> tuple[Checkpoint, EpochReport]:
        """The last checkpoint and the best epoch. Raises TrainingError if epochs are missing."""
        recipe = self._job.run.recipe
        last = checkpoint.newest(self._job.checkpoints_uri)
        best_epoch = best(last.history) if last else None
        if (
            last
            and best_epoch
            and (len(last.history) == recipe.epochs or ended_early(last.history, recipe))
        ):
            return last, best_epoch
        raise TrainingError(
            f"run {self._job.run.name!r} stopped before its last epoch: run the same command "
            "again to resume it"
        )
