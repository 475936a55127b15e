"""What is asked of a cluster, and what no cluster could give."""

import pytest

from effnet_ray import Placement
from effnet_ray.errors import ClusterError
from effnet_ray.train import session

pytestmark = pytest.mark.ray


def test_gpus_that_the_cluster_lacks_are_refused(cluster: None) -> None:
    says = (
        "2 workers with 1 CPU and 1 GPU each cannot be had: this cluster holds 0 such, and can buy"
    )
    with pytest.raises(ClusterError, match=says):
        session.lease(Placement(workers="2", gpus_per_worker=1), [])


def test_more_workers_than_cores_share_one_machine(cluster: None) -> None:
    asked = session.lease(Placement(workers="6"), [])
    assert asked.workers == 6
    assert 6 * asked.resources_per_worker["CPU"] <= 3
    assert asked.backend == session.GLOO


def test_a_range_of_workers_is_elastic(cluster: None) -> None:
    assert session.lease(Placement(workers="1:3"), []).workers == (1, 3)


def test_gpus_of_another_kind_than_the_clusters_are_refused(cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"1 worker with 1 CPU and 0.5 GPU \(L4 or L40S\) can"):
        wanted = Placement(workers="1", gpus_per_worker=0.5, accelerator="L4,L40S")
        session.lease(wanted, [])
