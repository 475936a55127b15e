"""Hundreds of epochs of a small run, with a look at its processes after every epoch."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.stats import linregress
from support.laws import RECIPE, STEPS

from effnet_ray.packing.sample import pack_sample
from faults.steps import StepWatch

JOB = Path(__file__).parents[2] / "jobs" / "finetune.py"
NAME = "long"
WARM_UP = 1 / 3
"""Share of the epochs before the fit: caches fill, and Python's allocator grows."""
PARTS = {
    "driver": "finetune.py", "train workers": "ray::RayTrainWorker", "raylet": "raylet/raylet",
    "gcs": "gcs_server", "controller": "ray::TrainController", "channel": "ray::EventChannel",
}  # fmt: skip
Sample = dict[str, float]


def run_all(epochs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Run once; yields a line for each quantity, with its growth per epoch."""
    if done:
        return
    samples = _samples(epochs, scratch)
    for number, key in enumerate(sorted({key for sample in samples for key in sample})):
        values = np.array([sample.get(key, 0.0) for sample in samples], float)
        fitted = values[round(len(values) * WARM_UP) :]
        fit = linregress(np.arange(len(fitted)), fitted)
        error = float(np.nan_to_num(fit.stderr))  # NaN where the quantity is constant
        yield {
            "run": number, "quantity": key, "epochs": len(values), "first": round(values[0], 1),
            "median": round(float(np.median(fitted)), 1), "last": round(values[-1], 1),
            "per_epoch": round(fit.slope, 5), "error": round(error, 5),
        }  # fmt: skip


def _samples(epochs: int, scratch: Path) -> list[Sample]:
    """Snapshots after every epoch."""
    data, recipe, temporary = scratch / "digits", scratch / "recipe.json", scratch / "tmp"
    pack_sample(str(data))
    recipe.write_text(json.dumps(asdict(replace(RECIPE, epochs=epochs))))
    temporary.mkdir()
    flags = [
        "--local", "--recipe", str(recipe), "--data", str(data), "--runs", str(scratch / "runs"),
        "--store", str(scratch / "store"), "--name", NAME, "--audit", "--workers", "2",
        "--checkpoint-every", "6",
    ]  # fmt: skip
    ray_folder = Path(f"/tmp/effnet-leak-{os.getpid()}")  # a socket's path has at most 107 bytes
    env = {**os.environ, "TMPDIR": str(temporary), "RAY_TMPDIR": str(ray_folder)}
    samples = []
    with StepWatch(scratch / "runs" / NAME / "audit") as watch:
        driver = subprocess.Popen(
            [sys.executable, str(JOB), *flags],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while driver.poll() is None:
                if watch.step // STEPS > len(samples):
                    samples.append(_snapshot(driver.pid, [temporary, ray_folder]))
                time.sleep(0.02)
        finally:
            driver.kill()
    shutil.rmtree(ray_folder, ignore_errors=True)
    if driver.returncode:
        raise RuntimeError(f"the run ended with {driver.returncode}")
    return samples


def _snapshot(driver: int, folders: Sequence[Path]) -> Sample:
    """Memory in MB, open files and threads of each part; files and MB in temporary folders."""
    sample: Sample = {}
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            part = _part(" ".join(process.cmdline()))
            for quantity, amount in (
                ("own memory, MB", process.memory_full_info().uss / 1e6),
                ("open files", process.num_fds()),
                ("threads", process.num_threads()),
            ):
                key = f"{part}: {quantity}"
                sample[key] = sample.get(key, 0) + amount
    for folder in folders:
        sizes = _sizes(folder)
        name = "Ray's folder" if folder == folders[-1] else "TMPDIR"
        sample[f"{name}: files"] = len(sizes)
        sample[f"{name}: MB"] = sum(sizes) / 1e6
    sample["object store: MB"] = shutil.disk_usage("/dev/shm").used / 1e6
    return sample


def _sizes(folder: Path) -> list[int]:
    """Of the files below a folder; the run creates and deletes some meanwhile."""
    sizes = []
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(top, name))
                sizes += [status.st_size] if stat.S_ISREG(status.st_mode) else []
    return sizes


def _part(command: str) -> str:
    matches = (part for part, text in PARTS.items() if text in command)
    return next(matches, "decode tasks and Ray's own")
