"""A release behind HTTP, by Ray Serve: an image in, labels out.

    POST /          the bytes of an image          200 {"model", "label", "labels": [{…}], …}
    GET  /          the release and its classes; for a browser a page to drop a picture on
    GET  /healthz   200 once a release is loaded
    GET  /openapi.json   what these requests and answers are
    GET  /metrics   counts of requests for Prometheus (`http_metrics`)

Each replica holds the network and batches requests that arrive together. To change the release, a
replica loads the new one beside the old one and switches between two batches, so no request is
dropped. If the new release cannot be loaded, the replica keeps the old one and reports the error.
Requests that are too large never reach a replica, and those that wait too long are given up
(`request_limit`).
"""

import asyncio
import io
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from effnet_ray.errors import (
    ClusterError,
    EffnetRayError,
    EvaluationError,
    ImageError,
    ReplicaStorageError,
    StorageError,
    quote_end,
)
from effnet_ray.inference import http_docs, http_metrics, request_limit
from effnet_ray.inference.http_api import Answer, ServedRelease
from effnet_ray.inference.options import ServeOptions
from effnet_ray.release.load import load_release

APP = "effnet_ray"
PAUSES_S = (1.0, 4.0, 0.0)
"""Seconds after each attempt to deploy a release, before its result counts as final."""
STATUS_TIMEOUT_S = 60
"""Seconds in which replicas answer a status request; they may be busy with images. Chosen, not
measured."""
PROXY_CHECKS = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}
"""Seconds between two checks of the proxy. A dead one is replaced after three of them (ray 2.60
`serve/_private/proxy_state.py`); Ray's own 10 s would leave nobody to answer for half a minute."""
SERVE_ERRORS = (RuntimeError, TimeoutError, RayServeException, ray.exceptions.RayError)
"""What Ray Serve raises."""

ReplicaStatus = tuple[str, EffnetRayError | None]
"""URI of the release that a replica serves, and why it does not serve the one requested last."""


class Replica:
    """A Ray Serve replica: one process with the network."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._served: ServedRelease | None = None
        self._load_error: EffnetRayError | None = None
        # The decorator's own batch size applies to every deployment of the class.
        self.predict.set_max_batch_size(options.max_batch)
        self.predict.set_batch_wait_timeout_s(options.max_wait_ms / 1000)

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve the release at `uri`; Ray Serve calls this at the start and at each deployment."""
        self._load_error, uri = None, config["uri"]
        if self._served and self._served.release.uri == uri:
            return
        try:
            self._served = await asyncio.to_thread(
                ServedRelease, uri, self._options.top, self._options.runtime
            )
        except Exception as error:
            if not self._served:
                raise
            # If this raised, Ray Serve would stop the replica and with it the current release.
            logging.getLogger("ray.serve").error("%s: still serving the previous release", error)
            kind = type(error) if isinstance(error, EffnetRayError) else EvaluationError
            self._load_error = kind(quote_end(error))  # a copy, without the traceback's objects

    async def status(self) -> ReplicaStatus:
        """What this replica serves, and why not the release requested last."""
        assert self._served
        return self._served.release.uri, self._load_error

    async def __call__(self, request: Request) -> Response:
        """Answer an HTTP request."""
        served = self._served
        assert served  # `reconfigure` runs before the first request
        if request.url.path == "/healthz":
            return JSONResponse({"ok": True, "model": served.release.reference})
        if request.url.path == "/openapi.json":
            return JSONResponse(http_docs.openapi())
        if request.url.path != "/":
            return _error_response(404, "not found: POST an image to /")
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            page = http_docs.page(served.release.reference, len(served.release.classes))
            return HTMLResponse(page, headers={"content-security-policy": http_docs.POLICY})
        if request.method == "GET":
            replica = serve.get_replica_context().replica_id.unique_id
            return JSONResponse({**served.description, "replica": replica})
        if request.method != "POST":
            return _error_response(405, "expected GET, or POST with the bytes of an image")
        with_map = request.query_params.get("map") == "1"
        answer = await self.predict((await request.body(), with_map))
        if isinstance(answer, ImageError):
            message = f"the body is not a readable image ({answer}): send JPEG or PNG"
            return _error_response(415, message)
        if isinstance(answer, EvaluationError):
            return _error_response(500, str(answer))
        headers = {http_metrics.MODEL.decode(): answer["model"]}
        if answer.get("is_unknown"):
            headers[http_metrics.UNKNOWN.decode()] = "1"
        return JSONResponse(answer, headers=headers)

    @serve.batch  # type: ignore[untyped-decorator]  # Ray Serve has no types
    async def predict(self, requests: list[tuple[bytes, bool]]) -> list[Answer]:
        """The answer for each image of a batch, and for those who want it its map."""
        served = self._served
        assert served
        images, with_map = zip(*requests, strict=True)
        return await asyncio.to_thread(served.predict, images, with_map)


def _error_response(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def check_port(options: ServeOptions) -> None:
    """Raises ClusterError if this machine cannot listen on the port."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options.host, options.port))
    except OSError as error:
        raise ClusterError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror or error}): choose "
            "another --port, or another --host"
        ) from error


def start(options: ServeOptions) -> None:
    """Start Ray Serve. Raises ClusterError if it already runs or the port is taken."""
    running = serve.status()
    if running.applications or running.proxies:
        raise ClusterError(
            "Ray Serve already runs on this cluster, and stopping this job would stop its "
            "applications too: use another cluster, or run `serve shutdown` first"
        )
    limits = int(options.max_megabytes * 1e6), options.max_seconds
    environment = request_limit.environment(*limits) | PROXY_CHECKS
    try:
        serve.start(
            http_options={
                "host": options.host,
                "port": options.port,
                "request_timeout_s": options.max_seconds,
            },
            proxy_location="HeadOnly",  # one proxy, which counts all requests
            controller_options={"runtime_env": {"env_vars": environment}},
        )
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        stop()
        raise ClusterError(
            f"cannot listen on {options.host}:{options.port} ({quote_end(error)}): choose "
            "another --port"
        ) from error


def deploy(uri: str, options: ServeOptions) -> None:
    """Serve the release at `uri`; it replaces the current one after every replica has loaded it.

    Raises ReleaseError if the release cannot be loaded, EvaluationError if Ray Serve fails or a
    replica keeps another release; that replica's error is the cause (ReplicaStorageError if it
    comes from storage).
    """
    uri = load_release(uri, "").uri
    statuses = list[ReplicaStatus]()
    for pause in PAUSES_S:
        try:
            responses = _deploy_version(uri, options).broadcast("status")
            results = responses.results(timeout_s=STATUS_TIMEOUT_S, return_exceptions=True)
        except SERVE_ERRORS as error:
            raise EvaluationError(f"{uri} cannot be served: {quote_end(error)}") from error
        statuses = [result for result in results if not isinstance(result, Exception)]
        if [served for served, _ in statuses] == [uri] * options.replicas:
            return
        time.sleep(pause)
    raise _deployment_error(uri, options.replicas, statuses)


def _deployment_error(
    uri: str, replicas: int, statuses: Sequence[ReplicaStatus]
) -> EvaluationError:
    """The error of a deployment that did not reach all replicas, with the first cause."""
    others = sorted({served for served, _ in statuses} - {uri})
    cause = next((error for _, error in statuses if error), None)
    kind = ReplicaStorageError if isinstance(cause, StorageError) else EvaluationError
    error = kind(
        f"{uri} is not served by all {replicas} replicas "
        f"({cause or 'some replicas do not answer'}); still served: "
        f"{', '.join(others) or 'no other release'}"
    )
    error.__cause__ = cause
    return error


def _deploy_version(uri: str, options: ServeOptions) -> DeploymentHandle[Any]:
    """Make every replica load the release; returns when they have loaded it or failed to."""
    deployment = serve.deployment(
        Replica,
        name="effnet",
        num_replicas=options.replicas,
        # Requests wait in the replica. Those that wait in the proxy are offered to it again after
        # pauses of up to 0.5 s (2.60 `serve/_private/constants.py`), in which it may have nothing
        # to compute: 64 clients of a replica for 32 requests got less than half of its images/s.
        max_ongoing_requests=options.max_batch + options.max_waiting,
        # Ray Serve also counts those that have just arrived and are offered for the first time.
        max_queued_requests=max(options.max_batch, options.max_waiting // 2),
        # Ray Serve calls `reconfigure` only if this has changed: the time makes it call again.
        user_config={"uri": uri, "requested": str(time.time_ns())},
        ray_actor_options={"num_gpus": options.gpus_per_replica, "num_cpus": 1},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=30,
    )
    # Without a version Ray Serve treats every deployment as new code and replaces the replicas
    # (2.60 `serve/_private/client.py`); with an unchanged one it calls `reconfigure`.
    versioned = deployment.options(version="1", _internal=True)
    return serve.run(versioned.bind(options), name=APP, route_prefix="/")


def stop() -> None:
    """Stop Ray Serve."""
    # Ray prints failed calls to the controller that it has just stopped, as if they were errors.
    with redirect_stdout(io.StringIO()):
        serve.shutdown()
