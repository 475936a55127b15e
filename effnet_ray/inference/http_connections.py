"""Limits on connections to Ray Serve's proxy, outside of the requests that it forwards.

uvicorn 0.54 keeps a connection for ever that sends nothing, whose headers never end, whose body
never ends after its answer, or that never reads its answer, and its parser keeps headers of any
size. Ray Serve 2.60 passes it no
option that limits any of these, so `install` replaces the class that uvicorn chooses by itself
(`uvicorn/protocols/http/auto.py`).
"""

import json
from asyncio import Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 65_536
"""h11's limit in uvicorn. What arrives together, up to 256 kB, is looked at together."""


class LimitedConnection(HttpToolsProtocol):
    """A connection that gets 431 for large headers, and 408 if they do not arrive in time.

    If its answer is not read in time, it is cut off.
    """

    max_seconds = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: Any = None
        """Set while headers are awaited."""
        self._header_bytes = 0
        self._write_timer: Any = None
        """Set while an answer waits to be read."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived: of headers, of a body, or of both."""
        if self.cycle and self.cycle.response_complete and not self.cycle.more_body:
            self._await_headers()
        timer = self._timer
        super().data_received(data)
        if not timer or timer is not self._timer:
            return  # these bytes are not headers alone
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A request's first byte has arrived, maybe while another one is answered."""
        self._await_headers()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """All headers of a request have arrived."""
        self._stop_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """An answer was sent. A client that still sends its request is cut off: uvicorn would read
        on without a limit of bytes or time."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More of an answer waits than asyncio likes to buffer, 64 kB."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.max_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read most of it."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    def _await_headers(self) -> None:
        if not self._timer:
            self._header_bytes = 0
            reason = f"the request did not arrive within {self.max_seconds:g} s"
            self._timer = self.loop.call_later(self.max_seconds, self._refuse, 408, reason)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, reason: str) -> None:
        """Answer and close the connection."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = json.dumps({"error": reason}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def install(max_seconds: float) -> None:
    """Make uvicorn use this class in this process, from its next server on."""
    LimitedConnection.max_seconds = max_seconds
    auto.AutoHTTPProtocol = LimitedConnection
