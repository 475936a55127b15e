"""Where trials run: every device is busy, and no trial waits for what it holds."""

import pytest
from hypothesis import given, strategies as st

from effnet_ray import Placement
from effnet_ray.sweep.resources import MAX_DEVICES, Allocation, Hardware, allocate

WAVES = [{"b0": 8}, {"b1": 4}, {"b7": 1}, {"b7": 1, "b6": 1, "b5": 1}]


def shares(
    gpus: float, cpus: float = 64, workers: str | None = None, batch: int = 64, **more: float
) -> Allocation:
    placement = Placement(gpus_per_worker=1 if gpus else 0, **more)  # type: ignore[arg-type]
    return allocate(placement, workers, WAVES, batch, Hardware(gpus, cpus))


def workers(found: Allocation) -> dict[str, str]:
    return {name: placement.workers for name, placement in found.placements.items()}


def test_a_trial_takes_one_gpu_and_more_where_gpus_would_idle() -> None:
    assert workers(shares(8)) == {"b0": "1", "b1": "2", "b7": "2", "b6": "2", "b5": "2"}
    assert shares(8).concurrent == 8
    assert set(workers(shares(1)).values()) == {"1"}
    assert shares(1).concurrent == 1


def test_a_trial_never_takes_more_than_a_machine_by_itself() -> None:
    assert max(int(n) for n in workers(shares(1024)).values()) == MAX_DEVICES


def test_on_cpus_a_trial_takes_one_core_each() -> None:
    found = shares(0, cpus=2)
    assert set(workers(found).values()) == {"1"}
    assert (found.concurrent, found.placements["b0"].cores) == (2, 1)


def test_workers_that_a_person_gave_stay() -> None:
    found = shares(8, workers="4")
    assert set(workers(found).values()) == {"4"}
    assert found.concurrent == 2
    assert shares(8, workers="2:4").concurrent == 4
    assert shares(0, cpus=2, workers="4").concurrent == 1


@given(st.integers(0, 64), st.integers(1, 512), st.integers(1, 300))
def test_side_by_side_trials_fit_and_cores_are_not_promised_twice(
    gpus: int, cpus: int, batch: int
) -> None:
    found = shares(gpus, cpus, batch=batch)
    devices = gpus or cpus
    fewest = min(int(n) for n in workers(found).values())
    assert found.concurrent * fewest <= max(1, devices)
    for placement in found.placements.values():
        assert batch % int(placement.workers) == 0
        assert placement.cores is not None
        assert placement.cores == 1 or placement.cores * fewest * found.concurrent <= cpus


def test_cores_that_a_person_gave_stay() -> None:
    assert shares(8, cores=3).placements["b7"].cores == 3


def test_half_gpus_count_twice() -> None:
    found = allocate(Placement(gpus_per_worker=0.5), None, [{"b0": 9}], 64, Hardware(1, 8))
    assert found.concurrent == 2
    assert pytest.approx(found.placements["b0"].cores) == 4
