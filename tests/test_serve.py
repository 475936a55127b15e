"""A release behind HTTP: real requests to a real Ray Serve."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from support.releases import released, without_numbers
from support.servers import free_port

from effnet_ray.data.decode import decode
from effnet_ray.data.views import eval_view
from effnet_ray.errors import ClusterError, EvaluationError, ReleaseError
from effnet_ray.inference import http_docs, serve as serves
from effnet_ray.inference.options import ServeOptions
from effnet_ray.inference.serve import deploy, start, stop
from effnet_ray.release.load import LoadedRelease, load_release

pytestmark = pytest.mark.ray

Answer = tuple[int, dict[str, Any]]


class Server:
    """What is served, and how to ask it."""

    def __init__(self, first: LoadedRelease, second: LoadedRelease) -> None:
        self.first, self.second = first, second
        # ONNX Runtime computes in `test_store_jobs` and `test_http_api`; its exports take time.
        self.serving = ServeOptions(
            port=free_port(), top=2, max_megabytes=0.1, max_batch=4, runtime="torch"
        )
        start(self.serving)
        self.roll_to(first)

    def roll_to(self, release: LoadedRelease) -> None:
        """Serve this one."""
        deploy(release.uri, self.serving)

    def ask(self, data: bytes | None, path: str = "/", method: str = "POST") -> Answer:
        """Status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.serving.port, timeout=60)
        connection.request(method, path, body=data)
        answer = connection.getresponse()
        output: Answer = answer.status, json.loads(answer.read())
        connection.close()
        return output

    def counted(self, status: str, model: str = "") -> float:
        """How many images got this answer, as Prometheus is told."""
        connection = http.client.HTTPConnection("127.0.0.1", self.serving.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        line = f'effnet_requests_total{{method="POST",model="{model}",status="{status}"}} '
        return sum(float(row[len(line) :]) for row in text.splitlines() if row.startswith(line))


@pytest.fixture(scope="module")
def server(cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    yield Server(released(folder / "a"), released(folder / "b", seed=5))
    stop()


@pytest.fixture(scope="module")
def photograph(photographs: Path) -> bytes:
    return next(iter(sorted(photographs.rglob("*.jpg")))).read_bytes()


def test_an_image_gets_what_the_release_says_of_it(server: Server, photograph: bytes) -> None:
    status, answer = server.ask(photograph)
    view = torch.tensor(eval_view(decode(photograph), server.first.spec)).permute(2, 0, 1)[None]
    share = server.first.network(view).softmax(1)[0].numpy()
    order = np.argsort(-share, kind="stable")[:2]
    assert (status, answer["model"], answer["label"]) == (200, "birds@v1", str(order[0]))
    assert [each["label"] for each in answer["labels"]] == [str(k) for k in order]
    assert np.allclose([each["probability"] for each in answer["labels"]], share[order], atol=1e-5)


def together(server: Server, files: list[bytes]) -> list[Answer | Exception]:
    """Answers to requests that are under way at once; one that fails is its error."""
    answers: dict[int, Answer | Exception] = {}

    def ask(number: int) -> None:
        try:
            answers[number] = server.ask(files[number])
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(files))]


def first_probability(answer: Answer | Exception) -> float:
    assert not isinstance(answer, Exception), answer
    probability: float = answer[1]["labels"][0]["probability"]
    return probability


def test_ten_batches_of_requests_that_come_together_get_each_its_own_answer(
    server: Server, photographs: Path
) -> None:
    files = [path.read_bytes() for path in sorted(photographs.rglob("*.*"))[:8]]
    alone = [first_probability(server.ask(data)) for data in files]
    assert len({round(share, 4) for share in alone}) == len(files)  # no two are answered alike
    answers = together(server, files * 5)
    assert [first_probability(each) for each in answers] == pytest.approx(alone * 5, abs=1e-5)


@pytest.mark.parametrize(
    ("data", "path", "method", "status", "says"),
    [
        (b"no image", "/", "POST", 415, "not a readable image"),
        (b"", "/", "POST", 415, "not a readable image"),
        (bytes(200_000), "/", "POST", 413, "larger than 0.1 MB"),
        (bytes(200_000), "/elsewhere", "POST", 413, "larger than 0.1 MB"),  # so not by a replica
        (None, "/elsewhere", "GET", 404, "POST an image to /"),
        (b"x", "/", "PUT", 405, "expected GET, or POST"),
    ],
)
def test_what_is_no_image_is_refused(
    server: Server, data: bytes | None, path: str, method: str, status: int, says: str
) -> None:
    actual, answer = server.ask(data, path, method)
    assert actual == status and says in answer["error"]


def test_a_browser_gets_a_page_and_a_program_a_description(
    server: Server, photograph: bytes
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.serving.port, timeout=60)
    connection.request("GET", "/", headers={"accept": "text/html,*/*"})
    answer = connection.getresponse()
    page = answer.read().decode()
    assert answer.headers["content-type"].startswith("text/html") and "birds@v1" in page
    assert answer.headers["content-security-policy"] == http_docs.POLICY
    connection.close()
    status, description = server.ask(None, "/openapi.json", "GET")
    assert status == 200
    assert set(description["paths"]) == {"/", "/healthz", "/openapi.json", "/metrics"}
    assert server.ask(photograph, "/?map=1")[1]["map"].startswith("data:image/jpeg;base64,")
    assert "map" not in server.ask(photograph)[1]


def test_an_image_that_waits_too_long_is_given_up_and_others_are_answered(
    server: Server, photograph: bytes
) -> None:
    before = server.counted("503")
    connection = http.client.HTTPConnection("127.0.0.1", server.serving.port, timeout=60)
    headers = {"x-request-timeout-seconds": "0.001"}
    connection.request("POST", "/", body=photograph, headers=headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "waited too long" in json.loads(answer.read())["error"]
    connection.close()
    assert server.counted("503") == before + 1
    assert server.ask(photograph)[0] == 200


def test_metrics_name_the_release_that_answered(server: Server, photograph: bytes) -> None:
    before = server.counted("200", "birds@v1")
    server.ask(photograph)
    assert server.counted("200", "birds@v1") == before + 1


def test_it_says_what_it_serves(server: Server) -> None:
    assert server.ask(None, "/healthz", "GET") == (200, {"ok": True, "model": "birds@v1"})
    answer = server.ask(None, "/", "GET")[1]
    assert answer["classes"] == list(server.first.classes)
    assert answer["release_uri"] == server.first.uri


def test_rolling_to_another_release_ends_no_replica_and_drops_no_request(
    server: Server, photograph: bytes
) -> None:
    before = server.ask(None, "/", "GET")[1]["replica"]
    over, seen = threading.Event(), list[Answer | Exception]()

    def hammer() -> None:
        while not over.is_set():
            seen.extend(together(server, [photograph] * 4))

    thread = threading.Thread(target=hammer)
    thread.start()
    server.roll_to(server.second)
    over.set()
    thread.join()
    assert [answer for answer in seen if isinstance(answer, Exception) or answer[0] != 200] == []
    now = server.ask(None, "/", "GET")[1]
    assert (now["release_uri"], now["replica"]) == (server.second.uri, before)
    server.roll_to(server.first)


def test_where_ray_serve_runs_already_it_is_left_alone(server: Server) -> None:
    with pytest.raises(ClusterError, match="already runs on this cluster"):
        start(server.serving)
    assert server.ask(None, "/healthz", "GET")[0] == 200


def test_a_release_that_was_altered_is_not_rolled_to(server: Server, tmp_path: Path) -> None:
    other = released(tmp_path)
    weights = Path(other.uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ReleaseError):
        load_release(other.uri, "")
    with pytest.raises(ReleaseError):
        server.roll_to(other)
    assert server.ask(None, "/healthz", "GET")[0] == 200


def test_what_a_replica_cannot_open_is_not_changed_to_and_that_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, before = released(tmp_path), server.ask(None, "/", "GET")[1]

    def load_and_delete(uri: str, store: str) -> LoadedRelease:
        """The driver loads the release; before a replica does, it is gone."""
        loaded = load_release(uri, store)
        shutil.rmtree(loaded.uri)
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(serves, "load_release", load_and_delete)
        with pytest.raises(
            EvaluationError, match=f"still served: {before['release_uri']}"
        ) as refused:
            server.roll_to(gone)
    assert isinstance(refused.value.__cause__, ReleaseError)  # the replica's own
    assert server.ask(None, "/", "GET")[1] == before
    server.roll_to(server.second)
    assert server.ask(None, "/", "GET")[1]["release_uri"] == server.second.uri
    server.roll_to(server.first)


def test_what_a_replica_could_not_open_at_first_is_asked_for_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, away = released(tmp_path), tmp_path / "away"

    def load_and_move_away(uri: str, store: str) -> LoadedRelease:
        """The driver loads the release; a replica's first look does not find it."""
        loaded = load_release(uri, store)
        shutil.move(loaded.uri, away)
        return loaded

    def pauses() -> Iterator[float]:
        yield 0
        shutil.move(away, late.uri)
        yield 0

    with monkeypatch.context() as patch:
        patch.setattr(serves, "load_release", load_and_move_away)
        patch.setattr(serves, "PAUSES_S", pauses())
        server.roll_to(late)
    assert server.ask(None, "/", "GET")[1]["release_uri"] == late.uri
    server.roll_to(server.first)


def test_a_killed_proxy_is_replaced(server: Server) -> None:
    (name,) = (
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["name"].startswith("SERVE_PROXY_ACTOR")
    )
    ray.kill(ray.get_actor(name, namespace="serve"))
    with suppress(OSError):  # it may take a moment to die
        while True:
            server.ask(None, "/healthz", "GET")
    while True:  # the test's own limit ends it
        with suppress(OSError):
            assert server.ask(None, "/healthz", "GET")[0] == 200
            break
        time.sleep(0.1)


def test_ray_serve_knows_the_variable_that_checks_the_proxy_more_often() -> None:
    """Its name may change with Ray; an unknown one is ignored."""
    expression = (
        "from ray.serve._private import constants as c; print(c.PROXY_HEALTH_CHECK_PERIOD_S)"
    )
    done = subprocess.run(
        [sys.executable, "-c", expression], env=os.environ | serves.PROXY_CHECKS,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == 1.0


def test_once_a_release_is_deployed_no_replica_answers_with_another(server: Server) -> None:
    two = replace(server.serving, replicas=2)
    try:
        for release in (server.first, server.second):
            deploy(release.uri, two)
            answers = [server.ask(None, "/", "GET")[1] for _ in range(40)]
            assert {each["release_uri"] for each in answers} == {release.uri}
            assert len({each["replica"] for each in answers}) == 2
    finally:
        server.roll_to(server.first)


def test_an_answer_that_is_no_number_is_an_error_that_names_the_release(
    server: Server, photograph: bytes, tmp_path: Path
) -> None:
    server.roll_to(without_numbers(released(tmp_path)))
    status, answer = server.ask(photograph)
    assert status == 500
    assert "birds@v1" in answer["error"] and "NaN or infinite logits" in answer["error"]
    server.roll_to(server.first)
