"""The audit: one row per image and step, and a resumed run rewrites the steps it repeats."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from effnet_ray.train import step_log

STEPS, RANKS = range(12), range(3)


def fill(folder: Path) -> None:
    for step in STEPS:
        for rank in RANKS:
            images = [(100 * step + rank, 1.0), (100 * step + 50 + rank, 0.0)]
            step_log.write_audit(str(folder), images, epoch=step // 5, step=step, rank=rank)


def places(folder: Path) -> set[tuple[int, int]]:
    """Step and rank of every row."""
    rows = pq.read_table(folder).to_pylist() if any(folder.iterdir()) else []
    return {(row["step"], row["rank"]) for row in rows}


def test_a_row_is_an_image_in_a_step(tmp_path: Path) -> None:
    step_log.write_audit(str(tmp_path), [(70, 1.0), (3, 0.0)], epoch=2, step=11, rank=1)
    table = pq.read_table(tmp_path)
    assert table.schema.equals(step_log.AUDIT_SCHEMA)
    assert table.to_pylist() == [
        {"epoch": 2, "step": 11, "rank": 1, "id": 70, "weight": 1.0},
        {"epoch": 2, "step": 11, "rank": 1, "id": 3, "weight": 0.0},
    ]


def test_an_image_that_a_step_uses_twice_is_there_twice(tmp_path: Path) -> None:
    step_log.write_audit(str(tmp_path), [(7, 1.0), (3, 1.0), (7, 1.0)], epoch=0, step=0, rank=0)
    assert pq.read_table(tmp_path)["id"].to_pylist() == [7, 3, 7]


def test_a_worker_without_images_leaves_no_row(tmp_path: Path) -> None:
    step_log.write_audit(str(tmp_path), [], epoch=0, step=0, rank=2)
    assert pq.read_table(tmp_path).num_rows == 0


def test_a_step_taken_again_replaces_its_rows(tmp_path: Path) -> None:
    for weight in (0.0, 1.0):
        step_log.write_audit(str(tmp_path), [(5, weight)], epoch=0, step=3, rank=0)
    assert pq.read_table(tmp_path).column("weight").to_pylist() == [1.0]


@pytest.mark.parametrize("step", [0, 1, 10, 11, 12])
def test_everything_at_or_after_a_step_is_removed_for_every_rank(
    tmp_path: Path, step: int
) -> None:
    fill(tmp_path)
    step_log.delete_from(str(tmp_path), step)
    assert places(tmp_path) == {(s, rank) for s in STEPS if s < step for rank in RANKS}


def test_files_that_are_not_the_audits_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("notes.txt", "step-notes.parquet", "step-00000003-rank-0000.parquet.bak"):
        (tmp_path / name).touch()
    step_log.delete_from(str(tmp_path), 0)
    assert len(list(tmp_path.iterdir())) == 3


def test_where_no_audit_is_there_is_nothing_to_remove(tmp_path: Path) -> None:
    step_log.delete_from(str(tmp_path / "absent"), 0)
