"""A head of our cluster file answers nobody without the token, and shows no secrets."""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import ray
from ray.core import generated
from ray.util import get_node_ip_address
from support.autoscaled import end, submit
from support.heads import Head, environment, listening, processes, secured_head, start, status
from support.servers import KEY, SECRET, fresh_bucket, s3_environment

from effnet_ray.packing.sample import pack_sample

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
RAY = Path(ray.__file__).parent
ROUTE = re.compile(r"""routes\.(get|post|put|delete)\(\s*["'](/[^"']*)["']""")
PUBLIC = {
    "/", "/favicon.ico", "/api/authentication_mode", "/api/authenticate", "/api/healthz",
    "/api/gcs_healthz", "/api/local_raylet_healthz",
}  # fmt: skip
"""Ray's own list (`dashboard/http_server_head.py`): the page that asks for the token, and whether
something lives."""
OBJECTS = ("/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull")
"""Ray's wheel has no Python for these."""


@pytest.fixture(scope="module")
def head(rclone: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head whose S3 is rclone's."""
    with s3_environment(rclone), secured_head(tmp_path_factory.mktemp("home")) as running:
        yield running


def routes() -> set[tuple[str, str]]:
    """Method and path of everything that Ray's dashboard and its agents know, by their source."""
    result = {
        (method, re.sub(r"\{\w+\}", "x", path))
        for file in (RAY / "dashboard").rglob("*.py")
        for method, path in ROUTE.findall(file.read_text())
    }
    assert len(result) > 60
    return result


def methods() -> Iterator[str]:
    """Every gRPC method that Ray has."""
    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from (f"/{service.full_name}/{each.name}" for each in service.methods)
    yield from OBJECTS


def answers(address: str) -> dict[str, grpc.StatusCode]:
    """What a port answers to every method, called without a token; empty if it is no gRPC."""
    result = {}
    with grpc.insecure_channel(address) as channel:
        for method in methods():
            try:
                channel.unary_unary(method)(b"", timeout=5)
                result[method] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                result[method] = error.code()
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    return {}
    return result


def test_no_route_of_the_dashboard_answers_without_the_token(head: Head) -> None:
    url = f"http://127.0.0.1:{head.dashboard}"
    for method, path in sorted(routes()):
        if path not in PUBLIC:
            assert status(method, url + path)[0] == 401, (method, path)
            assert status(method, url + path, "0" * 64)[0] == 403, (method, path)
    assert status("get", f"{url}/api/version", head.token)[0] == 200


def test_the_dashboard_is_on_loopback_alone(head: Head) -> None:
    assert listening(head.env)[head.dashboard] == {"127.0.0.1"}


def test_every_other_port_wants_the_token_or_tells_only_figures(head: Head) -> None:
    host, kinds = get_node_ip_address(), dict[int, str]()
    for port in listening(head.env):
        called = answers(f"{host}:{port}") or answers(f"127.0.0.1:{port}")
        if called:
            refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
            assert set(called.values()) <= refused and len(set(called.values())) == 2
            kinds[port] = "gRPC"
        elif port != head.dashboard:
            code, said = status("get", f"http://{host}:{port}/x")
            if code == 401:
                kinds[port] = "HTTP"
                for method, path in sorted(routes()):
                    if path not in PUBLIC:
                        assert status(method, f"http://{host}:{port}{path}")[0] == 401
            else:
                assert said.startswith("# HELP") and head.token not in said
                kinds[port] = "figures"
    assert {"gRPC", "HTTP", "figures"} == set(kinds.values()), kinds


def test_without_a_token_it_does_not_start(tmp_path: Path) -> None:
    env = environment(tmp_path)
    try:
        done = start(env)
        assert done.returncode != 0 and "token" in done.stdout + done.stderr
        assert processes(env) == set()
    finally:
        end(tmp_path)


def test_a_job_on_s3_leaves_no_secret_in_arguments_runtime_env_or_logs(head: Head) -> None:
    bucket = fresh_bucket()
    pack_sample(f"{bucket}/digits")
    where = [f"--data={bucket}/digits", f"--runs={bucket}/runs", f"--store={bucket}/store"]
    command = ["python", "jobs/check.py", *where, "--single-writer", "--weights=none"]
    command += ["--workers=1", "--gpus-per-worker=0"]
    done = submit(head.env, *command, options=["--working-dir", str(ROOT)])
    assert done.returncode == 0 and '"ok": true' in done.stdout, done.stdout + done.stderr
    seen = {word for process in processes(head.env) for word in process.cmdline()}
    url = f"http://127.0.0.1:{head.dashboard}/api/jobs/"
    code, output = status("get", url, head.token)
    assert code == 200 and json.loads(output)
    logs = {Path(word.partition("=")[2]) for word in seen if word.startswith("--logs-dir=")}
    files = [file for folder in logs for file in folder.rglob("*") if file.is_file()]
    text = "".join(file.read_text(errors="replace") for file in files)
    assert "jobs/check.py" in text
    for secret in (SECRET, KEY, head.token):
        assert secret not in text and secret not in output and secret not in done.stdout
        assert not any(secret in word for word in seen)
