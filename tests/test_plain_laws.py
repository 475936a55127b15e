"""The laws of training in plain processes: gloo and threads in place of Ray."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from laws import RECIPE
from support.plain_run import PlainRun, plain_run

from effnet_ray.train import checkpoint
from effnet_ray.train.events import EpochDone, WorkersStarted

SHORT = replace(RECIPE, limit=20)
STEPS = 3
"""Steps of an epoch, the last one with half a batch."""
ONE_EPOCH = replace(SHORT, epochs=1)


def audit(run_uri: str) -> list[tuple[int, int, int, float]]:
    """(epoch, step, id, weight) of every use of an image, in order."""
    rows = pq.read_table(f"{run_uri}/audit").to_pylist()
    return sorted((row["epoch"], row["step"], row["id"], row["weight"]) for row in rows)


def newest_bytes(run_uri: str) -> dict[str, bytes]:
    """The files of the newest checkpoint but its record, and the record's history."""
    newest = checkpoint.newest(f"{run_uri}/checkpoints")
    assert newest is not None
    history = json.loads((Path(newest.uri) / checkpoint.RECORD).read_bytes())["history"]
    files = {name: newest.read(name) for name in newest.files}
    return files | {"history": json.dumps(history).encode()}


def epochs(run: PlainRun) -> list[EpochDone]:
    return [event for event in run.events if isinstance(event, EpochDone)]


@pytest.fixture(scope="module")
def undisturbed(digits: str, tmp_path_factory: pytest.TempPathFactory) -> PlainRun:
    """Two workers, two epochs."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return plain_run(SHORT, digits, str(runs), "two", workers=2)


def test_any_number_of_workers_uses_every_image_once_in_the_same_steps(
    digits: str, undisturbed: PlainRun, tmp_path: Path
) -> None:
    assert undisturbed.result is not None
    expected = [row for row in audit(undisturbed.result.run_uri) if row[0] == 0]
    ids = [image for _, _, image, _ in expected]
    assert len(ids) == len(set(ids)) == epochs(undisturbed)[0].report.train_images
    for workers in (1, 3):
        run = plain_run(ONE_EPOCH, digits, str(tmp_path), f"w{workers}", workers=workers)
        assert run.result is not None and audit(run.result.run_uri) == expected


def test_a_killed_run_resumes_bit_equal_and_times_what_it_did_itself(
    digits: str, undisturbed: PlainRun, tmp_path: Path
) -> None:
    runs = str(tmp_path)
    plain_run(
        SHORT, digits, runs, "killed", workers=2, checkpoint_every=1, kill_after_steps=STEPS + 2
    )
    resumed = plain_run(SHORT, digits, runs, "killed", workers=2)
    assert resumed.result is not None and undisturbed.result is not None
    assert newest_bytes(resumed.result.run_uri) == newest_bytes(undisturbed.result.run_uri)
    assert audit(resumed.result.run_uri) == audit(undisturbed.result.run_uri)
    (started,) = [event for event in resumed.events if isinstance(event, WorkersStarted)]
    assert STEPS < started.step <= STEPS + 2
    assert resumed.result.resumed_from_step == started.step
    (done,) = epochs(resumed)
    assert done.train_images == 20 - RECIPE.batch_size * (started.step - STEPS)
    assert done.report.train_images == 20
    assert resumed.result.train_images_per_s == pytest.approx(done.images_per_s)


def test_each_epoch_is_reported(undisturbed: PlainRun) -> None:
    assert [report["epoch"] for report in undisturbed.reports] == [0, 1]
    assert undisturbed.reports[-1]["reached"] == 1
