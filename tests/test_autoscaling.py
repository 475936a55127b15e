"""Our cluster file's machines, bought by Ray's real autoscaler as raylets of this machine."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autoscaled import ROOT, autoscaled, gone, node_types, submit
from servers import fresh_bucket, s3_environment

from effnet_ray.data.sample import pack_sample
from effnet_ray.store.releases import ModelStore

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(400)]


def test_a_submitted_run_buys_its_machine_trains_publishes_and_gives_it_back(
    fleet: dict[str, str], bucket: str
) -> None:
    told = run(fleet, "finetune", bucket, "--epochs", "2", "--workers", "2")
    assert told["release"] == "bought@v1" and told["steps"] == 8
    assert ModelStore(f"{bucket}/store").find("bought@v1").uri == told["release_uri"]
    assert gone(fleet)


def test_a_submitted_sweep_buys_its_machines_publishes_and_gives_them_back(
    fleet: dict[str, str], bucket: str
) -> None:
    told = run(fleet, "tune", bucket, "--epochs", "1", "--variants", "b0,b1", "--trials", "3")
    assert sum(told["states"].values()) == 3 and told["states"]["finished"]
    assert ModelStore(f"{bucket}/store").find(told["release"]).uri == told["release_uri"]
    assert gone(fleet)


@pytest.fixture
def bucket(rclone: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that holds a packed data set."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with s3_environment(rclone):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        yield bucket


@pytest.fixture
def fleet(bucket: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a cluster that has no machine but its head, and may buy some."""
    with autoscaled(node_types("cpu"), tmp_path) as env:
        yield env


def run(env: dict[str, str], job: str, bucket: str, *flags: str) -> dict[str, Any]:
    """What a submitted job says at its end."""
    flags += ("--data", f"{bucket}/digits", "--runs", f"{bucket}/runs", "--name", "bought")
    flags += ("--store", f"{bucket}/store", "--weights", "none", "--image-size", "32")
    flags += ("--limit", "64", "--batch-size", "16")
    done = submit(env, sys.executable, str(ROOT / f"jobs/{job}.py"), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    last = next(line for line in done.stdout.splitlines() if line[:1] == "{")
    told: dict[str, Any] = json.loads(last)
    return told
