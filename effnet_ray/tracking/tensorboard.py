"""TensorBoard: event files in the run's own folder, wherever that is.

    RUNS/NAME/tensorboard/events.out.tfevents.*    one file for every call that added something

On object storage, where a file cannot grow, the newest is uploaded again at every epoch's end.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import TrackerError
from effnet_ray.tracking.metrics import EPOCH, OF_EPOCH, STEP, Logged, MetricPoint, params
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.train.run_record import Run

FOLDER = "tensorboard"
UPLOAD_EVERY_S = 60
"""Within an epoch."""


class TensorBoard:
    """One run at a time. Raises TrackerError where the extra is not installed."""

    name = "tensorboard"

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise TrackerError(
                "TensorBoard is not installed: pip install 'effnet-ray[tensorboard]'"
            ) from error
        self.where = ""
        self._folder = Path()
        self._temporary: TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._hparams: dict[str, Any] = {}
        self._uploaded = 0.0

    def check(self) -> str:
        """Where it writes: `runs` is looked at by itself."""
        return f"event files in RUNS/NAME/{FOLDER}"

    def begin(self, run: Run, run_uri: str) -> Logged:
        """What the run's event files have."""
        self._close()
        self.where = storage.join(run_uri, FOLDER)
        self._folder = Path(self.where)
        if storage.is_remote(self.where):
            logged = _downloaded(self.where)
            self._temporary = TemporaryDirectory(prefix="effnet-tensorboard-")
            self._folder = Path(self._temporary.name)
        else:
            logged = _logged(self._folder)
        self._hparams = {} if logged.epochs or logged.step >= 0 else params(run)
        return logged

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Add them to this call's own file."""
        writer = self._writing()
        for point in points:
            # The first one last: what has it is whole, though a kill may have torn the file.
            for tag, value in reversed(list(point.figures.items())):
                writer.add_scalar(tag, value, point.step, walltime=point.when)
        writer.flush()
        late = time.monotonic() - self._uploaded >= UPLOAD_EVERY_S
        if late or any(point.ends_epoch for point in points):
            self._upload()

    def register(self, story: RunHistory) -> None:
        """Nothing: TensorBoard knows no models."""

    def end(self, status: str) -> None:
        """Write out what is left."""
        if self._writer:
            self._writer.close()
            self._upload()
        self._close()

    def _writing(self) -> Any:
        """Not before there is something to write: a run that is only reported gets no file."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
            self._write_hparams()
        return self._writer

    def _write_hparams(self) -> None:
        """Into the run's own file: `add_hparams` would make a run of its own of them."""
        from torch.utils.tensorboard.summary import hparams

        if self._hparams:
            figures = dict.fromkeys(OF_EPOCH, 0.0)
            for summary in hparams(self._hparams, figures):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)

    def _upload(self) -> None:
        self._uploaded = time.monotonic()
        if storage.is_remote(self.where):
            for written in self._folder.iterdir():  # this call's file alone
                storage.upload(written, storage.join(self.where, written.name))

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
        if self._temporary:
            self._temporary.cleanup()
        self._writer = self._temporary = None


def _downloaded(uri: str) -> Logged:
    """`_logged`, of a folder on object storage."""
    with TemporaryDirectory(prefix="effnet-tensorboard-") as folder:
        for name in storage.sizes(uri):
            storage.download(storage.join(uri, name), Path(folder, Path(name).name))
        return _logged(Path(folder))


def _logged(folder: Path) -> Logged:
    """What the event files below a folder have; nothing where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir() or not any(folder.iterdir()):
        return Logged()
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    has = found.Tags()["scalars"]
    steps = {
        tag: {event.step for event in found.Scalars(tag)} if tag in has else set()
        for tag in (EPOCH, STEP)
    }
    return Logged(steps[EPOCH], max(steps[STEP], default=-1))
