"""Checks files for KubeRay: against its schemas, what its operator refuses, and our rules.

`kuberay_schema.json` is made of KubeRay's custom resource definitions (Apache-2.0) by
`tests/support/kuberay_schema.py`. A RayCronJob has a RayJob's spec and three fields more (KubeRay
1.7 `raycronjob_types.go`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from effnet_ray.preflight import kuberay_pods
from effnet_ray.preflight.findings import Finding, problem

SCHEMA = Path(__file__).with_name("kuberay_schema.json")
GROUP = "ray.io/"
KINDS = ("RayCluster", "RayJob", "RayCronJob")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
SELECTOR = "ray.io/cluster"
"""The label by which a RayJob names its cluster."""
CRON = re.compile(r"@\w+(\s+\w+)?|\S+(\s+\S+){4}")
MAX_ERRORS, MAX_ERROR_CHARS = 5, 200

Config = Mapping[str, Any]


def is_for_kubernetes(documents: Sequence[Any]) -> bool:
    """Whether a file's documents are Kubernetes' objects."""
    return any(isinstance(each, Mapping) and "apiVersion" in each for each in documents)


def check_objects(documents: Sequence[Any]) -> Iterator[Finding]:
    """All findings for a file's objects; those of others than KubeRay are not checked."""
    for document in filter(None, documents):
        yield from _check_object(document if isinstance(document, Mapping) else {})


def _check_object(document: Config) -> Iterator[Finding]:
    kind = str(document.get("kind"))
    if not str(document.get("apiVersion")).startswith(GROUP) or kind not in KINDS:
        reason = f"not checked: {kind}; only {', '.join(KINDS)} of ray.io/v1 are"
        ours = str(document.get("apiVersion")).startswith(GROUP)
        yield Finding(check="kind", ok=not ours or kind == "RayService", found=reason)
        return
    check = f"{kind}'s schema"
    wrong = _schema_errors(kind, document)
    yield problem(check, "; ".join(wrong[:MAX_ERRORS]), "accepted", "correct the fields")
    if wrong:
        return
    spec = document["spec"]
    if kind == "RayCluster":
        yield from kuberay_pods.check_cluster(spec)
        yield from kuberay_pods.check_scaling(spec)
        return
    job = spec["jobTemplate"] if kind == "RayCronJob" else spec
    schedule = spec["schedule"] if kind == "RayCronJob" else ""
    yield problem("job", "; ".join(_job_errors(job, schedule)), "complete", "correct the job")
    if "rayClusterSpec" in job:
        yield from kuberay_pods.check_cluster(job["rayClusterSpec"])


def _schema_errors(kind: str, document: Config) -> list[str]:
    """What Kubernetes would refuse, or silently drop: unknown fields and values of wrong types."""
    errors = [] if document["apiVersion"] == "ray.io/v1" else ["apiVersion: expected ray.io/v1"]
    for error in _validator(kind).iter_errors(document):
        place = ".".join(map(str, error.absolute_path))
        errors.append(": ".join(filter(None, (place, error.message[:MAX_ERROR_CHARS]))))
    return errors


@cache
def _validator(kind: str) -> Draft202012Validator:
    schemas = json.loads(SCHEMA.read_text("utf-8"))
    job = schemas["RayJob"]["properties"]["spec"]
    spec = {
        "type": "object",
        "properties": {
            "schedule": {"type": "string"},
            "timeZone": {"type": "string"},
            "suspend": {"type": "boolean"},
            "jobTemplate": job,
        },
        "required": ["schedule", "jobTemplate"],
        "additionalProperties": False,
    }
    cron_job = schemas["RayJob"] | {"properties": schemas["RayJob"]["properties"] | {"spec": spec}}
    schema = {**schemas, "RayCronJob": cron_job}[kind]
    return Draft202012Validator({**schema, "$defs": schemas["$defs"]})


def _job_errors(job: Config, schedule: str) -> Iterator[str]:
    """What the operator refuses (KubeRay 1.6 `validation.go`), and what is paid for in vain."""
    selector, cluster = job.get("clusterSelector"), job.get("rayClusterSpec")
    mode = job.get("submissionMode", SUBMISSION_MODES[0])
    if schedule and not CRON.fullmatch(schedule.strip()):
        yield f"schedule {schedule!r} is not a cron expression of five fields"
    if not job.get("entrypoint") and mode != "InteractiveMode":
        yield "no entrypoint"
    if bool(selector) == bool(cluster):
        yield "expected either clusterSelector or rayClusterSpec"
    if selector and not selector.get(SELECTOR):
        yield f"clusterSelector has no {SELECTOR}"
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} is not one of {', '.join(SUBMISSION_MODES)}"
    if selector and mode == "SidecarMode":
        yield "SidecarMode needs rayClusterSpec"
    if selector and job.get("suspend"):
        yield "a job on a running cluster cannot be suspended"
    if cluster and not job.get("shutdownAfterJobFinishes") and "deletionStrategy" not in job:
        yield "shutdownAfterJobFinishes is not true: its cluster stays, and is paid for"
