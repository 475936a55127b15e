"""The Kubernetes files fit KubeRay's own schemas and our rules."""

import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from effnet_ray.runtime.nodes import MACHINES_ENV, Machine, launchable

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster/kuberay"
SCHEMAS = ROOT.parent / "shared/kuberay"
"""KubeRay's custom resource definitions, where somebody has put them."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""For how many seconds Ray drains a node that is told to go; 30 if it is not told."""

FILES = ("cluster", "finetune", "tune")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


@cache
def validator(kind: str) -> Draft202012Validator:
    """Of a kind's newest version, with every object closed."""
    file = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"{file.name} is not there")
    definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    newest = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return Draft202012Validator(closed(newest["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """The schema as JSON Schema knows it: no field that is not listed."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: value if key in ("enum", "required", "default") else closed(value)
             for key, value in schema.items() if not key.startswith("x-kubernetes")}  # fmt: skip
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and isinstance(schema["properties"], dict) and not open_:
        found["additionalProperties"] = False
    return found


def errors(content: dict[str, Any]) -> list[str]:
    """What the schema refuses. `metadata` is Kubernetes' own; its schema is not in there."""
    without = {key: value for key, value in content.items() if key != "metadata"}
    return [error.message for error in validator(content["kind"]).iter_errors(without)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_only_fields_that_kuberay_knows(name: str) -> None:
    assert errors(load(name)) == []


def test_a_mistyped_field_would_be_noticed() -> None:
    content = load("cluster")
    content["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    content["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    content["spec"]["autoscalerOptions"]["version"] = "v3"
    assert len(errors(content)) == 3


def pods(content: dict[str, Any]) -> list[dict[str, Any]]:
    spec = content["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_tokens_are_on_and_the_autoscaler_is_the_second() -> None:
    spec = load("cluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])


def test_pods_outlive_the_drain_and_hold_no_secrets() -> None:
    for pod in pods(load("cluster")):
        drain_s = next(e["value"] for e in pod["containers"][0]["env"] if e["name"] == DRAIN)
        assert pod["terminationGracePeriodSeconds"] > float(drain_s) > 30
        assert pod["serviceAccountName"] == "effnet-ray"
        for container in pod["containers"]:
            assert not re.search("KEY|SECRET|TOKEN", str([e["name"] for e in container["env"]]))


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


def test_gpu_pods_tolerate_the_gpus_taint() -> None:
    gpus = [pod for pod in pods(load("cluster")) if "nvidia.com/gpu" in str(pod["containers"])]
    assert len(gpus) == 2
    assert all(pod["tolerations"][0]["key"] == "nvidia.com/gpu" for pod in gpus)
    assert len({pod["nodeSelector"]["nvidia.com/gpu.product"] for pod in gpus}) == 2


def test_jobs_are_told_of_the_machines_that_the_autoscaler_may_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = load("cluster")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    told = next(each["value"] for each in head["env"] if each["name"] == MACHINES_ENV)
    monkeypatch.setenv(MACHINES_ENV, told)
    assert launchable() == [
        Machine(group["groupName"], resources(group), group.get("labels", {}),
                group["maxReplicas"])
        for group in spec["workerGroupSpecs"]
    ]  # fmt: skip


def resources(group: dict[str, Any]) -> dict[str, float]:
    """What Ray makes of a pod's requests."""
    asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    names = {"cpu": "CPU", "nvidia.com/gpu": "GPU"}
    return {names[name]: float(amount) for name, amount in asked.items() if name in names}


def test_the_nightly_jobs_template_is_a_job_that_kuberay_knows() -> None:
    """RayCronJob has three more fields (KubeRay 1.7 `raycronjob_types.go`)."""
    spec = load("nightly")["spec"]
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": spec["jobTemplate"]}
    assert errors(job) == [] and spec.keys() <= {"schedule", "timeZone", "suspend", "jobTemplate"}
    assert re.fullmatch(r"(\d+|\*)( (\d+|\*)){4}", spec["schedule"])


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
