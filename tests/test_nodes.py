"""The capacity of a cluster, now and after it has grown."""

import math

import pytest
import ray

from effnet_ray.errors import ClusterError
from effnet_ray.runtime.nodes import (
    ACCELERATOR_LABEL,
    MACHINES_ENV,
    Machine,
    alive_nodes,
    compute_capacity,
    launchable,
)

WORKER = {"CPU": 1.0, "GPU": 1.0}
L4 = Machine("small", {"CPU": 8, "GPU": 1}, {ACCELERATOR_LABEL: "L4"}, 8)
L40S = Machine("large", {"CPU": 8, "GPU": 4}, {ACCELERATOR_LABEL: "L40S"}, 2)
HEAD = Machine("head", {"CPU": 0})


@pytest.mark.parametrize(
    ("worker", "accelerators", "grown", "offers"),
    [
        (WORKER, (), 16, ("small", "large")),
        (WORKER, ("L40S",), 8, ("large",)),
        (WORKER, ("L40S", "L4"), 16, ("small", "large")),
        (WORKER, ("A100",), 0, ()),
        ({"CPU": 1, "GPU": 2}, (), 4, ("large",)),  # a worker does not span machines
        ({"CPU": 1, "GPU": 8}, (), 0, ()),
        ({"CPU": 1, "GPU": 0.25}, (), 48, ("small", "large")),  # eight CPUs bound the large ones
        ({"CPU": 1}, (), 80, ("small", "large")),
    ],
)
def test_a_grown_cluster_holds_what_its_machines_hold_one_by_one(
    worker: dict[str, float], accelerators: tuple[str, ...], grown: int, offers: tuple[str, ...]
) -> None:
    result = compute_capacity([HEAD], [L4, L40S], worker, accelerators)
    assert (result.now, result.maximum) == (0, grown)
    assert tuple(machine.name for machine in result.machine_types) == offers


def test_what_nobody_knows_is_no_bound() -> None:
    assert compute_capacity([HEAD], None, WORKER, ()).maximum == math.inf
    unsaid = Machine("c7i", {}, {}, 2)  # the cloud knows what it has
    assert compute_capacity([HEAD], [unsaid], WORKER, ()).maximum == math.inf
    assert compute_capacity([HEAD], [unsaid], WORKER, ("L4",)).maximum == 0


def test_machines_that_are_here_count_without_an_autoscaler() -> None:
    result = compute_capacity([HEAD, Machine("a", {"CPU": 4})], [], {"CPU": 1}, ())
    assert (result.now, result.maximum, result.machine_types) == (4, 4, ())


@pytest.mark.parametrize("told", ["[1, 2]", "cpu: 3", "a: [", "text"])
def test_what_is_told_and_names_no_machines_is_refused(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MACHINES_ENV, told)
    with pytest.raises(ClusterError, match=MACHINES_ENV):
        launchable()


@pytest.mark.ray
def test_a_cluster_without_an_autoscaler_is_known_to_buy_nothing(cluster: None) -> None:
    assert launchable() == []
    assert [machine.node_id for machine in alive_nodes()] == [ray.nodes()[0]["NodeID"]]
    assert alive_nodes()[0].resources["CPU"] == ray.cluster_resources()["CPU"]
