"""Checks a RayCluster that KubeRay's schema accepts: what its operator refuses, and our rules."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from effnet_ray.errors import ClusterError
from effnet_ray.preflight.findings import Finding, problem
from effnet_ray.runtime.nodes import MACHINES_ENV, Machine, parse_machines

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_S = 30.0
"""For how many seconds Ray drains a node that is told to go, by default."""
GRACE_S = 30
"""Kubernetes' default of terminationGracePeriodSeconds."""
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""Labels of spot machines: GKE, EKS, Karpenter, AKS."""
GPU_TAINT = "nvidia.com/gpu"
OPEN_SERVICES = ("NodePort", "LoadBalancer")
QUANTITY = re.compile(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([numkMGTPE]|[KMGTPE]i)?")
SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0} | {
    unit + i: base**power
    for power, unit in enumerate("KMGTPE", start=1)
    for i, base in (("", 1000.0), ("i", 1024.0))
}
SCALE["k"] = SCALE.pop("K")

Config = Mapping[str, Any]


def check_cluster(spec: Config) -> Iterator[Finding]:
    """Findings for the spec of a RayCluster, also of one that ends with its job."""
    groups = spec.get("workerGroupSpecs") or []
    named = [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in groups)]
    yield _authentication(spec)
    yield _versions(spec, [group for _, group in named])
    yield _head(spec["headGroupSpec"])
    yield _network(spec["headGroupSpec"], named)
    for name, group in named:
        yield problem(f"pods {name}", "; ".join(_pod_errors(group)), "right", "correct the pods")
        yield from _toleration(name, group)
    if groups:
        yield _machines(spec["headGroupSpec"], groups)


def check_scaling(spec: Config) -> Iterator[Finding]:
    """Findings for a cluster that stays, and should cost little while it has no job."""
    yield _autoscaling(spec)
    yield _workers(spec.get("workerGroupSpecs") or [])


def _authentication(spec: Config) -> Finding:
    mode = spec.get("authOptions", {}).get("mode")
    variables = [env for group in _groups(spec) for env in _environment(group).items()]
    off = mode != "token" or any(
        name == "RAY_AUTH_MODE" and value != "token" for name, value in variables
    )
    wrong = "off" if off else ""
    return problem("token authentication", wrong, "on", "set authOptions.mode to token")


def _autoscaling(spec: Config) -> Finding:
    wrong = ""
    if not spec.get("enableInTreeAutoscaling"):
        wrong = "off"
    elif spec.get("autoscalerOptions", {}).get("version") != "v2":
        wrong = "not the second version"
    return problem(
        "autoscaling",
        wrong,
        "on",
        "set enableInTreeAutoscaling to true and autoscalerOptions.version to v2",
    )


def _workers(groups: Sequence[Config]) -> Finding:
    """Number of pods."""
    names = [group["groupName"] for group in groups]
    wrong = [f"two groups are named {name}" for name in sorted({*names}) if names.count(name) > 1]
    for group in groups:
        least, most = group["minReplicas"], group["maxReplicas"]
        if not least <= group.get("replicas", least) <= most:
            wrong.append(f"replicas of {group['groupName']} are not {least} to {most}")
        if group.get("suspend"):
            wrong.append(f"{group['groupName']} is suspended, which the autoscaler does not allow")
    least = sum(group["minReplicas"] for group in groups)
    most = sum(group["maxReplicas"] for group in groups)
    numbers = f"{least} to {most} of {len(groups)} groups"
    if groups and (least or not most):
        wrong.append(numbers)
    return problem(
        "workers",
        "; ".join(wrong),
        numbers,
        "set minReplicas to 0, so that an idle cluster costs only its head, and maxReplicas to "
        "the pods that it may have",
    )


def _versions(spec: Config, groups: Sequence[Config]) -> Finding:
    """Ray's version, and that all pods have one image."""
    ray, wrong = spec.get("rayVersion"), []
    if ray != version("ray"):
        wrong.append(f"rayVersion is {ray}, this environment has {version('ray')}")
    images = sorted({str(_container(group).get("image")) for group in groups})
    if len(images) > 1:
        wrong.append(f"the pods have {len(images)} images: {', '.join(images)}")
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest") and "@" not in image:
            wrong.append(f"image {image} has no fixed version")
    return problem(
        "versions",
        "; ".join(wrong),
        f"Ray {ray}, {images[0]}",
        "give all pods one image with the versions of requirements.lock",
    )


def _head(head: Config) -> Finding:
    selector = head["template"]["spec"].get("nodeSelector") or {}
    spot = [name for name, value in SPOT.items() if selector.get(name) == value]
    return problem(
        "head",
        "spot" if spot else "",
        "on demand",
        "the head runs every driver: use an on-demand machine",
    )


def _network(head: Config, groups: Sequence[tuple[str, Config]]) -> Finding:
    """What can be reached from outside the Kubernetes cluster."""
    service = ((head.get("headService") or {}).get("spec") or {}).get("type")
    wrong = [
        f"the head's service is a {kind}"
        for kind in (head.get("serviceType"), service)
        if kind in OPEN_SERVICES
    ]
    if head.get("enableIngress"):
        wrong.append("the head has an ingress")
    for name, group in groups:
        pod = group["template"]["spec"]
        ports = [port for container in pod["containers"] for port in container.get("ports") or []]
        if pod.get("hostNetwork") or any(port.get("hostPort") for port in ports):
            wrong.append(f"pods {name} use their machine's network")
    return problem(
        "network",
        "; ".join(wrong),
        "within the Kubernetes cluster",
        "remove it, and reach the dashboard with kubectl port-forward",
    )


def _pod_errors(group: Config) -> Iterator[str]:
    """What is wrong with a group's pods."""
    pod, container = group["template"]["spec"], _container(group)
    grace = pod.get("terminationGracePeriodSeconds", GRACE_S)
    drain = _environment(group).get(DRAIN, str(DRAIN_S))
    if _amount(drain) >= grace:
        yield f"killed after {grace} s, but drained for {drain} s by {DRAIN}"
    if not pod.get("serviceAccountName"):
        yield "no serviceAccountName: the pod has no access to the bucket"
    if any((each.get("securityContext") or {}).get("privileged") for each in pod["containers"]):
        yield "a container is privileged"
    if pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy is not Never, which the autoscaler needs"
    if "labels" in group.get("rayStartParams", {}):
        yield "rayStartParams has labels: put them into the group's labels"
    yield from _resource_errors(container)


def _toleration(name: str, group: Config) -> Iterator[Finding]:
    """A remark: whether GPUs' machines are tainted depends on the Kubernetes cluster."""
    tolerations = group["template"]["spec"].get("tolerations") or []
    tolerated = any(each.get("key", GPU_TAINT) == GPU_TAINT for each in tolerations)
    limits = (_container(group).get("resources") or {}).get("limits") or {}
    if GPU_TAINT in limits and not tolerated:
        yield Finding(
            check=f"tolerations of {name}",
            ok=True,
            found=f"none of {GPU_TAINT}",
            do="add one if your GPU machines have this taint",
        )


def _resource_errors(container: Config) -> Iterator[str]:
    """What Kubernetes refuses of a container's resources, and what lets Ray choose them."""
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in ("cpu", "memory"):
        if name not in requests and name not in limits:
            yield f"no request of {name}"
    for name in requests.keys() & limits.keys():
        asked, most = _amount(requests[name]), _amount(limits[name])
        if asked > most or ("/" in name and asked != most):
            yield f"requests {requests[name]} of {name}, its limit is {limits[name]}"
    for name in sorted(requests.keys() - limits.keys()):
        if "/" in name:
            yield f"{name} has no limit"


def _machines(head: Config, groups: Sequence[Config]) -> Finding:
    """What jobs learn of the groups."""
    text = _environment(head).get(MACHINES_ENV)
    if not text:
        return Finding(
            check=MACHINES_ENV,
            ok=True,
            found="not set",
            do="list the workerGroupSpecs, so that jobs know which pods can be started",
        )
    try:
        listed = {each.name: each for each in parse_machines(text)}
    except ClusterError as error:
        return Finding(check=MACHINES_ENV, ok=False, found=str(error))
    wrong = [
        f"{name} is not as in workerGroupSpecs"
        for name, machine in {group["groupName"]: _machine(group) for group in groups}.items()
        if listed.pop(name, None) != machine
    ]
    wrong += [f"{name} is not in workerGroupSpecs" for name in listed]
    return problem(
        MACHINES_ENV,
        "; ".join(wrong),
        "as in workerGroupSpecs",
        "give each group's resources, labels and max_workers",
    )


def _machine(group: Config) -> Machine:
    resources, labels = _ray_resources(group), group.get("labels") or {}
    return Machine(group["groupName"], resources, labels, group["maxReplicas"])


def _ray_resources(group: Config) -> dict[str, float]:
    """CPU and GPU of a pod as Ray counts them: by its start parameters, limits or requests."""
    resources = _container(group).get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    given = {**(group.get("rayStartParams") or {}), **(group.get("resources") or {})}
    counts = dict[str, float]()
    for name, amount in amounts.items():
        if name == "cpu":
            counts["CPU"] = math.ceil(_amount(amount))
        elif name.endswith("gpu"):
            counts["GPU"] = math.ceil(_amount(amount))
    names = {"num-cpus": "CPU", "CPU": "CPU", "num-gpus": "GPU", "GPU": "GPU"}
    return counts | {names[key]: _amount(given[key]) for key in names if key in given}


def _amount(quantity: str | int) -> float:
    """A Kubernetes quantity such as 500m or 28Gi; 0 if it is none."""
    match = QUANTITY.fullmatch(str(quantity))
    if not match:
        return 0.0
    number, suffix = match.groups()
    try:
        amount = float(number) * SCALE[suffix or ""]
    except ValueError:
        return 0.0
    return amount if math.isfinite(amount) else 0.0


def _groups(spec: Config) -> list[Config]:
    return [spec["headGroupSpec"], *(spec.get("workerGroupSpecs") or [])]


def _container(group: Config) -> Config:
    """The container that runs Ray: KubeRay starts it in the first one."""
    container: Config = next(iter(group["template"]["spec"]["containers"]), {})
    return container


def _environment(group: Config) -> dict[str, str]:
    """The variables that have a literal value."""
    variables = _container(group).get("env") or []
    return {each["name"]: str(each["value"]) for each in variables if "value" in each}
