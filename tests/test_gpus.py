"""GPUs that Ray sees are used unless told otherwise, in the precision that they compute fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from effnet_ray.errors import ClusterError, RecipeError
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.runtime import gpus
from effnet_ray.runtime.nodes import Machine

ROOT = Path(__file__).parents[1]


def refuse(_: Placement) -> None:
    raise AssertionError("Ray is not needed")


@pytest.mark.quick
def test_without_a_gpu_here_ray_is_not_asked() -> None:
    assert gpus.with_default_gpus(Placement(), refuse).gpus_per_worker == 0
    assert gpus.with_default_gpus(Placement(gpus_per_worker=0), refuse).gpus_per_worker == 0


@pytest.mark.quick
def test_a_worker_uses_at_most_one_gpu() -> None:
    with pytest.raises(RecipeError, match=r"gpus_per_worker is 2: expected .* use more --workers"):
        Placement(gpus_per_worker=2)


@pytest.mark.quick
def test_a_share_lies_on_one_gpu() -> None:
    machine = Machine("four GPUs", {"CPU": 64, "GPU": 4})
    fitting = {share: machine.max_workers({"GPU": share}) for share in (1, 0.66, 0.5, 0.3333)}
    assert fitting == {1: 4, 0.66: 4, 0.5: 8, 0.3333: 12}


@pytest.mark.quick
def test_accelerators_that_there_are_not_are_named() -> None:
    with pytest.raises(ClusterError, match="Ray has no GPU of type L4, and its autoscaler"):
        gpus.with_default_gpus(Placement(accelerator="L4"), refuse)


@pytest.mark.quick
def test_a_type_that_this_torch_has_no_code_for_is_named() -> None:
    assert "V100 has compute capability 7.0, but torch 2." in gpus.unsupported_reason("V100")
    assert [gpus.unsupported_reason(kind) for kind in ("T4", "H200", "", "new")] == [""] * 4


@pytest.mark.quick
def test_old_gpus_compute_in_float16_and_others_in_bfloat16() -> None:
    spec = Recipe().variant_spec.input_spec()
    chosen = [
        Recipe().resolved(spec, workers=1, on_gpu=on_gpu, bfloat16=bfloat16).precision
        for on_gpu, bfloat16 in ((True, True), (True, False), (False, True))
    ]
    assert chosen == ["bfloat16", "float16", "float32"]


FAKE_GPUS = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from effnet_ray.errors import ClusterError
from effnet_ray.placement import Placement
from effnet_ray.runtime import gpus, nodes, session
from ray.util.placement_group import placement_group, remove_placement_group

head = {"num_cpus": 1, "include_dashboard": False}
machines = Cluster(initialize_head=True, head_node_args=head)
for kind, count in (("L4", 2), ("T4", 1)):
    machines.add_node(num_cpus=4, num_gpus=count, labels={nodes.ACCELERATOR_LABEL: kind})
ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
placements = {
    "two": Placement(), "three": Placement(workers="3"), "four": Placement(workers="4"),
    "seven": Placement(workers="7"),
    "T4": Placement(accelerator="T4"), "CPUs": Placement(gpus_per_worker=0),
    "told": Placement(gpus_per_worker=0.5, accelerator="L4"),
}
found = {}
for name, placement in placements.items():
    placement = gpus.with_default_gpus(placement, lambda _: None)
    request = session.request_resources(placement, [])
    group = placement_group([request.resources_per_worker] * placement.worker_range[0])
    ray.get(group.ready(), timeout=20)
    remove_placement_group(group)
    found[name] = [placement.gpus_per_worker, gpus.have_bfloat16(placement), request.backend]
with_gpu = next(m for m in nodes.alive_nodes() if m.resources.get("GPU"))
try:
    found["convolution"] = gpus.try_convolution(with_gpu, 1)
except ClusterError as error:
    found["convolution"] = str(error)
print(json.dumps(found))
ray.shutdown()
machines.shutdown()
"""


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_on_a_cluster_with_gpus_every_worker_gets_one_or_its_share() -> None:
    """And Ray can place them all. The GPUs are only counted, so that the convolution fails."""
    done = subprocess.run(
        [sys.executable, "-c", FAKE_GPUS], capture_output=True, text=True, timeout=110, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "NVIDIA driver" in result.pop("convolution")
    assert result == {
        "two": [1, False, "cpu:gloo,cuda:nccl"],
        "three": [1, False, "cpu:gloo,cuda:nccl"],
        "four": [0.5, False, "gloo"],
        "seven": [0.3333, False, "gloo"],
        "T4": [0.5, False, "gloo"],
        "CPUs": [0, True, "gloo"],
        "told": [0.5, True, "gloo"],
    }
