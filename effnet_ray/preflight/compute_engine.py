"""Google Cloud machines in a cluster file: Compute Engine's discovery document, and our rules.

google-api-python-client ships the document; Ray's launcher needs that package, too. The document
does not list machine types, images, zones or GPUs: a mistake in their names comes out when Ray
starts the machine.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from effnet_ray.errors import ClusterError

RAY_FIELDS = ("sourceInstanceTemplate", "networkConfig")
"""Fields of a node_config that Ray removes from the request (ray 2.60 `gcp/node.py`)."""
DOCUMENT = "discovery_cache/documents/compute.v1.json"
GPU_MACHINES = re.compile(r"(?:a[2-9]x?|g[2-9])-")
"""Machine types that have GPUs of their own."""
ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]")
ZONE_IN_URL = re.compile(rf"\bzones/({ZONE.pattern})\b")

Node = Mapping[str, Any]


def location_error(provider: Mapping[str, Any]) -> str:
    """What is wrong with the file's `provider`; empty if nothing is."""
    zone, region = provider.get("availability_zone"), provider.get("region")
    if not provider.get("project_id"):
        return "no project_id"
    if not ZONE.fullmatch(str(zone)):
        return f"availability_zone {zone!r} is not a zone, such as us-central1-a"
    return "" if str(zone).startswith(f"{region}-") else f"{zone} is not in region {region!r}"


def location(provider: Mapping[str, Any]) -> str:
    """Where the machines are."""
    return str(provider.get("availability_zone"))


def machine(node: Node) -> str:
    """The type of the machine."""
    return str(node.get("machineType"))


def is_spot(node: Node) -> bool:
    """Whether Google may take the machine away."""
    scheduling = _mapping(node, "scheduling")
    taken_away = scheduling.get("provisioningModel") in ("SPOT", "FLEX_START")
    return taken_away or bool(scheduling.get("preemptible"))


def api_errors(node: Node) -> list[str]:
    """What Compute Engine would reject: unknown fields, wrong types, values outside an enum.

    Raises ClusterError if google-api-python-client is not installed.
    """
    own = {name: value for name, value in node.items() if name not in RAY_FIELDS}
    errors = sorted(_validator().iter_errors(own), key=lambda error: list(error.absolute_path))
    return [
        ": ".join(filter(None, [".".join(map(str, error.absolute_path)), error.message]))
        for error in errors
    ]


def rule_violations(node: Node, provider: Mapping[str, Any]) -> Iterator[str]:
    """Our own rules for a machine that Compute Engine would accept."""
    if not location_error(provider):
        for zone in sorted({*ZONE_IN_URL.findall(json.dumps(node))}):
            if zone != provider["availability_zone"]:
                yield f"zone {zone} is not the provider's"
    type_, scheduling = node.get("machineType"), _mapping(node, "scheduling")
    if not type_:
        yield "no machineType"
    boots = [disk for disk in node.get("disks") or [] if disk.get("boot")]
    if not any(_mapping(disk, "initializeParams").get("sourceImage") for disk in boots):
        yield "no disk with boot and initializeParams.sourceImage"
    if not all(disk.get("autoDelete") for disk in node.get("disks") or []):
        yield "a disk without autoDelete stays, and is paid for, when its machine is deleted"
    has_gpu = node.get("guestAccelerators") or GPU_MACHINES.match(str(type_).rpartition("/")[2])
    if has_gpu and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield "scheduling.onHostMaintenance is not TERMINATE: machines with GPUs cannot migrate"
    if is_spot(node):
        yield from _spot_violations(scheduling)


def _spot_violations(scheduling: Mapping[str, Any]) -> Iterator[str]:
    """What Google refuses for a spot machine, and what would cost money."""
    if scheduling.get("preemptible") and scheduling.get("provisioningModel") != "SPOT":
        yield "scheduling.preemptible needs provisioningModel: SPOT"
    if scheduling.get("automaticRestart"):
        yield "scheduling.automaticRestart is true: spot machines are not restarted"
    if scheduling.get("onHostMaintenance") == "MIGRATE":
        yield "scheduling.onHostMaintenance is MIGRATE: spot machines cannot migrate"
    if scheduling.get("instanceTerminationAction") != "DELETE":
        yield (
            "scheduling.instanceTerminationAction is not DELETE: a spot machine that is taken "
            "away is only stopped, and its disk is paid for"
        )


def _mapping(node: Node, name: str) -> Mapping[str, Any]:
    value = node.get(name)
    return value if isinstance(value, Mapping) else {}


@cache
def _validator() -> Draft202012Validator:
    """A JSON schema of `instances.insert`'s body."""
    package = importlib.util.find_spec("googleapiclient")
    if package is None or package.origin is None:
        raise ClusterError(
            "machines on Google Cloud cannot be checked, nor started by Ray, without "
            "google-api-python-client: pip install 'effnet-ray[gcp]'"
        )
    document = json.loads((Path(package.origin).parent / DOCUMENT).read_text("utf-8"))
    schemas = {name: _json_schema(schema) for name, schema in document["schemas"].items()}
    return Draft202012Validator({"$ref": "#/$defs/Instance", "$defs": schemas})


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of Google's API discovery format as a JSON schema that allows no other fields."""
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    if "properties" in schema:
        fields = {name: _json_schema(field) for name, field in schema["properties"].items()}
        return {"type": "object", "properties": fields, "additionalProperties": False}
    if "additionalProperties" in schema:
        return {
            "type": "object",
            "additionalProperties": _json_schema(schema["additionalProperties"]),
        }
    if "items" in schema:
        return {"type": "array", "items": _json_schema(schema["items"])}
    if str(schema.get("format", "")).endswith("int64"):  # numbers in strings, or numbers
        return {"type": ["string", "integer"], "pattern": r"^-?\d+$"}
    values = {"enum": schema["enum"]} if "enum" in schema else {}
    return {"type": schema["type"], **values} if schema.get("type") != "any" else {}
