"""A loopback proxy before a real S3 server that answers some requests as bad networks do."""

import http.client
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TRICKLE_S = 0.1
"""Seconds between the bytes of a trickle."""

ANSWERS = {
    "503 SlowDown": (503, "SlowDown"),
    "500": (500, ""),
    "502": (502, ""),
    "429": (429, ""),
    "RequestTimeout": (400, "RequestTimeout"),
}
EXPIRED = {"ExpiredToken": (400, "ExpiredToken")}
"""What a request with temporary credentials is answered when they have expired."""
CONDITIONAL = {
    "409 ConditionalRequestConflict": (409, "ConditionalRequestConflict"),
    "501 NotImplemented": (501, "NotImplemented"),
}
"""What only conditional writes are answered."""
SAID = ANSWERS | CONDITIONAL | EXPIRED
BODIES = ("reset", "reset in the body", "short body", "stall", "trickle")
LATE = "late"
"""A right answer after `LATE_S`."""
LATE_S = 2.0
KINDS = (*ANSWERS, *BODIES)
QUICK = tuple(kind for kind in KINDS if kind not in ("stall", "trickle"))
"""Kinds that cost no time."""


@dataclass
class Faults:
    """Which requests fail, and how."""

    kinds: Sequence[str] = ()
    """Taken in turn."""
    share: float = 0.2
    """Of the requests, drawn at random from a fixed seed; 1: all of them."""
    hits: Callable[[str, str], bool] = lambda method, path: True
    """(method, path and query) → whether the request counts."""
    signed_by: str = ""
    """Part of the signatures of the requests that count; empty: all of them."""
    made: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str, signature: str = "") -> str | None:
        """The fault of a request."""
        if not self.kinds or self.signed_by not in signature or not self.hits(method, path):
            return None
        with self._lock:
            if self._random.random() >= self.share:
                return None
            self.made += 1
            return self.kinds[(self.made - 1) % len(self.kinds)]


class Proxy(ThreadingHTTPServer):
    """Passes requests on, signatures and all, but for those that `faults` picks."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        """`upstream`: the server's endpoint."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlparse(upstream).netloc
        self.faults = Faults()
        self.stopping = threading.Event()

    @property
    def endpoint(self) -> str:
        """For AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients leave in the middle: that is what this is for."""


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy."""
    server = Proxy(upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: object) -> None:
        """Quietly."""

    def answer(self) -> None:
        """Any request."""
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        fault = self.server.faults.next(
            self.command, self.path, self.headers.get("Authorization", "")
        )
        if fault in SAID:
            return self._say(*SAID[fault])
        if fault == "reset":
            return self._reset()
        status, headers, answer = self._upstream(body)
        if fault == LATE:
            fault = None if not self.server.stopping.wait(LATE_S) else "reset"
        if fault and (self.command in ("HEAD", "PUT", "POST", "DELETE") or not answer):
            # No body to break: the request was done, but the answer is lost, or late.
            return self._wait() if fault in ("stall", "trickle") else self._reset()
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length", len(answer))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self._body(answer, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # the host too: it is part of the signature
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        result = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return result

    def _say(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>planned</Message></Error>" if code else ""
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _body(self, answer: bytes, fault: str | None) -> None:
        if self.command == "HEAD":
            return
        if not fault:
            self.wfile.write(answer)
            return
        self.wfile.write(answer[: len(answer) // 2])
        self.wfile.flush()
        if fault == "stall":
            return self._wait()
        if fault == "trickle":
            for byte in answer[len(answer) // 2 :]:
                self.wfile.write(bytes([byte]))
                if self.server.stopping.wait(TRICKLE_S):
                    break
        self.close_connection = True
        if fault == "reset in the body":
            self._reset()

    def _wait(self) -> None:
        """Nothing, until the client leaves."""
        self.close_connection = True
        self.connection.settimeout(0.2)
        while not self.server.stopping.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue

    def _reset(self) -> None:
        """RST instead of an answer."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())
