"""A file for Ray's cluster launcher, held against Ray, EC2 and our own rules. Nothing is called.

`ray up` checks only its own fields: a mistyped `InstanceType` is noticed when the first machine is
bought, and what its defaults open to the world is never said.
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

from effnet_ray.errors import ClusterError
from effnet_ray.preflight import cluster_security, ec2
from effnet_ray.preflight.findings import Finding, problem

OURS = ("SubnetIds",)
"""Fields of a node_config that Ray takes out before it asks EC2 (ray 2.60 `aws/config.py`)."""
PLACEHOLDER = re.compile(r"\bYOUR-[A-Z-]+")

Config = Mapping[str, Any]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Refuses a field that comes twice, of which YAML would keep the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((str(name) for name in names if names.count(name) > 1), "")
        if twice and not getattr(node, "merged", False):
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is there twice", node.start_mark
            )
        node.merged = True  # what `<<` brings in stands before the node's own
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def check_cluster_file(path: str) -> list[Finding]:
    """All findings for the file. Raises ClusterError where it cannot be read as YAML."""
    try:
        text = Path(path).expanduser().read_text()
        config = yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ClusterError(f"{path} cannot be read as YAML ({why}): correct it") from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} is no cluster file: expected a YAML mapping")
    accepted, filled = _by_ray(config)
    findings = [accepted, cluster_security.secrets(config, text), *_placeholders(text)]
    if accepted.ok:
        findings += [*cluster_security.checks(filled), *_autoscaling(filled)]
        findings += [*_workers(filled), *_machines(filled)]
    return findings


def _by_ray(config: Config) -> tuple[Finding, Config]:
    """Ray's own schema, and the file with Ray's defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # takes a second

    check = "Ray's schema"
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with redirect_stdout(None), redirect_stderr(None):  # what Ray tells is not about the file
            filled: Config = prepare_config(copy.deepcopy(dict(config)))
            validate_config(filled)
    except Exception as error:  # jsonschema's, or whatever Ray stumbles over
        where = ".".join(map(str, getattr(error, "absolute_path", ())))
        found = ": ".join(filter(None, [where, getattr(error, "message", str(error))]))
        found = found or type(error).__name__
    else:
        return problem(check, "", "accepted", ""), filled
    return problem(check, found, "", "correct the field"), {}


def _placeholders(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), start=1):
        left = PLACEHOLDER.search(re.sub(r"(^|\s)#.*", "", line))
        if left:
            where = f"{left.group()} on line {number}"
            yield Finding(
                check="placeholders", ok=True, found=where, do="put your own in its place"
            )
            return


def _autoscaling(config: Config) -> Iterator[Finding]:
    head = " ".join(config["head_start_ray_commands"])
    yield problem(
        "autoscaling",
        "" if "--autoscaling-config" in head else "not asked for",
        "asked for",
        "start the head with --autoscaling-config=~/ray_bootstrap_config.yaml",
    )


def _workers(config: Config) -> Iterator[Finding]:
    """How many machines there may be."""
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    yield problem(
        "head",
        "spot" if _spot(head) else "",
        "on demand",
        "the head holds every driver: buy it on demand (no InstanceMarketOptions)",
    )
    workers = [each for name, each in types.items() if name != config["head_node_type"]]
    least = sum(each.get("min_workers", 0) for each in workers)
    most, room = sum(each.get("max_workers", 0) for each in workers), config["max_workers"]
    found = f"{least} to {most} of {len(workers)} types, {room} in all"
    yield problem(
        "workers",
        found if least or most > room or not workers else "",
        found,
        "min_workers 0, so that an idle cluster costs its head alone; max_workers of the file at "
        "least the sum of its types'",
    )


def _machines(config: Config) -> Iterator[Finding]:
    """What is asked of EC2 for each type of machine."""
    provider = config["provider"]
    if provider["type"] != "aws":
        found = f"not looked at: provider {provider['type']!r}, and only AWS's are known here"
        yield Finding(check="machines", ok=True, found=found)
        return
    yield _region(provider)
    for name, each in config["available_node_types"].items():
        node = {key: value for key, value in each["node_config"].items() if key not in OURS}
        wrong = ec2.ec2_errors(node) or list(_rules(node))
        kind = f"{node.get('InstanceType')}{', spot' if _spot(each) else ''}"
        yield problem(f"machine {name}", "; ".join(wrong), kind, "correct its node_config")


def _region(provider: Config) -> Finding:
    session = botocore.session.get_session()
    known = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    ]
    region = provider.get("region")
    wrong = "" if region in known else f"{region!r} is not known to EC2"
    return problem("region", wrong, str(region), "name one of AWS's, such as us-west-2")


def _spot(node_type: Config) -> bool:
    market = node_type["node_config"].get("InstanceMarketOptions")
    return isinstance(market, Mapping) and market.get("MarketType") == "spot"


def _rules(node: Config) -> Iterator[str]:
    """What we ask of every machine that EC2 would give."""
    if not node.get("InstanceType"):
        yield "no InstanceType"
    if not str(node.get("ImageId", "")).startswith(("ami-", "resolve:ssm:")):
        yield "no ImageId: Ray's default is an Ubuntu 18.04, on which torch does not run"
    if not node.get("IamInstanceProfile"):
        yield "no IamInstanceProfile, and so no rights on the bucket"
    if (node.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens is not required (IMDSv2)"
    disks = [disk.get("Ebs") or {} for disk in node.get("BlockDeviceMappings") or []]
    if not disks or not all(disk.get("Encrypted") for disk in disks):
        yield "a disk that is not Encrypted"
