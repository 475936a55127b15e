"""A run continues when machines leave with notice, die, or join."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from support.fleet import assert_every_image_once_an_epoch, on_a_fleet
from support.laws import RECIPE
from support.plain_run import plain_run
from support.servers import s3_environment

from effnet_ray import storage
from effnet_ray.train import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

EPOCHS = 10
DISTURBED = f"""
from effnet_ray.train.finetune import start_event_channel
nodes = machines(3)
channels = [start_event_channel() for _ in range(8)]
ray.get([channel.has_failed.remote() for channel in channels])
told["channels"] = [ray._private.state.actors(channel._actor_id.hex())["Address"]["NodeID"]
                    == cluster.head_node.node_id for channel in channels]
del channels

def newest():
    paths = storage.sizes(f"{{bucket}}/runs/disturbed/checkpoints")
    return max((int(path[5:13]) for path in paths if path.endswith("checkpoint.json")), default=0)

def busy():
    free = ray._private.state.available_resources_per_node()
    return next(node for node in nodes if not free[node.node_id].get("CPU"))

begin("disturbed", {EPOCHS}, workers="2", checkpoint_every=4, max_failures=1)
until(groups)
drained = busy()
subprocess.run([Path(sys.executable).with_name("ray"), "drain-node",
                f"--address={{cluster.address}}", f"--node-id={{drained.node_id}}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                "--deadline-remaining-seconds=60"], check=True, stdout=sys.stderr)
until(lambda: len(groups()) == 2)
cluster.remove_node(drained, allow_graceful=False)
nodes.remove(drained)
nodes += machines(1)
left = [event.step for event in heard if isinstance(event, Preempted)]
until(lambda: newest() >= left[0] + 4)
told["kept"] = newest()
cluster.remove_node(busy(), allow_graceful=False)
thread.join()
told["begun"] = [event.step for event in heard if isinstance(event, WorkersStarted)]
told["left"] = [event.step for event in heard if isinstance(event, Preempted)]
told["lost"] = [event.reason for event in heard if isinstance(event, WorkerDied)]
"""
LONG = 90
RESIZED = f"""
machines(1)
begin("disturbed", {LONG}, workers="1:2", checkpoint_every=2)
until(lambda: groups() == [1])
second, = machines(1)
until(lambda: groups()[-1] == 2)
time.sleep(5)
cluster.remove_node(second, allow_graceful=False)
until(lambda: groups()[-1] == 1)
thread.join()
told["groups"] = groups()
"""


@pytest.mark.long
def test_a_drained_machine_costs_no_step_and_a_killed_one_those_since_the_newest_checkpoint(
    rclone: str, digits: str, tmp_path: Path
) -> None:
    """And neither a bit of the weights. The drained one is no failure: only one is allowed."""
    output = on_a_fleet(rclone, DISTURBED)
    assert all(output["channels"])  # what carries a run's events is on no machine that may go
    assert len(output["left"]) == len(output["lost"]) == 1
    assert output["begun"][:2] == [0, *output["left"]] and len(output["begun"]) == 3
    assert output["begun"][2] >= output["kept"] >= output["left"][0] + 4
    recipe = replace(RECIPE, epochs=EPOCHS)
    undisturbed = plain_run(recipe, digits, str(tmp_path), "undisturbed", workers=2).finished
    with s3_environment(rclone):
        assert weights(output["disturbed"]) == weights(undisturbed.run_uri)
        assert_every_image_once_an_epoch(f"{output['disturbed']}/audit", EPOCHS)


@pytest.mark.long
@pytest.mark.timeout(560)
def test_a_run_grows_when_a_machine_comes_and_shrinks_when_it_dies(rclone: str) -> None:
    output = on_a_fleet(rclone, RESIZED, timeout=540)
    assert output["groups"] == [1, 2, 1]
    with s3_environment(rclone):
        assert_every_image_once_an_epoch(f"{output['disturbed']}/audit", LONG)


def weights(run_uri: str) -> str:
    """SHA-256 of a run's last weights."""
    newest = checkpoint.newest(f"{run_uri}/checkpoints")
    assert newest is not None
    return hashlib.sha256(storage.read_bytes(f"{newest.uri}/model.safetensors")).hexdigest()
