"""TensorBoard: event files in the run's own folder, on any storage.

    RUNS/NAME/tensorboard/events.out.tfevents.*    one file per call that logged something

Objects in object storage cannot grow, so there the newest file is uploaded again at the end of
every epoch.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import TrackerError
from effnet_ray.storage.temporary import scratch_folder, temporary_folder
from effnet_ray.tracking.metrics import EPOCH, RUNNING_LOSS, Logged, MetricPoint, params
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.tracking.tracker import RunStatus
from effnet_ray.train.metric_definitions import EPOCH_METRICS
from effnet_ray.train.run_record import Run

FOLDER = "tensorboard"
UPLOAD_EVERY_S = 60
"""How often the file is uploaded within an epoch. Chosen, not measured."""


class TensorBoard:
    """Writes event files. Raises TrackerError if the `tensorboard` extra is not installed."""

    name = "tensorboard"

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise TrackerError(
                "TensorBoard is not installed: pip install 'effnet-ray[tensorboard]'"
            ) from error
        self.location = ""
        self._folder = Path()
        self._temporary = ExitStack()
        self._writer: Any = None
        self._hparams: dict[str, Any] = {}
        self._uploaded_at = 0.0

    def check(self) -> str:
        """Return where event files are written. The preflight checks that folder itself."""
        return f"event files in RUNS/NAME/{FOLDER}"

    def start_run(self, run: Run, run_uri: str) -> Logged:
        """Return what the run's event files contain already."""
        self._close()
        self.location = storage.join(run_uri, FOLDER)
        self._folder = Path(self.location)
        if storage.is_remote(self.location):
            logged = _read_remote(self.location)
            self._folder = self._temporary.enter_context(scratch_folder("tensorboard"))
        else:
            logged = _read(self._folder)
        self._hparams = {} if logged.epochs or logged.step >= 0 else params(run)
        return logged

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Add metrics to this call's own file."""
        writer = self._open_writer()
        for point in points:
            # The first metric is written last, so a point that has it is complete even if a kill
            # has truncated the file.
            for tag, value in reversed(list(point.metrics.items())):
                writer.add_scalar(tag, value, point.step, walltime=point.time_s)
        writer.flush()
        due = time.monotonic() - self._uploaded_at >= UPLOAD_EVERY_S
        if due or any(point.ends_epoch for point in points):
            self._upload()

    def register_release(self, history: RunHistory) -> None:
        """Do nothing: TensorBoard has no model registry."""

    def end_run(self, status: RunStatus) -> None:
        """Write what is left to the file. TensorBoard has no run status."""
        if self._writer:
            self._writer.close()
            self._upload()
        self._close()

    def _open_writer(self) -> Any:
        """The writer, created for the first metrics: without any there is no new file."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
            self._write_hparams()
        return self._writer

    def _write_hparams(self) -> None:
        """Write hyper-parameters to the run's file; `add_hparams` would create a second run."""
        from torch.utils.tensorboard.summary import hparams

        if self._hparams:
            metrics = dict.fromkeys((metric.key for metric in EPOCH_METRICS), 0.0)
            for summary in hparams(self._hparams, metrics):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)

    def _upload(self) -> None:
        self._uploaded_at = time.monotonic()
        if storage.is_remote(self.location):
            for file in self._folder.iterdir():  # only this call's file
                storage.upload(file, storage.join(self.location, file.name))

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
        self._temporary.close()
        self._writer = None


def _read_remote(uri: str) -> Logged:
    """What the event files of a folder on object storage contain."""
    with temporary_folder("tensorboard") as folder:
        for name in storage.sizes(uri):
            storage.download(storage.join(uri, name), folder / Path(name).name)
        return _read(folder)


def _read(folder: Path) -> Logged:
    """What the event files of a local folder contain."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir() or not any(folder.iterdir()):
        return Logged()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    steps = {
        tag: {event.step for event in events.Scalars(tag)} if tag in tags else set()
        for tag in (EPOCH, RUNNING_LOSS)
    }
    return Logged(steps[EPOCH], max(steps[RUNNING_LOSS], default=-1))
