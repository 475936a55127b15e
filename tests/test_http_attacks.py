"""What the HTTP server survives: slow, large, malformed and many requests to a real Ray Serve."""

import http.client
import json
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.releases import released
from support.servers import free_port

from effnet_ray.inference.http_connections import MAX_HEADER_BYTES
from effnet_ray.inference.options import ServeOptions
from effnet_ray.inference.serve import deploy, start, stop

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]
"""The short version, without Ray, is in `test_request_limit`."""

MAX_SECONDS = 4.0
MAX_GROWTH = 500_000_000
"""Bytes by which the server's processes may grow in a test: 64 MB of bodies, and 100 kB of each of
4,000 connections; malloc keeps what was freed."""
PATIENCE_S = 60.0
"""Seconds after which an answer will not come any more."""
HOST = b"Host: x\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


class Target:
    """A server, and what is sent to it."""

    def __init__(self, folder: Path) -> None:
        # Requests of 100 kB, so that larger ones take no time.
        self.options = ServeOptions(port=free_port(), top=2, max_megabytes=0.1, max_batch=4,
                                    runtime="torch", max_seconds=MAX_SECONDS)  # fmt: skip
        start(self.options)
        deploy(released(folder).uri, self.options)

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.options.port), timeout=PATIENCE_S)

    def send(self, data: bytes) -> bytes:
        """All that the server answers until it closes the connection."""
        with self.connect() as connection:
            with suppress(OSError):  # it may close before it has read everything
                connection.sendall(data)
            return received(connection)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Status and text of an honest request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.options.port, timeout=PATIENCE_S)
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def processes(self) -> list[psutil.Process]:
        """The proxy that listens, and the replicas of its Ray."""
        proxy = next(
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == self.options.port
        )
        siblings = psutil.Process(psutil.Process(proxy).ppid()).children()
        replicas = [each for each in siblings if "ServeReplica" in " ".join(each.cmdline())]
        return [psutil.Process(proxy), *replicas]

    def memory(self) -> int:
        """Bytes of memory of these."""
        return sum(process.memory_info().rss for process in self.processes())


def received(connection: socket.socket) -> bytes:
    """All bytes until the end of a connection."""
    parts = list[bytes]()
    with suppress(OSError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def target(cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield Target(tmp_path_factory.mktemp("attacked"))
    stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def survived(target: Target, photographs: Path) -> Iterator[Callable[[], None]]:
    """Checks that the same processes answer an image and have not grown; also done at the end."""
    before, memory = set(target.processes()), target.memory()
    image = next(iter(sorted(photographs.rglob("*.jpg")))).read_bytes()

    def check() -> None:
        status, text = target.ask("POST", "/", image)
        assert status == 200 and json.loads(text)["model"] == "birds@v1"
        assert set(target.processes()) == before and len(before) == 2
        assert target.memory() - memory < MAX_GROWTH

    check()
    yield check
    check()


# --- requests that are no HTTP, or two readings of it


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 4000,
        bytes(range(256)) * 20,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x7f" * 500,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT other:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        HEALTHZ + b"Folded: a\r\n b\r\n\r\n",
        HEALTHZ + b"Content-Length : 1\r\n\r\nx",
        HEALTHZ + b"No colon\r\n\r\n",
        POST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + HEALTHZ + b"\r\n",
        POST + CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n" + HEALTHZ + b"\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 5\r\n\r\nxGET ",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1e3\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_gets_one_400_and_the_connection_is_closed(
    target: Target, data: bytes
) -> None:
    """By uvicorn, as text: the request does not reach the application."""
    answer = target.send(data)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer and b"birds" not in answer
    assert target.ask("GET", "/healthz")[0] == 200


def test_two_requests_in_one_body_stay_one_request(target: Target) -> None:
    inner = HEALTHZ + b"\r\n"
    length = b"Content-Length: %d\r\n" % len(inner)
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    for request in (POST + length + CLOSE + inner, POST + CHUNKED + CLOSE + chunk):
        answer = target.send(request)
        assert answer.startswith(b"HTTP/1.1 415 ") and answer.count(b"HTTP/1.1") == 1


# --- requests that are HTTP, and odd


def typed(answer: bytes) -> tuple[int, str]:
    """Status and error of an answer of the application: JSON, and said to be."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head, answer[:500]
    return int(head.split()[1]), str(json.loads(body).get("error", ""))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET // HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET //healthz HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET /%ff%zz%00 HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET /x%0d%0aSet-Cookie:a HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET http://169.254.169.254/latest HTTP/1.1\r\n" + HOST + CLOSE, 404),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\n" + CLOSE, 200),  # without a host
        (HEALTHZ + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" + CLOSE, 200),
        (b"DELETE / HTTP/1.1\r\n" + HOST + CLOSE, 405),
        (b"PATCH / HTTP/1.1\r\n" + HOST + CLOSE, 405),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"X-Secret: echoed\r\n" + CLOSE, 405),
        (b"PROPFIND / HTTP/1.1\r\n" + HOST + CLOSE, 405),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X-HTTP-Method-Override: DELETE\r\n" + CLOSE, 200),
        (POST + b"X-HTTP-Method-Override: GET\r\nContent-Length: 1\r\n" + CLOSE + b"x", 415),
        (POST + b"Content-Type: application/json\r\nContent-Length: 2\r\n" + CLOSE + b"{}", 415),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n" + CLOSE + b"\x1f\x8b\x08", 415),
        (POST + b"Content-Type: text/html\r\nContent-Length: 8\r\n" + CLOSE + b"<script>", 415),
        (POST + b"serve_multiplexed_model_id: ../x\r\nContent-Length: 1\r\n" + CLOSE + b"x", 415),
        (POST + CHUNKED + CLOSE + b"1;a=b\r\nx\r\n0\r\n\r\n", 415),
    ],
)  # fmt: skip
def test_an_odd_request_gets_the_applications_typed_answer(
    target: Target, data: bytes, status: int
) -> None:
    answer = target.send(data)
    assert typed(answer)[0] == status
    assert not any(word in answer.lower() for word in (b"root:", b"echoed", b"set-cookie"))


def test_a_websocket_is_refused(target: Target) -> None:
    answer = target.send(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_what_ray_serve_answers_itself_names_only_the_application(target: Target) -> None:
    """Its proxy's own paths do not reach the application (2.60 `serve/_private/proxy.py`)."""
    assert target.ask("GET", "/-/routes") == (200, '{"/":"effnet_ray"}')
    assert target.ask("GET", "/-/healthz") == (200, "success")
    answer = target.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + CLOSE)
    assert answer.startswith(b"HTTP/1.1 404 ") and b"text/plain" in answer


def test_a_body_of_many_parts_is_no_image(target: Target, survived: Callable[[], None]) -> None:
    part = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
    body = part * (90_000 // len(part))
    head = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n" % len(body)
    for _ in range(20):
        status, error = typed(target.send(POST + head + CLOSE + body))
        assert status == 415 and "not a readable image" in error


# --- large requests


def stream(target: Target, head: bytes, part: bytes, count: int) -> bytes:
    """The answer to a request of many parts; sending ends where the server closes."""
    with target.connect() as connection:
        with suppress(OSError):
            connection.sendall(head)
            for _ in range(count):
                connection.sendall(part)
        return received(connection)


ENDLESS = {
    "a header": (HEALTHZ + b"A: ", b"a" * 100_000),
    "headers": (HEALTHZ, b"A: b\r\n" * 10_000),
    "a path": (b"GET /", b"a" * 1000),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_headers_without_end_are_cut_off(
    target: Target, survived: Callable[[], None], what: str
) -> None:
    head, part = ENDLESS[what]
    begun = time.monotonic()
    for _ in range(5):
        answer = stream(target, head, part, 100_000_000 // len(part))
        # A client that still sends may lose the answer with the connection.
        assert not answer or answer.split()[1] in (b"431", b"400")
    assert time.monotonic() - begun < PATIENCE_S


def test_headers_of_the_largest_size_are_read_and_larger_ones_refused(target: Target) -> None:
    almost = HEALTHZ + b"A: " + b"a" * (MAX_HEADER_BYTES - 1000) + b"\r\n" + CLOSE
    assert typed(target.send(almost))[0] == 200
    with (
        target.connect() as connection
    ):  # without an end, so that nothing is sent after the answer
        connection.sendall(HEALTHZ + b"A: " + b"a" * MAX_HEADER_BYTES)
        status, error = typed(received(connection))
    assert status == 431 and "the headers are larger than 65536 bytes" in error


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_without_end_are_cut_off(
    target: Target, survived: Callable[[], None], chunked: bool
) -> None:
    part = b"x" * 50_000
    if chunked:
        head, part = POST + b"Transfer-Encoding: chunked\r\n\r\n", b"c350\r\n" + part + b"\r\n"
    else:
        head = POST + b"Content-Length: 9999999999999\r\n\r\n"
    for _ in range(5):
        answer = stream(target, head, part, 4000)  # 200 MB
        assert not answer or typed(answer[: answer.index(b"}") + 1])[0] in (413, 408)


def test_many_small_chunks_are_one_body(target: Target, survived: Callable[[], None]) -> None:
    answer = target.send(POST + CHUNKED + CLOSE + b"1\r\nx\r\n" * 50_000
                         + b"0\r\n\r\n")  # fmt: skip
    assert typed(answer)[0] == 415


# --- slow and many clients


@contextmanager
def crowd(target: Target, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """This many connections that have each sent this."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(target.connect())
            connection.sendall(data)
            connections.append(connection)
        yield connections


def drip(connections: Sequence[socket.socket], part: bytes) -> dict[socket.socket, bytes]:
    """Send a part again and again until the server has closed every connection; the answers."""
    answers = dict.fromkeys(connections, b"")
    until = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as waiting:
        for connection in connections:
            waiting.register(connection, selectors.EVENT_READ)
        while waiting.get_map():
            assert time.monotonic() < until, f"{len(waiting.get_map())} connections are open"
            for key, _ in waiting.select(0.5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    data = connection.recv(65536)
                except OSError:
                    data = b""
                answers[connection] += data
                if not data:
                    waiting.unregister(connection)
            for key in list(waiting.get_map().values()):
                with suppress(OSError):
                    key.fileobj.send(part)  # type: ignore[union-attr]
    return answers


SLOW = {
    "nothing": (b"", b""),
    "headers": (b"GET / HTTP/1.1\r\nHo", b"s"),
    "lines": (b"", b"\r\n"),
    "second requests": (HEALTHZ + b"\r\nGET / HT", b""),
    "bodies": (POST + b"Content-Length: 90000\r\n\r\n", b"x"),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_clients_are_sent_away_and_others_answered_meanwhile(
    target: Target, survived: Callable[[], None], what: str
) -> None:
    begin, part = SLOW[what]
    with crowd(target, 100, begin) as connections:
        survived()
        answers = drip(connections, part)
    for answer in answers.values():
        status, error = typed(answer[answer.rindex(b"HTTP/1.1") :])
        assert status == 408 and f"did not arrive within {MAX_SECONDS:g} s" in error


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_open_connections_do_not_keep_others_out(
    target: Target, survived: Callable[[], None], count: int
) -> None:
    """As many as the proxy may open files; Ray raises that limit to the machine's."""
    proxy = target.processes()[0].rlimit(psutil.RLIMIT_NOFILE)[0]
    if min(proxy, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < count + 500:
        pytest.skip("this machine allows fewer open files")
    with crowd(target, count, b"GET / HTTP/1.1\r\nHo") as connections:
        survived()
        until = time.monotonic() + PATIENCE_S
        while (left := len(connected(target))) > 20 and time.monotonic() < until:
            time.sleep(0.2)
        assert left <= 20, f"{left} connections are open"
        assert all(b" 408 " in received(connection) for connection in connections)


def connected(target: Target) -> list[object]:
    """The server's side of its connections."""
    everything = target.processes()[0].net_connections("tcp")
    return [
        each
        for each in everything
        if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == target.options.port
    ]


@pytest.mark.long
def test_many_bodies_at_once_do_not_fill_the_memory(
    target: Target, survived: Callable[[], None]
) -> None:
    """Of 4,000 times 99 kB the proxy holds 64 MB, and each connection some 70 kB not yet read."""
    body, before = os.urandom(99_000), target.memory()
    head = POST + b"Content-Length: 99001\r\n\r\n"
    for _ in range(2):
        with crowd(target, 4000, head + body) as connections:  # the last byte does not come
            assert target.memory() - before < MAX_GROWTH
            answers = [received(connection) for connection in connections]
        assert {typed(answer)[0] for answer in answers if answer} <= {408, 503}
