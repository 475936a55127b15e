"""AWS machines in a cluster file: EC2's model of RunInstances, from botocore, and our rules."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

RAY_FIELDS = ("SubnetIds",)
"""Fields of a node_config that Ray removes before it calls EC2 (ray 2.60 `aws/config.py`)."""

Node = Mapping[str, Any]


def location_error(provider: Mapping[str, Any]) -> str:
    """What is wrong with the file's `provider`; empty if nothing is."""
    session = botocore.session.get_session()
    regions = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    ]
    region = provider.get("region")
    return "" if region in regions else f"{region!r} is not an EC2 region, such as us-west-2"


def location(provider: Mapping[str, Any]) -> str:
    """Where the machines are."""
    return str(provider.get("region"))


def machine(node: Node) -> str:
    """The type of the machine."""
    return str(node.get("InstanceType"))


def is_spot(node: Node) -> bool:
    """Whether AWS may take the machine away."""
    market = node.get("InstanceMarketOptions")
    return isinstance(market, Mapping) and market.get("MarketType") == "spot"


def api_errors(node: Node) -> list[str]:
    """What EC2 would reject: unknown fields, values of a wrong type, values outside an enum."""
    shape = _run_instances()
    own = {name: value for name, value in node.items() if name not in RAY_FIELDS}
    request = {"MinCount": 1, "MaxCount": 1, **own}
    report = ParamValidator().validate(request, shape).generate_report()
    return [line.strip() for line in report.splitlines()] + list(
        _unknown_values(request, shape, "")
    )


def rule_violations(node: Node, provider: Mapping[str, Any]) -> Iterator[str]:
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


@cache
def _run_instances() -> Shape:
    """The request's shape. Loading it takes almost a second."""
    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def _unknown_values(value: Any, shape: Any, name: str) -> Iterator[str]:
    """Values that are not in the model's enums: botocore does not validate them."""
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for key, inner in value.items():
            if key in shape.members:
                yield from _unknown_values(inner, shape.members[key], f"{name}.{key}".strip("."))
    elif shape.type_name == "list" and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unknown_values(inner, shape.member, f"{name}[{index}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{name} {value!r} is not a valid value in EC2's API"
