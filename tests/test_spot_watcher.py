"""A cloud's spot notice becomes a drain of this machine's Ray node, and nothing else does."""

import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "cluster"))
from spot_watcher import AmazonMetadata, GoogleMetadata  # noqa: E402  # a script of its own, not of the package

TOKEN = "a-token"


class Service(BaseHTTPRequestHandler):
    """A metadata service that wants its token, and says what it is told to."""

    status, notice, delay_s = 404, b"", 0.0

    def do_PUT(self) -> None:
        """A token."""
        requested = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(
            200 if requested and self.path == "/latest/api/token" else 400, TOKEN.encode()
        )

    def do_GET(self) -> None:
        """The notice: EC2's with its token, or Google's with its header."""
        time.sleep(self.delay_s)
        if self.path == "/computeMetadata/v1/instance/preempted":
            allowed = self.headers["Metadata-Flavor"] == "Google"
            self._answer(self.status if allowed else 403, self.notice)
            return
        known = self.headers["X-aws-ec2-metadata-token"] == TOKEN
        there = self.path == "/latest/meta-data/spot/instance-action"
        self._answer(self.status if known and there else 401, self.notice)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[Callable[..., str]]:
    """Sets what the metadata service says; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Told", (Service,), {}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # it hangs up in time
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def say(status: int, notice: bytes = b"", delay_s: float = 0.0) -> str:
        kind = server.RequestHandlerClass
        kind.status, kind.notice, kind.delay_s = status, notice, delay_s  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.server_port}"

    yield say
    server.shutdown()
    server.server_close()


def notice(seconds: float) -> bytes:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()


def test_a_notice_is_read_with_its_time(service: Callable[..., str]) -> None:
    left = AmazonMetadata(service(200, notice(90))).seconds_left()
    assert left is not None and 80 < left <= 90
    assert AmazonMetadata(service(200, notice(-5))).seconds_left() == 0
    assert (
        AmazonMetadata(service(200, b'{"action": "stop", "time": "soon"}')).seconds_left() == 120
    )


@pytest.mark.parametrize(
    ("status", "said", "left"),
    [(200, b"TRUE", 30), (200, b"TRUE\n", 30), (200, b"FALSE", None), (404, b"TRUE", None),
     (503, b"", None), (200, b"", None), (200, b"<html>TRUE</html>", None)],
)  # fmt: skip
def test_googles_notice_is_half_a_minute(
    status: int, said: bytes, left: float | None, service: Callable[..., str]
) -> None:
    assert GoogleMetadata(service(status, said)).seconds_left() == left


NOTICE = b'{"action": "terminate", "time": "2100-01-01T00:00:00Z"}'


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, b""), (500, NOTICE), (503, b""), (403, b""), (200, b""), (200, b"<html>"),
     (200, b"[]"), (200, b'"action"'), (200, b"7"), (200, b'{"time": "2026-01-01T00:00:00Z"}')],
)  # fmt: skip
def test_what_is_no_notice_drains_nothing(
    status: int, said: bytes, service: Callable[..., str]
) -> None:
    assert AmazonMetadata(service(status, said)).seconds_left() is None


def test_a_service_that_hangs_or_is_not_there_drains_nothing(
    service: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spot_watcher.TIMEOUT_S", 0.2)
    metadata = AmazonMetadata(service(200, notice(90), delay_s=1))
    assert metadata.seconds_left() is None
    service(200, notice(90))
    assert metadata.seconds_left() is not None
    assert AmazonMetadata("http://127.0.0.1:1").seconds_left() is None


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na\nb",  # as a token: two header lines
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xc4\x80",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n" + b"[" * 4000,
    ],
)
def test_garbage_drains_nothing_and_the_next_notice_is_read(
    said: bytes, service: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # its own machine needs no proxy
    with raw_service(said) as url:
        metadata = AmazonMetadata(url)
        assert metadata.seconds_left() is None
        metadata._url = service(200, notice(90))
        assert any(metadata.seconds_left() for _ in range(2))  # a token of garbage is renewed


def test_a_service_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot_watcher.TIMEOUT_S", 0.3)
    with raw_service(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n" + b"a" * 60, 0.1) as url:
        looked = threading.Thread(target=AmazonMetadata(url).seconds_left, daemon=True)
        looked.start()
        looked.join(3)  # it drips for ten seconds
        assert not looked.is_alive()


@contextmanager
def raw_service(said: bytes, every_s: float = 0.0) -> Iterator[str]:
    """A server that answers everything with these bytes, or with one of them every so often."""

    class Raw(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(4096)
                for part in [said[i : i + 1] for i in range(len(said))] if every_s else [said]:
                    self.request.sendall(part)
                    time.sleep(every_s)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_expired_token_is_renewed(service: Callable[..., str]) -> None:
    metadata = AmazonMetadata(service(200, notice(90)))
    metadata._token = "an-old-one"
    assert metadata.seconds_left() is None
    assert metadata.seconds_left() is not None


DRAINED = """
import subprocess, sys, time
import ray
from ray._private.state import state
from ray.cluster_utils import Cluster
class Busy:
    def there(self):
        pass
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
busy = ray.remote(num_cpus=1)(Busy).remote()  # an idle node would be gone at once
ray.get(busy.there.remote())
watcher = subprocess.Popen([sys.executable, sys.argv[1], "--address", cluster.address,
                            "--node-id", node.node_id, "--metadata", sys.argv[2]])
sys.stdin.readline()  # the notice is given now
began = time.monotonic()
while node.node_id not in state.get_draining_nodes() and time.monotonic() < began + 30:
    time.sleep(0.05)
drained = list(state.get_draining_nodes())
print(f"drained after {time.monotonic() - began:.2f} s", file=sys.stderr)
code = watcher.wait(timeout=30)
print(code, drained == [node.node_id])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_notice_drains_the_node_for_real(service: Callable[..., str]) -> None:
    url = service(500)
    watched = subprocess.Popen(
        [sys.executable, "-c", DRAINED, str(ROOT / "cluster/spot_watcher.py"), url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(8)  # errors of the service until now
    service(200, notice(90))
    out, err = watched.communicate("now\n", timeout=100)
    assert out.split() == ["0", "True"], err
