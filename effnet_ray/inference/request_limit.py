"""A bound on a request's size, in Ray Serve's proxies, before a replica hears of it.

A proxy takes in whatever is sent, for a replica to read, and has no option that bounds it. What it
does have is a hook for middleware, named by environment (ray 2.60 `serve/_private/http_util.py`,
`configure_http_middlewares`), which its processes inherit from Ray Serve's controller.
"""

import os

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MOST = "EFFNET_REQUEST_BYTES"
PATIENCE = 10
"""A request so many times too large is broken off, without an answer that anybody hears."""


def environment(most: int) -> dict[str, str]:
    """What a proxy must find in its environment, to refuse requests of more bytes."""
    return {HOOK: f"{__name__}:middlewares", MOST: str(most)}


def middlewares() -> list[Middleware]:
    """What Ray Serve calls in each proxy."""
    return [Middleware(RequestLimit, most=int(os.environ[MOST]))]


class RequestLimit:
    """Passes on the requests that are not too large, each once all of it is there."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """`most`: bytes."""
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        whole = await _whole(receive, self._most)
        if whole is None:
            why = f"the request is larger than {self._most / 1e6:g} MB: send a smaller image"
            return await JSONResponse({"error": why}, status_code=413)(scope, receive, send)
        first = [whole]

        async def again() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, again, send)


async def _whole(receive: Receive, most: int) -> Message | None:
    """The request in one message, or that its sender left; None where it is too large.

    A sender listens only when it has sent all, so some more is read, and forgotten.
    """
    parts, size = list[bytes](), 0
    while size <= PATIENCE * most:
        message = await receive()
        if message["type"] != "http.request":
            return message
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        if not message.get("more_body", False):
            break
    if size > most:
        return None
    return {"type": "http.request", "body": b"".join(parts), "more_body": False}
