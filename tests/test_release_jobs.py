"""A mistake in a job that uses a release is one sentence, before Ray starts."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.releases import released

from effnet_ray.cli.models import models_job
from effnet_ray.cli.predict import predict_job
from effnet_ray.cli.serve import serve_job
from effnet_ray.release.store import release_uri

Refused = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> str:
    """With the release birds@v1."""
    released(tmp_path)
    return str(tmp_path / "store")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "birds@v2"], "birds@v2 is not in"),
        (["--model", "birds@v1", "--source", "nowhere"], "nowhere does not exist: check the path"),
        (["--model", "./nowhere"], "./nowhere does not exist: check the path, or pass NAME@vN"),
        (["--model", "birds@v1", "--store", __file__], "is a file: choose a folder"),
        (["--model", "birds@v1", "--source", "ftp://x"], "has the scheme ftp://"),
        (["--model", "birds@v1", "--top", "-1"], "top is -1: expected 1 or more"),
        (["--model", "birds@v1", "--workers", "none"], "workers is 'none'"),
    ],
)
def test_predict_refuses(refused: Refused, store: str, flags: list[str], says: str) -> None:
    usual = ["--store", store, "--source", store, "--out", f"{store}-out"]
    assert says in refused(*usual, *flags, job=predict_job)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "birds@v2"], "birds@v2 is not in"),
        (["--model", "birds@v1", "--port", "0"], "port is 0: expected 1 to 65535"),
        (["--model", "birds@v1", "--max-batch", "0"], "max_batch is 0: expected 1 or more"),
        (["--model", "birds@v1", "--follow-every", "0"], "follow_every is 0 s"),
        (["--model", "birds@v1", "--follow-every", "inf"], "follow_every is inf s: expected more"),
        (["--model", "birds@v1", "--follow-every", "nan"], "follow_every is nan s: expected more"),
        (["--model", "birds@v1", "--max-megabytes", "0"], "max_megabytes is 0.0: expected 0.001"),
        (["--model", "birds@v1", "--max-megabytes", "inf"], "max_megabytes is inf"),
        (["--model", "birds@v1", "--max-megabytes", "1e-9"], "max_megabytes is 1e-09"),
        (["--model", "birds@v1", "--max-megabytes", "2000"], "max_megabytes is 2000.0"),
    ],
)
def test_serve_refuses(refused: Refused, store: str, flags: list[str], says: str) -> None:
    assert says in refused("--store", store, *flags, job=serve_job)


def test_serve_refuses_a_port_in_use_before_ray_starts(refused: Refused, store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--store", store, "--model", "birds@v1", "--port", str(port)]
        sentence = refused(*flags, job=serve_job)
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use): choose" in sentence


@pytest.mark.parametrize(
    ("model", "says"), [("birds@v2", "birds@v2 is not in"), ("birds", "has no version")]
)
def test_export_refuses(refused: Refused, store: str, model: str, says: str) -> None:
    flags = ["export", model, "--store", store, "--out", f"{store}-out"]
    assert says in refused(*flags, job=models_job)


def test_an_alias_means_what_it_was_moved_to(store: str) -> None:
    assert release_uri("birds@best", store) == f"{store}/birds/v0001"
