"""Ray's real autoscaler starts the cluster file's machines as raylets on this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.autoscaled import ROOT, accelerators, autoscaled, gone, node_types, submit, trained
from support.gpus import counted_gpus
from support.servers import fresh_bucket, s3_environment

from effnet_ray.packing.sample import pack_sample
from effnet_ray.release.store import ModelStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.mark.long
def test_a_submitted_run_buys_its_machine_trains_publishes_and_gives_it_back(
    fleet: dict[str, str], bucket: str
) -> None:
    flags = ("--workers", "2", "--gpus-per-worker", "0.5", "--accelerator", "L40S")
    output = trained(fleet, "finetune", bucket, "--epochs", "2", *flags)
    assert accelerators(fleet) == ["L40S"]
    assert output["release"] == "bought@v1" and output["steps"] == 8
    assert ModelStore(f"{bucket}/store").find("bought@v1").uri == output["release_uri"]
    assert gone(fleet)


@pytest.mark.long
def test_a_submitted_sweep_buys_its_machines_publishes_and_gives_them_back(
    fleet: dict[str, str], bucket: str
) -> None:
    flags = ("--variants", "b0,b1", "--trials", "3")
    flags += ("--workers", "1", "--gpus-per-worker", "0.5")
    output = trained(fleet, "tune", bucket, "--epochs", "1", *flags)
    assert "L4" in accelerators(fleet)  # what is bought first
    assert sum(output["states"].values()) == 3 and output["states"]["finished"]
    assert ModelStore(f"{bucket}/store").find(output["release"]).uri == output["release_uri"]
    assert gone(fleet)


@pytest.mark.long
def test_what_the_autoscaler_may_never_buy_is_refused_at_once(
    fleet: dict[str, str], bucket: str
) -> None:
    flags = ("--data", f"{bucket}/digits", "--runs", f"{bucket}/runs", "--weights", "none")
    flags += ("--image-size", "32", "--gpus-per-worker")
    for more, says in {
        ("1", "--accelerator", "H20"): "0, and its autoscaler cannot launch machines for more",
        ("1", "--workers", "17"): "has room for 0, or 16 when scaled up",
        ("1", "--accelerator", "H100"): "(H100)",
    }.items():
        done = submit(fleet, sys.executable, str(ROOT / "jobs/finetune.py"), *flags, *more)
        assert done.returncode and says in done.stdout, done.stdout + done.stderr
    assert gone(fleet, within_s=0)


@pytest.fixture
def bucket(rclone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that holds a packed data set."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # raylets of one machine take no working dir
    monkeypatch.setenv("PYTHONPATH", counted_gpus(tmp_path))
    with s3_environment(rclone):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        yield bucket


@pytest.fixture
def fleet(bucket: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a cluster that has no machine but its head, and may buy some."""
    with autoscaled(node_types("gpu-small", "gpu-large"), tmp_path) as env:
        yield env
