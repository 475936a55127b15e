"""Checks a file for Ray's cluster launcher against Ray's schema, EC2's API and our own rules.

Makes no request to AWS. `ray up` checks only its own fields: a mistyped `InstanceType` fails when
the first machine is launched, and insecure defaults are never reported.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import botocore.session
import yaml

from effnet_ray.errors import ClusterError, one_line
from effnet_ray.preflight import cluster_security, ec2
from effnet_ray.preflight.findings import Finding, problem

RAY_FIELDS = ("SubnetIds",)
"""Fields of a node_config that Ray removes before it calls EC2 (ray 2.60 `aws/config.py`)."""
PLACEHOLDER = re.compile(r"\bYOUR-[A-Z-]+")

Config = Mapping[str, Any]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Rejects duplicate fields, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        duplicate = next((str(name) for name in names if names.count(name) > 1), "")
        if duplicate and not getattr(node, "merged", False):
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate field {duplicate!r}", node.start_mark
            )
        node.merged = True  # fields merged by `<<` may be overridden
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def check_cluster_file(path: str) -> list[Finding]:
    """All findings for the file. Raises ClusterError if it cannot be read as YAML."""
    try:
        text = Path(path).expanduser().read_text()
        config = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise ClusterError(f"{path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(
            f"{path} cannot be read as YAML ({one_line(error)}): correct it"
        ) from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} is not a cluster file: expected a YAML mapping")
    accepted, filled = _check_schema(config)
    findings = [accepted, cluster_security.check_secrets(config, text), *_placeholders(text)]
    if accepted.ok:
        findings += [*cluster_security.check_security(filled), *_autoscaling(filled)]
        findings += [*_workers(filled), *_machines(filled)]
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
        field = ".".join(map(str, getattr(error, "absolute_path", ())))
        parts = filter(None, [field, getattr(error, "message", str(error))])
        mistake = ": ".join(parts) or type(error).__name__
    else:
        return problem(check, "", "accepted", ""), filled
    return problem(check, mistake, "", "correct the field"), {}


def _placeholders(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), start=1):
        match = PLACEHOLDER.search(re.sub(r"(^|\s)#.*", "", line))
        if match:
            place = f"{match.group()} on line {number}"
            yield Finding(
                check="placeholders", ok=True, found=place, do="replace it with your own value"
            )
            return


def _autoscaling(config: Config) -> Iterator[Finding]:
    head = " ".join(config["head_start_ray_commands"])
    yield problem(
        "autoscaling",
        "" if "--autoscaling-config" in head else "not configured",
        "configured",
        "start the head with --autoscaling-config=~/ray_bootstrap_config.yaml",
    )


def _workers(config: Config) -> Iterator[Finding]:
    """Number of machines, and whether the head is on demand."""
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    yield problem(
        "head",
        "spot" if _is_spot(head) else "",
        "on demand",
        "the head runs every driver: use an on-demand machine (no InstanceMarketOptions)",
    )
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    min_total = sum(node.get("min_workers", 0) for node in workers)
    max_total, limit = sum(node.get("max_workers", 0) for node in workers), config["max_workers"]
    numbers = f"{min_total} to {max_total} of {len(workers)} types, at most {limit} in total"
    yield problem(
        "workers",
        numbers if min_total or max_total > limit or not workers else "",
        numbers,
        "set min_workers to 0, so that an idle cluster costs only its head, and the file's "
        "max_workers to at least the sum of its types'",
    )


def _machines(config: Config) -> Iterator[Finding]:
    """Each machine type against EC2's API and our rules."""
    provider = config["provider"]
    if provider["type"] != "aws":
        reason = f"not checked: provider {provider['type']!r}; only aws is supported"
        yield Finding(check="machines", ok=True, found=reason)
        return
    yield _region(provider)
    for name, node_type in config["available_node_types"].items():
        node = {
            key: value for key, value in node_type["node_config"].items() if key not in RAY_FIELDS
        }
        wrong = ec2.ec2_errors(node) or list(_rule_violations(node))
        kind = f"{node.get('InstanceType')}{', spot' if _is_spot(node_type) else ''}"
        yield problem(f"machine {name}", "; ".join(wrong), kind, "correct its node_config")


def _region(provider: Config) -> Finding:
    session = botocore.session.get_session()
    regions = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    ]
    region = provider.get("region")
    wrong = "" if region in regions else f"{region!r} is not an EC2 region"
    return problem("region", wrong, str(region), "use an AWS region, such as us-west-2")


def _is_spot(node_type: Config) -> bool:
    market = node_type["node_config"].get("InstanceMarketOptions")
    return isinstance(market, Mapping) and market.get("MarketType") == "spot"


def _rule_violations(node: Config) -> Iterator[str]:
    """Our own rules for a machine that EC2 would accept."""
    if not node.get("InstanceType"):
        yield "no InstanceType"
    if not str(node.get("ImageId", "")).startswith(("ami-", "resolve:ssm:")):
        yield "no ImageId: Ray's default image is Ubuntu 18.04, on which torch does not run"
    if not node.get("IamInstanceProfile"):
        yield "no IamInstanceProfile: the machine has no access to the bucket"
    if (node.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens is not 'required' (IMDSv2)"
    disks = [disk.get("Ebs") or {} for disk in node.get("BlockDeviceMappings") or []]
    if not disks or not all(disk.get("Encrypted") for disk in disks):
        yield "a disk is not Encrypted"
