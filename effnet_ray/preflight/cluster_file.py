"""Checks a file for Ray's cluster launcher against Ray's schema, the cloud's API and our rules.

`kuberay` checks files for KubeRay.

Makes no request to the cloud. `ray up` checks only its own fields: a mistyped field of a machine
fails when the first one is launched, and insecure defaults are never reported.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from effnet_ray import safe_yaml
from effnet_ray.errors import ClusterError, one_line
from effnet_ray.preflight import cluster_security, compute_engine, ec2, kuberay
from effnet_ray.preflight.findings import Finding, problem

PLACEHOLDER = re.compile(r"\bYOUR-[A-Z-]+")

Config = Mapping[str, Any]


class Cloud(Protocol):
    """What a module knows of one cloud's machines; a `node` is a `node_config`."""

    def location(self, provider: Config) -> str:
        """Where the machines are."""

    def location_error(self, provider: Config) -> str:
        """What is wrong with the file's `provider`; empty if nothing is."""

    def machine(self, node: Config) -> str:
        """The type of the machine."""

    def is_spot(self, node: Config) -> bool:
        """Whether the cloud may take the machine away."""

    def api_errors(self, node: Config) -> list[str]:
        """What the cloud's API would reject."""

    def rule_violations(self, node: Config, provider: Config) -> Iterator[str]:
        """What the API would accept, and our rules do not."""


CLOUDS: Mapping[str, Cloud] = {"aws": ec2, "gcp": compute_engine}
"""Ray's name of a provider → its module."""


def check_cluster_file(path: str) -> list[Finding]:
    """All findings for the file. Raises ClusterError if it cannot be read as YAML."""
    text = _read(path)
    try:
        documents = safe_yaml.parse(text)
    except ValueError as error:
        raise ClusterError(f"{path} cannot be read as YAML ({error}): correct it") from None
    if kuberay.is_for_kubernetes(documents):
        found = kuberay.check_objects(documents)
        return [cluster_security.check_secrets(documents, text), *_placeholders(text), *found]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ClusterError(f"{path} is not a cluster file: expected a YAML mapping")
    return _check_launcher_file(documents[0], text)


def _read(path: str) -> str:
    """The file's text. Raises ClusterError."""
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            return file.read(safe_yaml.MAX_CHARS + 1)
    except FileNotFoundError:
        raise ClusterError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"{path} cannot be read as YAML ({one_line(error)}): correct it"
        ) from None


def _check_launcher_file(config: Config, text: str) -> list[Finding]:
    """The findings for a file for `ray up`."""
    accepted, filled = _check_schema(config)
    findings = [accepted, cluster_security.check_secrets(config, text), *_placeholders(text)]
    if accepted.ok:
        findings += [*cluster_security.check_security(filled), _autoscaling(filled)]
        findings += [_workers(filled), *_machines(filled)]
    return findings


def _check_schema(config: Config) -> tuple[Finding, Config]:
    """Ray's own schema, and the file with Ray's defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # takes a second

    check = "Ray's schema"
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        # Ray prints hints that do not concern the file.
        with redirect_stdout(None), redirect_stderr(None):
            filled: Config = prepare_config(copy.deepcopy(dict(config)))
            validate_config(filled)
    except Exception as error:  # jsonschema's, or any error in Ray's code
        mistake = _mistake(error)
    else:
        return problem(check, "", "accepted", ""), filled
    return problem(check, mistake, "", "correct the field"), {}


def _mistake(error: Exception) -> str:
    """What is wrong with a file, by the error of Ray's check."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, AttributeError | TypeError):
        return f"a field has a value of another type than Ray expects ({error})"
    field = ".".join(map(str, getattr(error, "absolute_path", ())))
    parts = filter(None, [field, getattr(error, "message", str(error))])
    return ": ".join(parts) or type(error).__name__


def _placeholders(text: str) -> Iterator[Finding]:
    lines = dict[str, list[int]]()
    for number, line in enumerate(text.splitlines(), start=1):
        for name in PLACEHOLDER.findall(re.sub(r"(^|\s)#.*", "", line)):
            lines.setdefault(name, []).append(number)
    places = [
        f"{name} on line {', '.join(map(str, dict.fromkeys(numbers)))}"
        for name, numbers in lines.items()
    ]
    if places:
        yield Finding(
            check="placeholders", ok=True, found="; ".join(places), do="enter your own values"
        )


def _autoscaling(config: Config) -> Finding:
    head = " ".join(config["head_start_ray_commands"])
    return problem(
        "autoscaling",
        "" if "--autoscaling-config" in head else "not configured",
        "configured",
        "start the head with --autoscaling-config=~/ray_bootstrap_config.yaml",
    )


def _workers(config: Config) -> Finding:
    """Number of machines."""
    types = config["available_node_types"]
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    min_total = sum(node.get("min_workers", 0) for node in workers)
    max_total, limit = sum(node.get("max_workers", 0) for node in workers), config["max_workers"]
    numbers = f"{min_total} to {max_total} of {len(workers)} types, at most {limit} in total"
    return problem(
        "workers",
        numbers if min_total or max_total > limit or not workers else "",
        numbers,
        "set min_workers to 0, so that an idle cluster costs only its head, and the file's "
        "max_workers to at least the sum of its types'",
    )


def _machines(config: Config) -> Iterator[Finding]:
    """The head's market, and each machine type against the cloud's API and our rules."""
    provider, types = config["provider"], config["available_node_types"]
    cloud = CLOUDS.get(provider["type"])
    if cloud is None:
        known = " and ".join(CLOUDS)
        reason = f"not checked: provider {provider['type']!r}; only {known} are supported"
        yield Finding(check="machines", ok=True, found=reason)
        return
    yield problem(
        "head",
        "spot" if cloud.is_spot(types[config["head_node_type"]]["node_config"]) else "",
        "on demand",
        "the head runs every driver: use an on-demand machine",
    )
    yield problem(
        "stopped machines",
        "kept" if provider.get("cache_stopped_nodes", True) else "",
        "deleted",
        "set provider.cache_stopped_nodes to false: a stopped machine's disk is paid for",
    )
    wrong_place = cloud.location_error(provider)
    yield problem("location", wrong_place, cloud.location(provider), "correct the provider")
    for name, node_type in types.items():
        node = node_type["node_config"]
        wrong = cloud.api_errors(node) or list(cloud.rule_violations(node, provider))
        kind = f"{cloud.machine(node)}{', spot' if cloud.is_spot(node) else ''}"
        yield problem(f"machine {name}", "; ".join(wrong), kind, "correct its node_config")
