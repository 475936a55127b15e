"""A release behind HTTP, by Ray Serve: an image in, labels out.

    POST /          the bytes of an image          200 {"model", "label", "labels": [{…}]}
    GET  /          what is served, its classes
    GET  /healthz   200 once a release is loaded

Each replica holds the network; requests that come together go through it together. When another
release is to be served, a replica loads it beside the one it has, and changes over between two
batches: no request is dropped. One that cannot be opened is not changed to. What is too large
never comes to a replica (`bound`).
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from effnet_ray.errors import ClusterError, EvaluationError, ImageError
from effnet_ray.use import bound
from effnet_ray.use.answers import Served, Serving
from effnet_ray.use.opened import open_release

APP = "effnet_ray"


class Replica:
    """One process with the network."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._served: Served | None = None
        # As many images at once as are asked for, not as many as when the class was decorated.
        self.look.set_max_batch_size(serving.max_batch)
        self.look.set_batch_wait_timeout_s(serving.max_wait_ms / 1000)

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve the release at `uri` from now on. Called at the start, and for every other one."""
        try:
            self._served = await asyncio.to_thread(Served.open, config["uri"], self._serving)
        except Exception as error:
            if not self._served:
                raise
            # Ray Serve would end the replica for it, and with it what is served.
            logging.getLogger("ray.serve").error("%s: serving on what was", error)

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
        return JSONResponse(said)

    @serve.batch  # type: ignore[untyped-decorator]  # Ray Serve has no types
    async def look(self, images: list[bytes]) -> list[dict[str, Any] | ImageError]:
        """What each shows, or why it cannot be read."""
        served = self._served
        assert served
        return await asyncio.to_thread(served.look, images)


def _refused(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)


def begin(serving: Serving) -> None:
    """Start Ray Serve. Raises ClusterError where it runs already, or the port is taken."""
    running = serve.status()
    if running.applications or running.proxies:
        raise ClusterError(
            "Ray Serve runs on this cluster already, with applications that would end with ours: "
            "use another cluster, or `serve shutdown` first"
        )
    proxies = bound.environment(int(serving.max_megabytes * 1e6))
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


def deploy(uri: str, serving: Serving) -> None:
    """Serve the release at `uri`, verified; in place of another, once it is loaded.

    Raises ReleaseError for one that cannot be opened, EvaluationError where it cannot be served.
    """
    open_release(uri, "")
    deployed = serve.deployment(
        Replica,
        name="effnet",
        num_replicas=serving.replicas,
        max_ongoing_requests=2 * serving.max_batch,
        max_queued_requests=serving.max_waiting,
        user_config={"uri": uri},
        ray_actor_options={"num_gpus": serving.gpus_per_replica, "num_cpus": 1},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=30,
    )
    # Without a version Ray Serve takes every call for new code, and ends replicas to begin others
    # (2.60 `serve/_private/client.py`); with one it calls `reconfigure`.
    same = deployed.options(version="1", _internal=True)
    try:
        serve.run(same.bind(serving), name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        raise EvaluationError(f"{uri} cannot be served: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]


def stop() -> None:
    """Serve no more."""
    serve.shutdown()
