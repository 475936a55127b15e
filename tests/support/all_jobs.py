"""Runs every job once, in one process of a cluster: python all_jobs.py PLACE FOLDER."""

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import ray

from effnet_ray.cli.main import load_job, main
from effnet_ray.errors import EvaluationError
from support.servers import free_port

SERVED_S = 90
"""Seconds in which a server begins to serve."""
DEPLOYED_S = 15
"""Seconds from the first answer until the job has asked every replica what it serves."""
Command = tuple[int, str, list[str]]
"""Exit code, job, flags."""


def training(place: str, name: str, *more: str) -> list[str]:
    """Flags of a small run or sweep."""
    flags = ["--data", f"{place}/digits", "--runs", f"{place}/runs", "--store", f"{place}/store"]
    flags += ["--weights", "none", "--image-size", "32", "--limit", "64", "--epochs", "1"]
    flags += ["--batch-size", "16", "--workers", "1", "--gpus-per-worker", "0", "--name", name]
    return [*flags, *more]


def everything(place: str, out: str) -> Iterator[Command]:
    """Every job, and mistakes."""
    store, worker = ["--store", f"{place}/store"], ["--workers", "1", "--gpus-per-worker", "0"]
    pictures = f"{place}/pictures"
    yield 0, "pack", ["--source", pictures, "--out", f"{place}/packed"]
    yield 0, "data", [f"{place}/packed", "--page", f"{place}/data.html"]
    yield 0, "finetune", training(place, "canary", "--tracker", "mlflow")
    yield 0, "tune", training(place, "sweep", "--trials", "2", "--variants", "b0")
    yield 0, "evaluate", ["--model", "canary@v1", *store, "--data", f"{place}/digits", *worker,
                          "--report", f"{place}/report.html"]  # fmt: skip
    yield 0, "predict", ["--model", "canary@v1", *store, "--source", pictures, *worker,
                         "--out", f"{place}/predictions"]  # fmt: skip
    yield 0, "models", ["promote", "canary@v1", "production", *store]
    yield 0, "models", ["export", "canary@v1", *store, "--out", f"{out}/onnx"]
    yield 0, "models", ["list", *store]
    yield 0, "models", ["show", "canary@v1", *store]
    yield 0, "check", training(place, "canary")[:-2]
    yield 2, "evaluate", ["--model", "canary@v9", *store, "--data", f"{place}/digits"]
    yield 2, "predict", ["--model", "canary@v1", *store, "--source", f"{place}/no", "--out", out]
    yield 2, "finetune", training(place, "canary", "--lr", "1")


def serve(place: str) -> int:
    """Serve until an image is answered; the exit code."""
    port = free_port()

    def stop_when_served() -> None:
        until = time.monotonic() + SERVED_S
        while time.monotonic() < until:
            with suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read()
                time.sleep(DEPLOYED_S)
                break
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_served).start()
    words = ["--model", "canary@best", "--store", f"{place}/store", "--port", str(port)]
    return main(load_job("serve"), [*words, "--runtime", "torch"])


@ray.remote(max_retries=0)
def fail(text: str) -> None:
    """A task of ours that fails with a message of a library."""
    raise EvaluationError(text)


if __name__ == "__main__":
    place, out = sys.argv[1], sys.argv[2]
    for code, job, flags in everything(place, out):
        ended = main(load_job(job), flags)
        assert ended == code, f"{job} ended with {ended}"
    assert serve(place) == 0
    ray.init(log_to_driver=True)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    with suppress(EvaluationError, ray.exceptions.RayError):
        ray.get(fail.remote(f"{Path.cwd().name}: http://me:{secret}@host, {secret} is refused"))
    print("all jobs ran")
