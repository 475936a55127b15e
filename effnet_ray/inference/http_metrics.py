"""Prometheus metrics of the server, counted in Ray Serve's proxy.

    GET /metrics    requests by release and status, their seconds, pictures called unknown

The proxy counts them; there is one, on the head node.
"""

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/metrics"
MODEL, UNKNOWN = b"effnet-model", b"effnet-unknown"
"""Headers of a replica's answers: the release, and 1 for a picture that it calls unknown."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the histogram's buckets, s: Prometheus's usual ones, and 30."""


class HttpMetrics:
    """ASGI middleware that counts requests, and answers `GET /metrics`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._registry = app, CollectorRegistry()
        self._requests = Counter(
            "effnet_requests",
            "Answered requests, by method, status and release",
            ("method", "status", "model"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "effnet_image_seconds",
            "Seconds from a whole image's arrival to its answer, by status",
            ("status",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._in_progress = Gauge(
            "effnet_requests_in_progress",
            "Requests that are received, wait or are computed",
            registry=self._registry,
        )
        self._unknown = Counter(
            "effnet_unknown_pictures",
            "Pictures that the release called unknown",
            ("model",),
            registry=self._registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"] == PATH and scope["method"] == "GET":
            content = generate_latest(self._registry)
            return await Response(content, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
        arrived = time.perf_counter()

        async def receive_and_note() -> Message:
            nonlocal arrived
            message = await receive()
            arrived = time.perf_counter()  # its last call is that for the last part of the body
            return message

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message, time.perf_counter() - arrived)
            await send(message)

        with self._in_progress.track_inprogress():
            await self._app(scope, receive_and_note, send_and_count)

    def _count(self, scope: Scope, start: Message, seconds: float) -> None:
        headers, status = dict(start.get("headers", ())), str(start["status"])
        model, method = headers.get(MODEL, b"").decode(), scope["method"]
        known = method if method in ("GET", "POST") else "other"  # clients must not add series
        self._requests.labels(known, status, model).inc()
        if method == "POST":
            self._seconds.labels(status).observe(seconds)
        if UNKNOWN in headers:
            self._unknown.labels(model).inc()
