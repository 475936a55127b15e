"""Decode tasks go to machines by their cores: the rule for any cluster, and Ray obeying it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from effnet_ray.data.decode_machines import (
    DecodeMachine,
    TaskDealer,
    cluster_shares,
    worker_shares,
)

cores = st.integers(0, 192)
any_machines = st.lists(cores, min_size=1, max_size=12).map(
    lambda sizes: [DecodeMachine(f"n{i}", size, i == 0) for i, size in enumerate(sizes)]
)


@given(any_machines)
def test_the_head_decodes_only_where_nothing_else_can(machines: list[DecodeMachine]) -> None:
    shares = cluster_shares(machines)
    others = {m.node_id: m.cores for m in machines[1:] if m.cores}
    assert shares == (others or {m.node_id: m.cores for m in machines if m.cores})


@given(any_machines, st.data())
def test_workers_together_use_every_free_machine_once(
    machines: list[DecodeMachine], data: st.DataObject
) -> None:
    """Each its own part of its machine, and none the machine of another."""
    places = [data.draw(st.sampled_from(machines)).node_id for _ in range(3)]
    totals = Counter[str]()
    for own in places:
        shares = worker_shares(machines, own, 1.5, workers=3, workers_machines=set(places))
        assert next(iter(shares.items())) == (own, 1.5)
        totals.update(shares)
    for machine in machines:
        if machine.node_id in places:
            assert totals[machine.node_id] == 1.5 * places.count(machine.node_id)
        else:
            free = 0 if machine.is_head else machine.cores
            assert totals[machine.node_id] == pytest.approx(free)


@given(st.dictionaries(st.text(max_size=3), st.floats(0.1, 200), min_size=1, max_size=8))
def test_tasks_are_dealt_by_share(shares: dict[str, float]) -> None:
    """After any number of tasks each machine is within one task per machine of its share."""
    dealer, dealt, total = TaskDealer(lambda: shares), Counter[str | None](), sum(shares.values())
    for count in range(1, 200):
        dealt[dealer.next()] += 1
        for node, share in shares.items():
            assert abs(dealt[node] - count * share / total) < len(shares)


def test_the_own_machine_is_first() -> None:
    assert TaskDealer(lambda: {"own": 2.0, "other": 2.0}).next() == "own"


def test_machines_that_join_and_leave_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"a": 1.0, "b": 1.0}
    monkeypatch.setattr("effnet_ray.data.decode_machines.LOOK_EVERY_S", 0.0)
    dealer = TaskDealer(lambda: dict(now))
    assert {dealer.next() for _ in range(4)} == {"a", "b"}
    del now["b"]
    now["c"] = 2.0
    after = Counter(dealer.next() for _ in range(30))
    assert abs(after["c"] - 20) <= 2 and after.keys() == {"a", "c"}


def test_without_cores_anywhere_ray_decides() -> None:
    assert TaskDealer(dict).ray_options() == {}
    assert cluster_shares([DecodeMachine("head", 0, is_head=True)]) == {}


FLEET = """
import json, sys, time
import numpy as np
import ray, ray.data
from collections import Counter
from ray.cluster_utils import Cluster
from effnet_ray.data.decode_machines import TaskDealer, cluster_shares, map_on_machines
from effnet_ray.data.ray_executor import data_context

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
sizes = [2, 4, 8, 16]
nodes = [cluster.add_node(num_cpus=size) for size in sizes]
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def where(block):
    time.sleep(0.02)
    return {"node": np.asarray([ray.get_runtime_context().get_node_id()])}

def run(tasks):
    with ray.data.DataContext.current(data_context(64)):
        items = ray.data.from_items([{"n": n} for n in range(tasks)], override_num_blocks=tasks)
        dealt = map_on_machines(items, where, tasks=8, dealer=TaskDealer(cluster_shares))
        for batch in dealt.iter_batches(batch_size=None, batch_format="numpy"):
            yield batch["node"][0]

def counts(found):
    names = {node.node_id: size for node, size in zip(nodes, sizes)} | {later.node_id: 30}
    return {str(names.get(node, "head")): count for node, count in Counter(found).items()}

class later:
    node_id = ""

told = {}
told["five machines"] = counts(run(120))
running, found = run(600), []
for node in running:
    found.append(node)
    if len(found) == 100:
        later = cluster.add_node(num_cpus=30)
    if len(found) == 200:
        cluster.remove_node(nodes[3], allow_graceful=False)
told["joined and left"] = counts(found[-150:]) | {"all": len(found)}
print(json.dumps(told))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
def test_a_fleet_of_five_machines_decodes_by_cores() -> None:
    """The head does nothing; one machine joins, another is killed, and no task is lost."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FLEET], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    first = output["five machines"]
    assert sum(first.values()) == 120 and "head" not in first
    for size in (2, 4, 8, 16):
        assert abs(first[str(size)] - 120 * size / 30) <= 0.1 * 120
    later = output["joined and left"]
    assert later["all"] == 600 and "head" not in later and "16" not in later
    assert later["30"] > later["8"] > later["2"]
