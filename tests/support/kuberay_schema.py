"""Makes `effnet_ray/preflight/kuberay_schema.json`: `python kuberay_schema.py FOLDER > FILE`.

FOLDER has KubeRay's custom resource definitions, `ray-operator/config/crd/bases` of
ray-project/kuberay (Apache-2.0). Descriptions are left out, and equal parts are stored once: 40 kB
instead of 2.3 MB.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "minItems", "maxItems",
        "maxLength")  # fmt: skip
MIN_SHARED = 120
"""Characters from which an equal part is stored once."""


def make_schema(folder: Path) -> dict[str, Any]:
    """Kind → JSON schema, and the parts that they share below `$defs`."""
    kinds = {kind: closed_kind(folder, kind) for kind in ("RayCluster", "RayJob")}
    counts = Counter(json.dumps(part, sort_keys=True) for part in parts(kinds))
    shared: dict[str, Any] = {}
    kinds = {kind: with_shared(schema, counts, shared) for kind, schema in kinds.items()}
    return {**kinds, "$defs": shared}


def closed_kind(folder: Path, kind: str) -> dict[str, Any]:
    """The schema of a kind's version v1, without what the operator writes: `status`."""
    text = (folder / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=yaml.CSafeLoader)
    v1 = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = closed(v1["schema"]["openAPIV3Schema"])
    del schema["properties"]["status"]
    return schema | {"required": ["apiVersion", "kind", "metadata", "spec"]}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema as a JSON schema that allows no fields but its own."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **pick(schema, "pattern")}
    result = pick(schema, *KEPT)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            result[name] = closed(schema[name])
    if "properties" in schema:
        result["properties"] = {
            name: closed(field) for name, field in schema["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result


def pick(schema: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: schema[name] for name in names if name in schema}


def parts(value: Any) -> Iterator[Any]:
    """The value and all objects inside it."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from parts(inner)


def with_shared(value: Any, counts: Counter[str], shared: dict[str, Any]) -> Any:
    """The value with references to parts that come more than once; these are added to `shared`."""
    if not isinstance(value, dict):
        return value
    text = json.dumps(value, sort_keys=True)
    is_schema = isinstance(value.get("type"), str)  # not the fields of one, named `type` or not
    if counts[text] == 1 or len(text) < MIN_SHARED or not is_schema:
        return {name: with_shared(inner, counts, shared) for name, inner in value.items()}
    name = hashlib.sha256(text.encode()).hexdigest()[:6]
    if name not in shared:
        shared[name] = {key: with_shared(inner, counts, shared) for key, inner in value.items()}
    return {"$ref": f"#/$defs/{name}"}


def to_json(folder: Path) -> str:
    """The file's content."""
    return json.dumps(make_schema(folder), separators=(",", ":")) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_json(Path(sys.argv[1])))
