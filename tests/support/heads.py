"""A head of our cluster file, with a token, on this machine."""

import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from support.autoscaled import end
from support.servers import free_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A head that runs."""

    env: Mapping[str, str]
    token: str
    dashboard: int
    """Port."""


@contextmanager
def secured_head(home: Path, cpus: int = 1) -> Iterator[Head]:
    """Started by the very command of `cluster/aws.yaml`, but for ports and the autoscaler."""
    env = environment(home)
    token = secrets.token_hex(32)
    file = home / ".ray/auth_token"
    file.parent.mkdir()
    file.touch(mode=0o600)
    file.write_text(token)
    port = free_port()
    done = start(env, f"--dashboard-port={port}", cpus=cpus)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        env["RAY_AUTH_MODE"] = "token"
        env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        yield Head(env, token, port)
    finally:
        end(home)


def environment(home: Path) -> dict[str, str]:
    """Of somebody whose home this is."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path, "EFFNET_TEST_CLUSTER": str(home)}


def start(env: Mapping[str, str], *flags: str, cpus: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command of our cluster file that starts a head."""
    config = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    command = config["head_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in command and "--dashboard-host=127.0.0.1" in command
    ours = f"--port={free_port()} --dashboard-agent-listen-port={free_port()} --num-cpus={cpus}"
    for old, new in {
        "ulimit -n 65536;": "",  # only root may raise it
        "--port=6379": f"{ours} --disable-usage-stats {' '.join(flags)}",
        "--autoscaling-config=~/ray_bootstrap_config.yaml": "",
    }.items():
        assert old in command
        command = command.replace(old, new)
    return subprocess.run(
        ["bash", "-c", command], env=dict(env), capture_output=True, text=True, timeout=60
    )


def listening(env: Mapping[str, str]) -> dict[int, set[str]]:
    """Port → addresses, of all of the head's processes."""
    result = defaultdict(set)
    for process in processes(env):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                result[connection.laddr.port].add(connection.laddr.ip)
    return result


def processes(env: Mapping[str, str]) -> set[psutil.Process]:
    """The head's. Those that give themselves a title have no environment to be known by."""
    result = set[psutil.Process]()
    for process in psutil.process_iter():
        try:
            if process.environ().get("EFFNET_TEST_CLUSTER") == env["EFFNET_TEST_CLUSTER"]:
                result |= {process, *process.children(recursive=True)}
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return result


def status(method: str, url: str, token: str | None = None) -> tuple[int, str]:
    """What an HTTP server answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, method=method.upper(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
