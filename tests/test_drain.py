"""A machine that is taken away with notice costs a run no step."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import fresh_bucket, s3_environment

from effnet_ray import storage
from effnet_ray.data.sample import pack_sample

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DRAINED = """
import json, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
import ray
from laws import RECIPE
from ray.cluster_utils import Cluster
from effnet_ray import Placement, finetune
from effnet_ray.train.progress import Left, Lost, Started

bucket = sys.argv[1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
heard = []

def run(name, hear):
    recipe, placement = replace(RECIPE, epochs=6), Placement(workers="2", max_failures=0)
    told[name] = finetune(recipe, placement, f"{bucket}/digits", runs=f"{bucket}/runs",
                          name=name, hear=hear).checkpoint

def until(kind, times=1):
    while sum(isinstance(event, kind) for event in heard) < times:
        time.sleep(0.1)
        assert thread.is_alive()

told = {}
thread = threading.Thread(target=run, args=["drained", heard.append])
thread.start()
until(Started)
cluster.add_node(num_cpus=1)
subprocess.run([Path(sys.executable).with_name("ray"), "drain-node",
                f"--address={cluster.address}", f"--node-id={nodes[0].node_id}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                "--deadline-remaining-seconds=60"], check=True, stdout=sys.stderr)
until(Started, times=2)
cluster.remove_node(nodes[0], allow_graceful=False)
thread.join()
run("undisturbed", lambda event: None)
told["begun"] = [event.step for event in heard if isinstance(event, Started)]
told["left"] = [event.step for event in heard if isinstance(event, Left)]
told["lost"] = [event.why for event in heard if isinstance(event, Lost)]
print(json.dumps(told))
ray.shutdown()
cluster.shutdown()
"""


def test_a_drained_machine_costs_no_step_no_failure_and_no_bit(rclone: str) -> None:
    with s3_environment(rclone):
        bucket = fresh_bucket()
        pack_sample(f"{bucket}/digits")
        env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", DRAINED, bucket],
            env=env, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["begun"] == [0, *told["left"]] and len(told["left"]) == 1
        assert not told["lost"]
        assert weights(told["drained"]) == weights(told["undisturbed"])


def weights(checkpoint: str) -> str:
    """SHA-256 of a checkpoint's weights."""
    return hashlib.sha256(storage.read_bytes(f"{checkpoint}/model.safetensors")).hexdigest()
