"""A run of MIN:MAX workers grows and shrinks with its cluster, and the laws do not notice."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from laws import RECIPE, STEPS
from servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.data.sample import pack_sample

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(560)]

EPOCHS = 90
RESIZED = """
import json, sys, threading, time
from dataclasses import replace
import ray
from laws import RECIPE
from ray.cluster_utils import Cluster
from effnet_ray import Placement, finetune
from effnet_ray.train.progress import Started

bucket, epochs = sys.argv[1], int(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
heard, told = [], {}

def run():
    placement = Placement(workers="1:2", audit=True, checkpoint_every=2)
    told["uri"] = finetune(replace(RECIPE, epochs=epochs), placement, f"{bucket}/digits",
                           runs=f"{bucket}/runs", name="resized", hear=heard.append).run_uri

def groups():
    return [event.workers for event in heard if isinstance(event, Started)]

def until(true):
    while not true():
        time.sleep(0.1)
        assert thread.is_alive(), groups()

thread = threading.Thread(target=run)
thread.start()
until(lambda: groups() == [1])
second = cluster.add_node(num_cpus=1)
until(lambda: groups()[-1] == 2)
time.sleep(5)
cluster.remove_node(second, allow_graceful=False)
until(lambda: groups()[-1] == 1)
thread.join()
told["groups"] = groups()
print(json.dumps(told))
ray.shutdown()
cluster.shutdown()
"""


def test_a_run_grows_when_a_machine_comes_and_shrinks_when_it_dies(rclone: str) -> None:
    with s3_environment(rclone):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", RESIZED, bucket, str(EPOCHS)],
            env=env, capture_output=True, text=True, timeout=540,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["groups"] == [1, 2, 1]
        steps = used(f"{told['uri']}/audit")
        assert sorted(steps) == list(range(EPOCHS * STEPS))
        for epoch in range(EPOCHS):
            of_epoch = sum((steps[epoch * STEPS + step] for step in range(STEPS)), Counter[int]())
            assert len(of_epoch) == RECIPE.limit and set(of_epoch.values()) == {1}


def used(audit: str) -> dict[int, Counter[int]]:
    """Step → image id → times used."""
    steps: dict[int, Counter[int]] = {}
    for name in storage.sizes(audit):
        filesystem, path = storage.arrow_filesystem(storage.join(audit, name))
        for row in pq.read_table(path, filesystem=filesystem).to_pylist():
            steps.setdefault(row["step"], Counter())[row["id"]] += row["weight"] > 0
    return steps
