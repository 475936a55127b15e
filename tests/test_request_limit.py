"""What a proxy answers before a replica is asked."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect
from support.servers import free_port

from effnet_ray.inference import request_limit
from effnet_ray.inference.http_connections import MAX_HEADER_BYTES, LimitedConnection
from effnet_ray.inference.http_metrics import HttpMetrics
from effnet_ray.inference.request_limit import RequestLimit


async def answer(request: Request) -> JSONResponse:
    """As many bytes as came, with the status that the request asks for."""
    status = int(request.query_params.get("status", 200))
    headers = {"effnet-model": "birds@v3", "effnet-unknown": "1"} if status == 200 else {}
    content = {
        "bytes": len(await request.body()),
        "timeout": request.headers.get("x-request-timeout-seconds"),
        "disconnect": request.headers.get("x-request-disconnect-disabled"),
    }
    return JSONResponse(content, status_code=status, headers=headers)


@pytest.fixture
def client() -> TestClient:
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    return TestClient(HttpMetrics(RequestLimit(app, max_bytes=1000, max_seconds=5)))


def test_a_request_within_the_limit_arrives_whole(client: TestClient) -> None:
    result = client.post("/", content=bytes(1000))
    assert (result.status_code, result.json()["bytes"]) == (200, 1000)
    assert "retry-after" not in result.headers


def test_a_larger_one_does_not_arrive(client: TestClient) -> None:
    result = client.post("/", content=bytes(1001))
    assert result.status_code == 413 and "larger than 0.001 MB" in result.json()["error"]


@pytest.mark.parametrize(
    ("status", "reason"), [(503, "too many images wait"), (408, "the image waited too long")]
)
def test_one_that_is_turned_away_is_told_when_to_come_back(
    client: TestClient, status: int, reason: str
) -> None:
    result = client.post(f"/?status={status}", content=b"x")
    assert (result.status_code, result.headers["retry-after"]) == (503, "1")
    assert reason in result.json()["error"]


LARGE = 30_000_000
"""Bytes, more than the buffers of sockets hold."""


async def large(_: Request) -> Response:
    return Response(bytes(LARGE))


@pytest.fixture
def port() -> Iterator[int]:
    """Where uvicorn serves `answer` and `large` with limited connections."""
    routes = [Route("/", answer, methods=["POST"]), Route("/large", large)]
    app = RequestLimit(Starlette(routes=routes), max_bytes=100_000, max_seconds=5)
    config = uvicorn.Config(app, port=free_port(), http=LimitedConnection, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield config.port
    server.should_exit = True
    thread.join()


def status(connection: socket.socket) -> int:
    """Of the next answer, which is read to its end."""
    response = HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def test_bodies_are_not_counted_as_headers(port: int) -> None:
    """Not with the start of the next request behind them, either."""
    head, body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", bytes(100_000)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + body + head[:20])
        assert status(connection) == 200
        connection.sendall(head[20:] + body)
        assert status(connection) == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_goes_on_after_its_answer_is_cut_off(port: int, chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 9999999999"
    part = b"4000\r\n" + bytes(0x4000) + b"\r\n" if chunked else bytes(0x4000)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + length + b"\r\n\r\n")
        with suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(part)
        with suppress(ConnectionError):
            while connection.recv(1000):
                pass


@pytest.mark.parametrize("pause_s", [0, 3])
def test_a_client_that_does_not_read_its_answer_is_cut_off(
    port: int, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(LimitedConnection, "max_seconds", 1.0)
    received = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        time.sleep(pause_s)
        with suppress(ConnectionError):
            while data := connection.recv(1_000_000):
                received += len(data)
    assert (received > LARGE) == (pause_s == 0)  # headers come first


def test_a_body_that_is_too_large_is_read_to_its_end_and_the_connection_kept(port: int) -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + bytes(900_000)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert status(connection) == 413


def test_headers_that_are_too_large_are_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nA: " + b"x" * 2 * MAX_HEADER_BYTES)
        assert connection.recv(1000).startswith(b"HTTP/1.1 431")


async def failed(_: Request) -> PlainTextResponse:
    """As Ray Serve answers for a replica that was killed."""
    return PlainTextResponse("The actor died unexpectedly: 10.0.0.3, worker 4711", 500)


def test_a_replica_that_dies_is_a_reason_to_come_back_and_no_look_inside() -> None:
    app = Starlette(routes=[Route("/", failed, methods=["POST"])])
    client = TestClient(RequestLimit(app, max_bytes=1000, max_seconds=5))
    response = client.post("/", content=b"x")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "no replica is ready" in response.json()["error"] and "4711" not in response.text


def test_an_error_of_the_release_stays_one(client: TestClient) -> None:
    response = client.post("/?status=500", content=b"x")
    assert response.status_code == 500 and response.json()["bytes"] == 1


@pytest.mark.parametrize(
    ("asked", "granted"), [("2", "2"), ("5", "5"), ("6", None), ("0", None), ("soon", None)]
)
def test_a_client_may_ask_for_less_time_and_not_for_more(
    client: TestClient, asked: str, granted: str | None
) -> None:
    result = client.post("/", content=b"x", headers={"x-request-timeout-seconds": asked})
    assert result.json()["timeout"] == granted


def test_a_client_that_hangs_up_is_not_computed_for(client: TestClient) -> None:
    result = client.post("/", content=b"x", headers={"x-request-disconnect-disabled": "?1"})
    assert result.json()["disconnect"] is None


def test_an_image_that_does_not_arrive_in_time_is_given_up() -> None:
    """The client has sent a part of it, and keeps the connection open."""
    sent, parts = list[Message](), [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> Message:
        if not parts:
            await asyncio.sleep(60)
        return parts.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    app = RequestLimit(Starlette(), max_bytes=1000, max_seconds=0.05)
    asyncio.run(app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send))
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.05 s" in sent[1]["body"]


def test_requests_that_together_need_too_much_memory_are_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_limit, "MAX_BUFFERED_BYTES", 1000)
    monkeypatch.setattr(request_limit, "MAX_BUFFERED_REQUESTS", 1)
    limit = RequestLimit(Starlette(routes=[Route("/", answer, methods=["POST"])]), 1000, 5)
    client = TestClient(limit)
    limit.buffered = 600  # other requests
    assert client.post("/", content=bytes(400)).json()["bytes"] == 400
    refused = client.post("/", content=bytes(401))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert limit.buffered == 600


def test_a_websocket_is_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass


def sample(client: TestClient, name: str, **labels: str) -> float:
    """A value in what `GET /metrics` answers, read by Prometheus's own parser; 0 if it is not."""
    text = client.get("/metrics").text
    return sum(
        result.value
        for family in text_string_to_metric_families(text)
        for result in family.samples
        if result.name == name and labels.items() <= result.labels.items()
    )


def test_metrics_count_every_request_by_its_answer(client: TestClient) -> None:
    for status in (200, 200, 503, 415):
        client.post(f"/?status={status}", content=b"x")
    client.post("/", content=bytes(1001))
    client.get("/")
    client.request("BREW", "/")
    assert sample(client, "effnet_requests_total", status="200", model="birds@v3") == 2
    counted = {status: sample(client, "effnet_requests_total", status=status)
               for status in ("503", "415", "413", "405")}  # fmt: skip
    assert counted == {"503": 1, "415": 1, "413": 1, "405": 2}
    assert sample(client, "effnet_requests_total", method="other") == 1
    assert sample(client, "effnet_image_seconds_count", status="200") == 2
    assert sample(client, "effnet_unknown_pictures_total", model="birds@v3") == 2
    assert sample(client, "effnet_requests_in_progress") == 0
    assert sample(client, "effnet_requests_total") == 7  # /metrics itself counts for nothing
