"""Several machines on one: raylets that a script of its own process adds and takes away."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from effnet_ray import storage
from effnet_ray.packing.sample import pack_sample
from support.laws import RECIPE, STEPS
from support.servers import fresh_bucket, s3_environment

PREAMBLE = """
import json, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
import ray
from support.laws import RECIPE
from ray.cluster_utils import Cluster
from effnet_ray import Placement, finetune, storage
from effnet_ray.train.events import Preempted, WorkerDied, WorkersStarted

bucket = sys.argv[1]
heard, told = [], {}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})

def machines(count):
    added = [cluster.add_node(num_cpus=1) for _ in range(count)]
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return added

def train(name, epochs, hear=heard.append, **placement):
    told[name] = finetune(replace(RECIPE, epochs=epochs), Placement(audit=True, **placement),
                          f"{bucket}/digits", runs=f"{bucket}/runs", name=name,
                          on_event=hear).run_uri

def begin(*run, **placement):
    global thread
    thread = threading.Thread(target=train, args=run, kwargs=placement)
    thread.start()

def groups():
    return [event.workers for event in heard if isinstance(event, WorkersStarted)]

def until(true):
    while not true():
        time.sleep(0.05)
        assert thread.is_alive(), heard
"""
END = """
thread.join()
print(json.dumps(told))
if "disturbed" not in told:
    print(heard, file=sys.stderr)
    sys.exit("the run failed")
ray.shutdown()
cluster.shutdown()
"""


def on_a_fleet(endpoint: str, script: str, timeout: float = 380) -> dict[str, Any]:
    """What a script tells at its end; it begins with PREAMBLE. Call it with S3 at hand."""
    with s3_environment(endpoint):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        env = {
            **os.environ,
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}",
        }
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + script + END, bucket],
            env=env, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return output


def assert_every_image_once_an_epoch(audit: str, epochs: int) -> None:
    """Whatever happened to the machines."""
    steps: dict[int, Counter[int]] = {}
    for name in storage.sizes(audit):
        filesystem, path = storage.arrow_filesystem(storage.join(audit, name))
        for row in pq.read_table(path, filesystem=filesystem).to_pylist():
            steps.setdefault(row["step"], Counter())[row["id"]] += row["weight"] > 0
    assert sorted(steps) == list(range(epochs * STEPS))
    for epoch in range(epochs):
        of_epoch = sum((steps[epoch * STEPS + step] for step in range(STEPS)), Counter[int]())
        assert len(of_epoch) == RECIPE.limit and set(of_epoch.values()) == {1}
