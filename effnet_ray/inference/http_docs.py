"""The server's page for people, and its description for programs (OpenAPI)."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

import effnet_ray
from effnet_ray.reporting.page import render

SCRIPT = files("effnet_ray").joinpath("inference/serve_page.js").read_text("utf-8")
POLICY = (
    "default-src 'none'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    + "'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: only its script runs, and it reaches only this server."""


NUMBER, TEXT = {"type": "number"}, {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}


def page(model: str, classes: int) -> bytes:
    """The page on which a person drops a picture, as HTML."""
    return render("inference/serve.html.j2", model=model, classes=classes, script=SCRIPT)


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 description of the server."""
    error = _object({"error": TEXT})
    post = {
        "summary": "Classify an image",
        "parameters": [
            {"name": "map", "in": "query", "schema": {"type": "integer", "enum": [0, 1]},
             "description": "1: also answer with the class-activation map"}
        ],
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {
            "200": _response("The labels", _answer()),
            "408": _response("The image did not arrive in time", error),
            "413": _response("The image is too large", error),
            "415": _response("Not a readable image", error),
            "500": _response("The release returns no numbers for this image", error),
            "503": _response(
                "Too many images wait, or this one did too long: try again after Retry-After "
                "seconds", error,
            ),
        },
    }  # fmt: skip
    release = _object(
        {"model": TEXT, "release_uri": TEXT, "task": TEXT, "classes": TEXTS, "replica": TEXT}
    )
    health = _object({"ok": {"type": "boolean"}, "model": TEXT})
    return {
        "openapi": "3.1.0",
        "info": {"title": "effnet_ray", "version": effnet_ray.__version__},
        "paths": {
            "/": {"post": post, "get": _get("The release; a page if HTML is accepted", release)},
            "/healthz": {"get": _get("200 once a release is loaded", health)},
            "/openapi.json": {"get": _get("This description", {"type": "object"})},
            "/metrics": {
                "get": {
                    "summary": "Counts of requests for Prometheus",
                    "responses": {
                        "200": {"description": "Text", "content": {"text/plain": {"schema": TEXT}}}
                    },
                }
            },
        },
    }


def _answer() -> dict[str, Any]:
    """The schema of an answer to an image."""
    label = _object({"label": TEXT, "probability": NUMBER})
    return _object(
        {
            "model": TEXT | {"description": "NAME@vN of the release"},
            "label": TEXT | {"description": "the most probable class"},
            "labels": _array(label) | {"description": "the most probable first"},
            "predicted": TEXTS | {"description": "classes above their threshold, if an image may "
                                  "have any number of classes"},
            "unknown": NUMBER | {"description": "how unlike the release's images; high is unlike"},
            "is_unknown": {"type": "boolean"},
            "map": TEXT | {"description": "with ?map=1: a data URI of a JPEG"},
        },
        required=["model", "label", "labels"],
    )  # fmt: skip


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    keys = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": keys}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _response(summary, schema)}}
