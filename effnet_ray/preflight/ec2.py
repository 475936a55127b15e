"""Checks a node_config against EC2's API model of RunInstances, which botocore ships."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator


def ec2_errors(node_config: Mapping[str, Any]) -> list[str]:
    """What EC2 would reject: unknown fields, values of a wrong type, values outside an enum."""
    shape = _run_instances()
    request = {"MinCount": 1, "MaxCount": 1, **node_config}
    report = ParamValidator().validate(request, shape).generate_report()
    return [line.strip() for line in report.splitlines()] + list(
        _unknown_values(request, shape, "")
    )


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
