"""What a proxy answers before a replica is asked."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from effnet_ray.inference.request_limit import RequestLimit


async def answer(request: Request) -> JSONResponse:
    """As many bytes as came, with the status that the request asks for."""
    status = int(request.query_params.get("status", 200))
    return JSONResponse({"bytes": len(await request.body())}, status_code=status)


@pytest.fixture
def client() -> TestClient:
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    return TestClient(RequestLimit(app, max_bytes=1000))


def test_a_request_within_the_limit_arrives_whole(client: TestClient) -> None:
    found = client.post("/", content=bytes(1000))
    assert (found.status_code, found.json()) == (200, {"bytes": 1000})
    assert "retry-after" not in found.headers


def test_a_larger_one_does_not_arrive(client: TestClient) -> None:
    found = client.post("/", content=bytes(1001))
    assert found.status_code == 413 and "larger than 0.001 MB" in found.json()["error"]


def test_one_that_is_turned_away_is_told_when_to_come_back(client: TestClient) -> None:
    found = client.post("/?status=503", content=b"x")
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
