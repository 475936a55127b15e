"""Images that a run could not read are recorded once, whatever is killed and resumed."""

from pathlib import Path

import pyarrow.parquet as pq

from effnet_ray.data.chunks import BadImage
from effnet_ray.packing.results import QUARANTINE
from effnet_ray.train import step_log

ONE, OTHER = (
    BadImage("cat/1.jpg", "truncated", "ab" * 32),
    BadImage("dog/2.png", "no image", "cd" * 32),
)


def named(folder: Path) -> list[tuple[int, int, str]]:
    """(step, id, split) of every row."""
    rows = pq.read_table(folder).to_pylist()
    return sorted((row["step"], row["id"], row["split"]) for row in rows)


def test_a_row_names_path_reason_digest_and_where_it_was_met(tmp_path: Path) -> None:
    step_log.write_quarantine(str(tmp_path), {7: ONE}, split="train", epoch=1, step=9, rank=0)
    assert pq.read_table(tmp_path).to_pylist() == [
        {
            "path": "cat/1.jpg", "reason": "truncated", "digest": "ab" * 32, "split": "train",
            "id": 7, "epoch": 1, "step": 9,
        }
    ]  # fmt: skip


def test_the_columns_begin_as_those_of_packing(packed: Path) -> None:
    packing = pq.read_schema(packed / QUARANTINE).names
    assert step_log.QUARANTINE_SCHEMA.names[: len(packing)] == packing


def test_a_resumed_run_counts_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    """Killed after step 4, resumed from the checkpoint after step 2 on another worker."""
    folder = str(tmp_path)
    for step, rank in ((1, 0), (2, 1), (4, 0)):
        step_log.write_quarantine(
            folder, {step: ONE}, split="train", epoch=0, step=step, rank=rank
        )
    step_log.write_quarantine(folder, {8: OTHER}, split="eval", epoch=0, step=1, rank=0)
    step_log.delete_from(folder, 2)
    assert named(tmp_path) == [(1, 1, "train"), (1, 8, "eval")]
    for step in (2, 4):
        step_log.write_quarantine(folder, {step: ONE}, split="train", epoch=0, step=step, rank=0)
    assert named(tmp_path) == [(1, 1, "train"), (1, 8, "eval"), (2, 2, "train"), (4, 4, "train")]
