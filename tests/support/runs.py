"""What a run of `laws.RECIPE` used and came to, read from its folder."""

import hashlib
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.release_format import layout
from effnet_ray.train import checkpoint
from effnet_ray.train.run_record import Result
from support.laws import RECIPE, STEPS

Audit = dict[int, dict[int, int]]
"""step → image id → times used"""


def audit(result: Result) -> Audit:
    """What every step used, over all workers; images of weight 0 left out."""
    used: Audit = defaultdict(lambda: defaultdict(int))
    folder = storage.join(result.run_uri, "audit")
    for name in storage.sizes(folder):
        filesystem, path = storage.arrow_filesystem(storage.join(folder, name))
        for row in pq.read_table(path, filesystem=filesystem).to_pylist():
            assert row["epoch"] == row["step"] // STEPS
            used[row["step"]][row["id"]] += row["weight"] > 0
    return {step: dict(images) for step, images in used.items()}


def weights(result: Result) -> str:
    """SHA-256 of the last checkpoint's weights."""
    folder = storage.join(result.run_uri, "checkpoints", checkpoint.folder(result.steps))
    data = storage.read_bytes(storage.join(folder, layout.WEIGHTS))
    return hashlib.sha256(data).hexdigest()


def planned(digits: str) -> set[int]:
    """Ids of the train images that RECIPE's limit leaves."""
    manifest = manifests.load(digits).limited(RECIPE.limit)
    table = pq.read_table(Path(digits) / manifest.splits["train"][0].path)
    return set(table["id"].to_pylist()[: RECIPE.limit])


def assert_once_each(result: Result, images: set[int]) -> None:
    used = audit(result)
    assert sorted(used) == list(range(2 * STEPS))
    for epoch in range(2):
        ids = [i for step in range(STEPS) for i in used[epoch * STEPS + step]]
        assert sorted(ids) == sorted(images)
    assert all(times == 1 for step in used.values() for times in step.values())


def losses(result: Result) -> list[float]:
    """Train and eval loss of every epoch."""
    history = _last(result).history
    return [loss for epoch in history for loss in (epoch.train_loss, epoch.eval_loss)]


def eval_images(result: Result) -> list[int]:
    """Images that each epoch's evaluation counted."""
    return [epoch.eval_images for epoch in _last(result).history]


def _last(result: Result) -> checkpoint.Checkpoint:
    folder = storage.join(result.run_uri, "checkpoints", checkpoint.folder(result.steps))
    return checkpoint.open_checkpoint(folder)
