"""The Kubernetes files fit KubeRay's own schemas and our rules."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kuberay_schema import to_json

from effnet_ray.preflight.cluster_file import check_cluster_file
from effnet_ray.preflight.findings import all_right
from effnet_ray.preflight.kuberay import SCHEMA
from effnet_ray.runtime.nodes import MACHINES_ENV, Machine, launchable

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster/kuberay"
DEFINITIONS = ROOT.parent / "shared/kuberay"
"""KubeRay's custom resource definitions, where somebody has put them."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""For how many seconds Ray drains a node that is told to go; 30 if it is not told."""


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("name", ["cluster", "finetune", "tune", "nightly"])
def test_a_file_is_right_but_for_the_users_own_names(name: str) -> None:
    findings = check_cluster_file(str(FOLDER / f"{name}.yaml"))
    assert all_right(findings) and len(findings) == (14 if name == "cluster" else 3)
    assert {each.check for each in findings if each.do} <= {"placeholders"}


def test_the_packages_schema_is_made_of_kuberays_definitions() -> None:
    if not DEFINITIONS.exists():
        pytest.skip(f"{DEFINITIONS.name} is not there")
    assert SCHEMA.read_text() == to_json(DEFINITIONS)


def test_a_file_may_have_several_objects_and_others_are_not_checked(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: effnet-ray}\n"
    texts = [(FOLDER / f"{name}.yaml").read_text() for name in ("cluster", "finetune")]
    file.write_text("---\n".join([account, *texts]))
    findings = check_cluster_file(str(file))
    assert all_right(findings) and len(findings) == 17
    assert [each.found for each in findings if each.check == "kind"] == [
        "not checked: ServiceAccount; only RayCluster, RayJob, RayCronJob of ray.io/v1 are"
    ]


def pods(content: dict[str, Any]) -> list[dict[str, Any]]:
    spec = content["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_pods_are_drained_for_longer_than_ray_does_by_default() -> None:
    for pod in pods(load("cluster")):
        variables = pod["containers"][0]["env"]
        assert [float(e["value"]) > 30 for e in variables if e["name"] == DRAIN] == [True]


def test_no_container_runs_as_root_or_writes_to_its_image() -> None:
    spec = load("cluster")["spec"]
    for pod in pods(load("cluster")):
        user = pod["securityContext"]
        assert user["runAsNonRoot"] is True and user["seccompProfile"] == {
            "type": "RuntimeDefault"
        }
        assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == image_user()
        assert {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]} == {
            "tmp": {}, "home": {}}  # fmt: skip
        assert len(pod["containers"]) == 1 and not pod.keys() & HOST_FIELDS
        for container in (*pod["containers"], spec["autoscalerOptions"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts == {"tmp": "/tmp", "home": "/home/ray"}


HOST_FIELDS = {"hostNetwork", "hostPID", "hostIPC", "initContainers"}


def image_user() -> int:
    """The number of the user that the image makes and runs as."""
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    made = re.search(r"useradd --create-home --uid (\d+) ray\b", dockerfile)
    last = re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)[-1:]
    assert made and last == [made[1]]
    return int(made[1])


def test_each_group_of_gpu_pods_has_a_gpu_of_its_own() -> None:
    gpus = [pod for pod in pods(load("cluster")) if "nvidia.com/gpu" in str(pod["containers"])]
    assert len(gpus) == len({pod["nodeSelector"]["nvidia.com/gpu.product"] for pod in gpus}) == 2


def test_jobs_are_told_of_the_machines_that_the_autoscaler_may_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = load("cluster")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    output = next(each["value"] for each in head["env"] if each["name"] == MACHINES_ENV)
    monkeypatch.setenv(MACHINES_ENV, output)
    assert launchable() == [
        Machine(group["groupName"], resources(group), group.get("labels", {}),
                group["maxReplicas"])
        for group in spec["workerGroupSpecs"]
    ]  # fmt: skip


def resources(group: dict[str, Any]) -> dict[str, float]:
    """What Ray makes of a pod's requests."""
    requested = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    names = {"cpu": "CPU", "nvidia.com/gpu": "GPU"}
    return {names[name]: float(amount) for name, amount in requested.items() if name in names}


@pytest.mark.parametrize("name", ["finetune", "tune", "nightly"])
def test_jobs_run_what_the_image_holds_on_our_cluster(name: str) -> None:
    spec, dockerfile = load(name)["spec"], (ROOT / "cluster/Dockerfile").read_text()
    spec = spec.get("jobTemplate", spec)
    assert spec["clusterSelector"] == {"ray.io/cluster": load("cluster")["metadata"]["name"]}
    script = re.search(r"python /app/(jobs/\w+\.py) ", spec["entrypoint"])
    assert script and (ROOT / script[1]).exists()
    assert "WORKDIR /app" in dockerfile and "COPY jobs/ jobs/" in dockerfile


def test_the_versions_are_the_locks() -> None:
    assert load("cluster")["spec"]["rayVersion"] == version("ray")
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    assert " g++ " in dockerfile  # torch.compile
    commands = dockerfile.replace("\\\n", "")
    assert re.findall(r"pip install .*-r (\S+)", commands) == ["requirements.lock"]
    assert re.search(r"uv pip install --system --no-cache --no-deps .* \.$", commands, re.M)
    python = re.search(r"FROM python:(\d+\.\d+)", dockerfile)
    assert python and python[1] in (ROOT / "cluster/aws.yaml").read_text()
