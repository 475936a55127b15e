"""A run without workers says what it waits for."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    NodeInfo,
    NodeUsage,
    PlacementGroupResourceDemand,
    ResourceRequestByCount,
    ResourceUsage,
)

from effnet_ray.runtime.events import WaitingForWorkers
from effnet_ray.runtime.nodes import ACCELERATOR_LABEL
from effnet_ray.runtime.pending import (
    cluster_status,
    report_waiting,
    waiting_reason,
    waiting_trials,
)
from effnet_ray.runtime.session import GLOO, ResourceRequest
from effnet_ray.train.events import Event, WorkerDied, WorkersStarted
from effnet_ray.train.finetune import track_waiting

TWO_GPUS = ResourceRequest(
    2, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1}, backend=GLOO
)
STARTED = WorkersStarted(workers=2, step=0, steps=9, device="cpu")


def usage(**used_of_total: tuple[float, float]) -> list[ResourceUsage]:
    """GPU=(used, total)."""
    return [ResourceUsage(name, total, used) for name, (used, total) in used_of_total.items()]


def launch(kind: str, count: int, state: LaunchRequest.Status, why: str = "") -> LaunchRequest:
    """A machine asked for."""
    return LaunchRequest("", kind, count, state, request_ts_s=0, details=why)


def test_machines_on_their_way_are_named() -> None:
    status = ClusterStatus(
        cluster_resource_usage=usage(CPU=(0, 8), GPU=(0, 1)),
        pending_nodes=[NodeInfo("", "gpu-small", "", "")],
        pending_launches=[launch("gpu-small", 2, LaunchRequest.Status.PENDING)],
    )
    assert waiting_reason(TWO_GPUS, status, 0) == (
        "2 workers with 1 CPU and 1 GPU each: 1 of 1 GPU free; machines being started: 3 gpu-small"
    )


def test_what_the_cloud_refused_is_named_with_its_words() -> None:
    refused = launch("gpu-large", 1, LaunchRequest.Status.FAILED, "InsufficientInstanceCapacity")
    status = ClusterStatus(cluster_resource_usage=usage(CPU=(0, 8)), failed_launches=[refused])
    assert waiting_reason(TWO_GPUS, status, 0).endswith(
        "unavailable: gpu-large (InsufficientInstanceCapacity)"
    )


def test_a_full_cluster_says_that_nothing_is_being_started() -> None:
    full = ClusterStatus(cluster_resource_usage=usage(CPU=(2, 8), GPU=(4, 4)))
    full.resource_demands.placement_group_demand = [
        PlacementGroupResourceDemand([ResourceRequestByCount({"CPU": 1, "GPU": 1}, 2)], "")
    ]
    assert "0 of 4 GPU free; no machine is being started" in waiting_reason(TWO_GPUS, full, 0)


def test_a_cluster_too_small_without_an_autoscaler_says_what_would_help() -> None:
    small = ClusterStatus(cluster_resource_usage=usage(CPU=(0, 8), GPU=(0, 1)))
    assert waiting_reason(TWO_GPUS, small, 0).endswith(
        "is being started: add machines, or lower --workers"
    )


def test_of_certain_gpus_only_theirs_count() -> None:
    def node(accelerator: str, used: float) -> NodeInfo:
        has = NodeUsage(usage(CPU=(0, 8), GPU=(used, 1)), 0)
        return NodeInfo(
            "", "", "", "", resource_usage=has, labels={ACCELERATOR_LABEL: accelerator}
        )

    wanted = replace(TWO_GPUS, accelerators=("L40S",))
    nodes = [node("L4", 0), node("L4", 0), node("L40S", 1), node("L40S", 0)]
    all_of_them = usage(CPU=(0, 32), GPU=(1, 4))
    status = ClusterStatus(active_nodes=nodes, cluster_resource_usage=all_of_them)
    assert waiting_reason(wanted, status, 99).startswith(
        "2 workers with 1 CPU and 1 GPU (L40S) each: 1 of 2 GPU free"
    )
    assert waiting_reason(TWO_GPUS, status, 99) == ""


def test_of_many_runs_the_number_that_have_no_place_is_told() -> None:
    status = ClusterStatus(pending_nodes=[NodeInfo("", "gpu-small", "", "")])
    assert waiting_trials(status) == "" and waiting_trials(None) == ""
    demand = PlacementGroupResourceDemand([ResourceRequestByCount({"GPU": 1}, 1)], "")
    status.resource_demands.placement_group_demand = [demand] * 3
    assert waiting_trials(status) == "the workers of 3 trials: machines being started: 1 gpu-small"


def test_workers_that_have_their_place_and_are_starting_wait_for_nothing() -> None:
    theirs = ClusterStatus(cluster_resource_usage=usage(CPU=(2, 2), GPU=(2, 2)))
    assert waiting_reason(TWO_GPUS, theirs, 30) == ""
    assert waiting_reason(TWO_GPUS, theirs, 60)


def test_a_cluster_with_room_says_nothing() -> None:
    room = ClusterStatus(cluster_resource_usage=usage(CPU=(0, 8), GPU=(0, 2)))
    assert waiting_reason(TWO_GPUS, room, 99) == "" and waiting_reason(TWO_GPUS, None, 99) == ""


@pytest.mark.ray
def test_waiting_is_told_until_workers_start_and_again_when_they_are_lost(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effnet_ray.runtime.pending.GRACE_S", 0)
    monkeypatch.setattr("effnet_ray.runtime.pending.POLL_S", 0.05)
    assert cluster_status() is not None
    received: list[Event] = []
    with report_waiting(TWO_GPUS, received.append) as waiting:
        on_event = track_waiting(waiting, received.append)
        _until(lambda: len(received) == 1)
        on_event(STARTED)
        time.sleep(0.5)
        assert [type(event) for event in received] == [WaitingForWorkers, WorkersStarted]
        on_event(WorkerDied("a machine died"))
        _until(lambda: len(received) == 4)
    assert isinstance(received[-1], WaitingForWorkers) and "0 of 0 GPU free" in received[-1].reason


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    assert true()
