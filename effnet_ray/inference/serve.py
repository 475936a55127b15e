"""A release behind HTTP, by Ray Serve: an image in, labels out.

    POST /          the bytes of an image          200 {"model", "label", "labels": [{…}]}
    GET  /          what is served, its classes
    GET  /healthz   200 once a release is loaded

Each replica holds the network; requests that come together go through it together. When another
release is to be served, a replica loads it beside the one it has, and changes over between two
batches: no request is dropped. One that cannot be opened is not changed to, and whoever asked for
it is told. What is too large never comes to a replica (`bound`).
"""

import asyncio
import io
import logging
import time
from contextlib import redirect_stdout
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse

from effnet_ray.errors import (
    ClusterError,
    EffnetRayError,
    EvaluationError,
    ImageError,
    ReplicaStorageError,
    StorageError,
)
from effnet_ray.inference import request_limit
from effnet_ray.inference.http_api import Answer, ServedRelease
from effnet_ray.inference.options import ServeOptions
from effnet_ray.release.load import load_release

APP = "effnet_ray"
PAUSES_S = (1.0, 4.0, 0.0)
"""Seconds after each time that a release is asked for, until it is asked for again."""
TELLING_S = 60
"""Seconds in which replicas must tell what they serve: they may have images to look at."""
FAILURES = (RuntimeError, TimeoutError, RayServeException, ray.exceptions.RayError)
"""Ray Serve's own."""


class Replica:
    """One process with the network."""

    def __init__(self, serving: ServeOptions) -> None:
        self._serving = serving
        self._served: ServedRelease | None = None
        self._failed: EffnetRayError | None = None
        # As many images at once as are asked for, not as many as when the class was decorated.
        self.look.set_max_batch_size(serving.max_batch)
        self.look.set_batch_wait_timeout_s(serving.max_wait_ms / 1000)

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve the release at `uri` from now on: at the start, and whenever it is asked for."""
        self._failed, uri = None, config["uri"]
        if self._served and self._served.release.uri == uri:
            return
        try:
            self._served = await asyncio.to_thread(ServedRelease, uri, self._serving.top)
        except Exception as error:
            if not self._served:
                raise
            # Ray Serve would end the replica for it, and with it what is served.
            logging.getLogger("ray.serve").error("%s: serving on what was", error)
            kind = type(error) if isinstance(error, EffnetRayError) else EvaluationError
            self._failed = kind(_short(error))  # without what its traceback holds

    async def serves(self) -> tuple[str, EffnetRayError | None]:
        """URI of what is served; why what was asked for last is not."""
        assert self._served
        return self._served.release.uri, self._failed

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer."""
        served = self._served
        assert served  # reconfigured before the first request
        if request.url.path == "/healthz":
            return JSONResponse({"ok": True, "model": served.release.reference})
        if request.url.path != "/":
            return _refused(404, "there is nothing here: POST an image to /")
        if request.method == "GET":
            replica = serve.get_replica_context().replica_id.unique_id
            return JSONResponse({**served.told, "replica": replica})
        if request.method != "POST":
            return _refused(405, "expected POST with the bytes of an image, or GET")
        said = await self.look(await request.body())
        if isinstance(said, ImageError):
            return _refused(415, f"this is no image that can be read ({said}): send JPEG or PNG")
        if isinstance(said, EvaluationError):
            return _refused(500, str(said))
        return JSONResponse(said)

    @serve.batch  # type: ignore[untyped-decorator]  # Ray Serve has no types
    async def look(self, images: list[bytes]) -> list[Answer | ImageError]:
        """What each shows, or why it cannot be read."""
        served = self._served
        assert served
        return await asyncio.to_thread(served.look, images)


def _refused(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)


def start(serving: ServeOptions) -> None:
    """Start Ray Serve. Raises ClusterError where it runs already, or the port is taken."""
    running = serve.status()
    if running.applications or running.proxies:
        raise ClusterError(
            "Ray Serve runs on this cluster already, with applications that would end with ours: "
            "use another cluster, or `serve shutdown` first"
        )
    proxies = request_limit.environment(int(serving.max_megabytes * 1e6))
    try:
        serve.start(
            http_options={"host": serving.host, "port": serving.port},
            controller_options={"runtime_env": {"env_vars": proxies}},
        )
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        stop()
        raise ClusterError(
            f"nothing can listen at {serving.host}:{serving.port} "
            f"({_short(error)}): choose another --port"
        ) from error


def deploy(uri: str, serving: ServeOptions) -> None:
    """Serve the release at `uri`, verified; in place of another, once it is loaded.

    Raises ReleaseError for one that cannot be opened, EvaluationError where it cannot be served or
    a replica goes on with another; that replica's own error is its cause.
    """
    uri = load_release(uri, "").uri
    told = list[tuple[str, EffnetRayError | None]]()
    for pause in PAUSES_S:
        try:
            asked = _roll(uri, serving).broadcast("serves")
            answers = asked.results(timeout_s=TELLING_S, return_exceptions=True)
        except FAILURES as error:
            raise EvaluationError(f"{uri} cannot be served: {_short(error)}") from error
        told = [each for each in answers if not isinstance(each, Exception)]  # of one that died
        if [served for served, _ in told] == [uri] * serving.replicas:
            return
        time.sleep(pause)
    others = sorted({served for served, _ in told} - {uri})
    why = next((failed for _, failed in told if failed), None)
    kind = ReplicaStorageError if isinstance(why, StorageError) else EvaluationError
    raise kind(
        f"{uri} is not served by all of {serving.replicas} replicas ({why or 'some are silent'}); "
        f"served still: {', '.join(others) or 'no other'}"
    ) from why


def _roll(uri: str, serving: ServeOptions) -> DeploymentHandle[Any]:
    """Ask every replica for the release; they have loaded it, or failed to."""
    deployed = serve.deployment(
        Replica,
        name="effnet",
        num_replicas=serving.replicas,
        max_ongoing_requests=2 * serving.max_batch,
        max_queued_requests=serving.max_waiting,
        # Replicas are not called again for what they have been called for.
        user_config={"uri": uri, "asked": str(time.time_ns())},
        ray_actor_options={"num_gpus": serving.gpus_per_replica, "num_cpus": 1},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=30,
    )
    # Without a version Ray Serve takes every call for new code, and ends replicas to begin others
    # (2.60 `serve/_private/client.py`); with one it calls `reconfigure`.
    same = deployed.options(version="1", _internal=True)
    return serve.run(same.bind(serving), name=APP, route_prefix="/")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]


def stop() -> None:
    """Serve no more."""
    # Ray prints that calls fail whose controller it has ended, as if that were to be mended.
    with redirect_stdout(io.StringIO()):
        serve.shutdown()
