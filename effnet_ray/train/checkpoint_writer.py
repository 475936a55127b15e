"""Writes checkpoints in the background and deletes old ones."""

from concurrent.futures import Future, ThreadPoolExecutor

from effnet_ray import storage
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.train.checkpoint import (
    AVERAGED,
    RECORD,
    Snapshot,
    folder,
    snapshot,
    write,
)
from effnet_ray.train.epoch_report import best
from effnet_ray.train.state import TrainState


class CheckpointWriter:
    """Writes one checkpoint at a time; keeps the newest `keep` and the best epoch's."""

    def __init__(self, checkpoints: str, keep: int, max_skips: int) -> None:
        """`max_skips`: a state with more skipped steps in a row is not written."""
        self._checkpoints, self._keep, self._max_skips = checkpoints, keep, max_skips
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Copy the state now and write it later. Raises what the previous write raised."""
        self.wait()
        self._pending = self._pool.submit(self._write, snapshot(state))

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises what its write raised."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _write(self, snapshot: Snapshot) -> None:
        # Else the loop fails after its next step, and resumes from before.
        if snapshot.progress.skipped <= self._max_skips and _is_finite(snapshot):
            write(snapshot, self._checkpoints)
            self._delete_old(snapshot)

    def _delete_old(self, snapshot: Snapshot) -> None:
        best_epoch = best(snapshot.progress.history)
        records = {
            name: storage.join(self._checkpoints, name, RECORD)
            for name in storage.folders(self._checkpoints)
            if name <= folder(snapshot.progress.step)
        }
        complete = [name for name, record in records.items() if storage.exists(record)]
        keep = {*complete[-self._keep :], folder(best_epoch.step) if best_epoch else ""}
        for name in records.keys() - keep:
            # The record goes first: a half-deleted checkpoint must not look complete.
            storage.delete(records[name])
            storage.delete(storage.join(self._checkpoints, name))


def _is_finite(snapshot: Snapshot) -> bool:
    snapshot.wait()
    tensors = snapshot.tensors
    weights = [*tensors[WEIGHTS].values(), *tensors.get(AVERAGED, {}).values()]
    return all(bool(tensor.isfinite().all()) for tensor in weights)
