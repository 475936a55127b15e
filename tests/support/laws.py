"""The run that the laws are tried on, and how to meet it at a step."""

import contextlib
import time
from pathlib import Path

import psutil

from effnet_ray import Recipe

RECIPE = Recipe(
    weights="none", image_size=32, epochs=2, batch_size=8, micro_batch=2, limit=44, lr=1e-3,
    batchnorm="frozen", flip=0.0,
)  # fmt: skip
"""6 steps an epoch, the last one short; 4 lanes, so 3 workers share them unevenly."""

STEPS = 6


def await_step(audit_folder: Path, step: int) -> None:
    """Until some worker has begun a step."""
    until = time.monotonic() + 180
    while not any(audit_folder.glob(f"step-{step:08d}-*")):
        assert time.monotonic() < until, f"no worker came to step {step}"
        time.sleep(0.005)


def await_workers(driver: psutil.Process) -> list[psutil.Process]:
    """Ray Train's workers of a driver, as soon as there are some."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        result = _workers(driver)
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("the run has no workers")


def train_workers(driver: psutil.Process) -> list[psutil.Process]:
    """Ray Train's workers of a driver that started its own Ray."""
    result = _workers(driver)
    assert result, "the run has no workers"
    return result


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    result = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                result.append(process)
    return result
