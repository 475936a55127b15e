"""Our cluster file's machines, bought by Ray's real autoscaler as raylets of this machine."""

import json
import sys
from pathlib import Path

import pytest
from autoscaled import ROOT, autoscaled, gone, node_types, submit
from servers import fresh_bucket, s3_environment

from effnet_ray.data.sample import pack_sample
from effnet_ray.store.releases import ModelStore

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(400)]


def test_a_submitted_run_buys_its_machine_trains_publishes_and_gives_it_back(
    rclone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with s3_environment(rclone):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        flags = ["--data", f"{bucket}/digits", "--runs", f"{bucket}/runs", "--name", "bought"]
        flags += ["--store", f"{bucket}/store", "--weights", "none", "--image-size", "32"]
        flags += ["--limit", "64", "--epochs", "2", "--batch-size", "16", "--workers", "2"]
        with autoscaled(node_types("cpu"), tmp_path) as env:
            done = submit(env, sys.executable, str(ROOT / "jobs/finetune.py"), *flags)
            assert gone(env)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(next(line for line in done.stdout.splitlines() if line[:1] == "{"))
        assert told["release"] == "bought@v1" and told["steps"] == 8
        assert ModelStore(f"{bucket}/store").find("bought@v1").uri == told["release_uri"]
