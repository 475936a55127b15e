"""Fine-tuning with SIGKILLs at random moments of random processes, on disk and on S3."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from support.faults import Faults, Proxy, proxy
from support.fleet import assert_every_image_once_an_epoch
from support.laws import RECIPE, STEPS
from support.plain_run import plain_run
from support.runs import weights
from support.servers import rclone_server, s3_environment

from effnet_ray import storage
from effnet_ray.packing.sample import pack_sample
from effnet_ray.release import maintenance
from effnet_ray.release.store import ModelStore
from effnet_ray.runtime import shared_folders
from effnet_ray.train import checkpoint
from faults.disturb import Disturbed, Job, disturb
from faults.machines import machines
from faults.steps import StepWatch

EPOCHS = 10
RUN = replace(RECIPE, epochs=EPOCHS)
NAME = "disturbed"
JOB = Path(__file__).parents[2] / "jobs" / "finetune.py"


def finetune_job(place: str, recipe: Path, env: dict[str, str]) -> Job:
    """`jobs/finetune.py` with its data, runs and store at `place`."""
    flags = [
        "--recipe", str(recipe), "--data", f"{place}/digits", "--runs", f"{place}/runs",
        "--store", f"{place}/store", "--name", NAME, "--audit", "--workers", "2",
        "--checkpoint-every", "2", "--max-failures", "10",
    ]  # fmt: skip
    flags += ["--single-writer"] if place.startswith("s3://") else []

    def start(address: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(JOB), *flags], text=True, env={**env, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def check(place: str, output: str, expected_weights: str) -> dict[str, Any]:
    """Hold a finished run against the laws; raises AssertionError."""
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    run_uri = f"{place}/runs/{NAME}"
    assert_every_image_once_an_epoch(f"{run_uri}/audit", EPOCHS)
    newest = checkpoint.newest(f"{run_uri}/checkpoints")
    assert newest is not None and newest.step == EPOCHS * STEPS
    data = storage.read_bytes(f"{newest.uri}/model.safetensors")
    assert hashlib.sha256(data).hexdigest() == expected_weights, "other weights"
    store = ModelStore(f"{place}/store", place.startswith("s3://"))
    assert store.versions(NAME) == [1] and answer["release"] == f"{NAME}@v1"
    maintenance.verify(store.model_folder(NAME), 1)
    store.gc(stale_after_s=-60)
    left = leftovers(place)
    assert not left, f"left after gc: {left}"
    return answer


def leftovers(place: str) -> list[str]:
    """Files of a run and its store that a finished run does not have."""
    paths = {
        path
        for path in storage.entries(place, hidden=True)
        if not (path.endswith(".lock") or shared_folders.PROBE in path)  # a later run deletes it
    }
    records = {path.removesuffix("/checkpoint.json") for path in paths if _is_record(path)}
    partial = {path for path in paths if path.rsplit("/", 1)[-1].startswith(".")}
    unrecorded = {
        path
        for path in paths
        if "/checkpoints/" in path and not path.startswith(tuple(f"{r}/" for r in records))
    }
    return sorted(partial | unrecorded)


def _is_record(path: str) -> bool:
    return path.endswith("/checkpoint.json")


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Disturb the runs that are not done yet; yields what became of each."""
    reference = undisturbed_weights(scratch)
    recipe = scratch / "recipe.json"
    recipe.write_text(json.dumps(asdict(RUN)))
    for number in range(runs):
        if number in done:
            continue
        kind = PLACES[number % len(PLACES)]
        folder, run, failure = scratch / f"run-{number}", Disturbed(), ""
        try:
            with places(kind, folder, scratch / "digits") as place, machines() as cluster:
                job = finetune_job(place.uri, recipe, dict(os.environ))
                with StepWatch(place.folder / "runs" / NAME / "audit") as watch:
                    disturb(run, job, cluster, watch, random.Random(number))
                place.calm()
                check(place.uri, run.output, reference)
                cluster.check_idle()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        yield {
            "run": number, "place": kind, "failure": failure, **run.record(),
            "wasted_steps": watch.taken - EPOCHS * STEPS,
        }  # fmt: skip
        if not failure:
            shutil.rmtree(folder)


def undisturbed_weights(scratch: Path) -> str:
    """SHA-256 of the weights of the same run that nothing disturbed; also packs the data."""
    pack_sample(str(scratch / "digits"))
    result = plain_run(RUN, str(scratch / "digits"), str(scratch), "undisturbed", workers=2)
    return weights(result.finished)


@dataclass(frozen=True)
class Place:
    """Where a run keeps its files."""

    uri: str
    folder: Path
    """The same on this machine's disk."""
    network: Proxy | None = None

    def calm(self) -> None:
        """End all faults, so that checks see what there is."""
        if self.network:
            self.network.faults = Faults()


PLACES = ("disk", "rclone", "faulty")
FAULTS = ("503 SlowDown", "500", "429", "502", "reset", "short body", "short body", "late")
"""Each for one percent of all requests: five percent fail, two percent are cut short, and one
percent is answered two seconds late."""


@contextmanager
def places(kind: str, folder: Path, digits: Path) -> Iterator[Place]:
    """A place for a run, with its data set: a folder, an S3 server, or one behind faults."""
    bucket = folder / "bucket"
    shutil.copytree(digits, bucket / "digits")
    if kind == "disk":
        yield Place(str(bucket), bucket)
        return
    with rclone_server(folder) as endpoint, proxy(endpoint) as network:
        if kind == "faulty":
            network.faults = Faults(FAULTS, len(FAULTS) / 100)
        with s3_environment(network.endpoint if kind == "faulty" else endpoint):
            yield Place("s3://bucket", bucket, network)
