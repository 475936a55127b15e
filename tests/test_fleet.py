"""What it costs a run when machines leave with notice, die, or come."""

import hashlib

import pytest
from support.fleet import assert_every_image_once_an_epoch, on_a_fleet
from support.servers import s3_environment

from effnet_ray import storage
from effnet_ray.train import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

EPOCHS = 6
DRAINED = f"""
nodes = machines(2)
begin("disturbed", {EPOCHS}, workers="2", max_failures=0)
until(groups)
machines(1)
subprocess.run([Path(sys.executable).with_name("ray"), "drain-node",
                f"--address={{cluster.address}}", f"--node-id={{nodes[0].node_id}}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                "--deadline-remaining-seconds=60"], check=True, stdout=sys.stderr)
until(lambda: len(groups()) == 2)
cluster.remove_node(nodes[0], allow_graceful=False)
thread.join()
train("undisturbed", {EPOCHS}, lambda event: None, workers="2")
told["begun"] = [event.step for event in heard if isinstance(event, WorkersStarted)]
told["left"] = [event.step for event in heard if isinstance(event, Preempted)]
told["lost"] = [event.reason for event in heard if isinstance(event, WorkerDied)]
"""
KILLED = f"""
from effnet_ray.train.finetune import start_event_channel
nodes = machines(3)
boards = [start_event_channel() for _ in range(8)]
ray.get([board.has_failed.remote() for board in boards])
told["boards"] = [ray._private.state.actors(board._actor_id.hex())["Address"]["NodeID"]
                  == cluster.head_node.node_id for board in boards]
del boards

def newest():
    paths = storage.sizes(f"{{bucket}}/runs/disturbed/checkpoints")
    return max((int(path[5:13]) for path in paths if path.endswith("checkpoint.json")), default=0)

begin("disturbed", {EPOCHS}, workers="2", checkpoint_every=4)
until(lambda: newest() >= 8)
busy = next(node for node in nodes if not ray._private.state.available_resources_per_node()[
    node.node_id].get("CPU"))
told["kept"] = newest()
cluster.remove_node(busy, allow_graceful=False)
thread.join()
train("undisturbed", {EPOCHS}, lambda event: None, workers="2")
told["begun"] = [event.step for event in heard if isinstance(event, WorkersStarted)]
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


def test_a_drained_machine_costs_no_step_no_failure_and_no_bit(rclone: str) -> None:
    told = on_a_fleet(rclone, DRAINED)
    assert told["begun"] == [0, *told["left"]] and len(told["left"]) == 1
    assert not told["lost"]
    with s3_environment(rclone):
        assert weights(told["disturbed"]) == weights(told["undisturbed"])


def test_a_killed_machine_costs_the_steps_since_the_newest_checkpoint(rclone: str) -> None:
    told = on_a_fleet(rclone, KILLED)
    assert all(told["boards"])  # what carries a run's events is on no machine that may go
    assert told["begun"][0] == 0 and len(told["begun"]) == 2
    assert told["begun"][1] >= told["kept"] >= 8
    with s3_environment(rclone):
        assert weights(told["disturbed"]) == weights(told["undisturbed"])
        assert_every_image_once_an_epoch(f"{told['disturbed']}/audit", EPOCHS)


@pytest.mark.long
@pytest.mark.timeout(560)
def test_a_run_grows_when_a_machine_comes_and_shrinks_when_it_dies(rclone: str) -> None:
    told = on_a_fleet(rclone, RESIZED, timeout=540)
    assert told["groups"] == [1, 2, 1]
    with s3_environment(rclone):
        assert_every_image_once_an_epoch(f"{told['disturbed']}/audit", LONG)


def weights(run_uri: str) -> str:
    """SHA-256 of a run's last weights."""
    newest = checkpoint.newest(f"{run_uri}/checkpoints")
    assert newest is not None
    return hashlib.sha256(storage.read_bytes(f"{newest.uri}/model.safetensors")).hexdigest()
