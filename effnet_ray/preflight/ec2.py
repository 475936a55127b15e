"""EC2's own model of RunInstances, as botocore ships it: what EC2 would refuse."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator


def ec2_errors(node_config: Mapping[str, Any]) -> list[str]:
    """What EC2 would refuse: unknown fields, values of another type, values it does not know."""
    shape = _run_instances()
    request = {"MinCount": 1, "MaxCount": 1, **node_config}
    report = ParamValidator().validate(request, shape).generate_report()
    return [line.strip() for line in report.splitlines()] + list(_unknown(request, shape, ""))


@cache
def _run_instances() -> Shape:
    """The request's shape. Loading it takes most of a second."""
    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def _unknown(value: Any, shape: Any, name: str) -> Iterator[str]:
    """Values outside of what the model lists, which botocore itself does not look at."""
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for key, inner in value.items():
            if key in shape.members:
                yield from _unknown(inner, shape.members[key], f"{name}.{key}".strip("."))
    elif shape.type_name == "list" and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unknown(inner, shape.member, f"{name}[{index}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{name} {value!r} is not known to EC2"
