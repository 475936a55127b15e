"""Per-step logs of a run: the audit (images that steps used) and the quarantine (bad images).

Each is a folder of Parquet files, one per step and rank, written before the worker's gradients or
sums enter the step. So the rows of every rank exist for every step that was taken, and for any
checkpoint after it; and for up to two steps that were not, if the run was stopped. A resumed run
first deletes what was logged at or after the step it resumes from.
"""

import queue
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow as pa

from effnet_ray import storage
from effnet_ray.data.chunks import BadImage
from effnet_ray.data.stream import Images
from effnet_ray.storage import parquet

FILE_NAME = re.compile(r"step-(?P<step>\d{8})-rank-\d{4}(-train|-eval)?\.parquet")
AUDIT_SCHEMA = pa.schema(
    [pa.field(name, pa.int64()) for name in ("epoch", "step", "rank", "id")]
    + [pa.field("weight", pa.float32())]
)
QUARANTINE_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("path", "reason", "digest", "split")]
    + [pa.field(name, pa.int64()) for name in ("id", "epoch", "step")]
)
"""Begins with the columns of `pack`'s quarantine.parquet."""


def write_audit(
    folder: str, images: Sequence[tuple[int, float]], *, epoch: int, step: int, rank: int
) -> None:
    """Log the images (id, weight) that worker `rank` uses in a step, counted over the run.

    An image that the step uses twice (`Recipe.balance`) has two rows.
    """
    count = len(images)
    columns = {
        "epoch": [epoch] * count,
        "step": [step] * count,
        "rank": [rank] * count,
        "id": [image for image, _ in images],
        "weight": [weight for _, weight in images],
    }
    uri = storage.join(folder, f"{_stem(step, rank)}.parquet")
    parquet.write_table(uri, pa.table(columns, schema=AUDIT_SCHEMA))


def write_quarantine(
    folder: str, images: Mapping[int, BadImage], *, split: str, epoch: int, step: int, rank: int
) -> None:
    """Log images (by id) that worker `rank` could not read.

    `step` counts over the run; an evaluation belongs to the last step of its epoch. An image has a
    row per epoch, or per step if an epoch uses it in several.
    """
    rows = [
        {
            "path": bad.path,
            "reason": bad.reason,
            "digest": bad.digest,
            "split": split,
            "id": image,
            "epoch": epoch,
            "step": step,
        }
        for image, bad in images.items()
    ]
    uri = storage.join(folder, f"{_stem(step, rank)}-{split}.parquet")
    parquet.write_table(uri, pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))


def delete_from(folder: str, step: int) -> None:
    """Delete what any rank logged in `folder` at or after `step`."""
    logs = filter(None, map(FILE_NAME.fullmatch, storage.sizes(folder)))
    storage.delete_files(folder, [log[0] for log in logs if int(log["step"]) >= step])


def _stem(step: int, rank: int) -> str:
    return f"step-{step:08d}-rank-{rank:04d}"


class StepLog:
    """Writes one worker's part of a run's audit and quarantine; a thread may do so."""

    def __init__(
        self, quarantine: str, audit: str | None, *, rank: int, steps_per_epoch: int
    ) -> None:
        """`quarantine` and `audit` are folders; None: no audit."""
        self._quarantine, self._audit = quarantine, audit
        self._rank, self._steps_per_epoch = rank, steps_per_epoch
        self._new_bad_images = queue.SimpleQueue[dict[int, BadImage]]()

    def log_train(self, images: Images, step: int) -> None:
        """Log the images of a step before it is taken."""
        if self._audit is not None:
            used = list(zip(images.id.tolist(), images.weight.tolist(), strict=True))
            epoch = step // self._steps_per_epoch
            write_audit(self._audit, used, epoch=epoch, step=step, rank=self._rank)
        self._log_bad("train", [images], step)

    def log_eval(self, batches: Sequence[Images], step: int) -> None:
        """Log the bad images of the evaluation after `step`."""
        self._log_bad("eval", batches, step)

    def _log_bad(self, split: str, parts: Sequence[Images], step: int) -> None:
        bad_images = {image: bad for part in parts for image, bad in part.bad.items()}
        if bad_images:
            self._new_bad_images.put(bad_images)
            epoch = step // self._steps_per_epoch
            write_quarantine(
                self._quarantine, bad_images, split=split, epoch=epoch, step=step, rank=self._rank
            )

    def take_bad_images(self) -> dict[int, str]:
        """Path and reason, by id, of the bad images logged since the last call."""
        bad_images = dict[int, BadImage]()
        with suppress(queue.Empty):
            while True:
                bad_images |= self._new_bad_images.get_nowait()
        return {image: f"{bad.path}: {bad.reason}" for image, bad in bad_images.items()}
