"""Whether runs that buy their machines ever get stuck: the same again and again, on one cluster.

    python tests/autoscaling_again.py [--job finetune] [--times 20]

A real S3 server, Ray's real autoscaler, machines of `cluster/aws.yaml` as raylets of this one.
Every time a job is submitted to a head without machines, trains, publishes, and the machines go.
Prints a line for each and, last, one line of JSON.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from support.autoscaled import ROOT, autoscaled, gone, node_types, trained
from support.gpus import counted_gpus
from support.servers import fresh_bucket, rclone_server, s3_environment

from effnet_ray.packing.sample import pack_sample

GPUS = ("--workers", "1", "--gpus-per-worker", "0.5", "--epochs", "1")
SWEEP = ("--variants", "b0,b1", "--trials", "3")


@dataclass(frozen=True)
class Settings:
    """What is repeated."""

    job: Literal["finetune", "tune"] = "finetune"
    times: int = 20


def main(settings: Settings) -> None:
    """Repeat and print; a job that fails or hangs ends it with an error."""
    flags = GPUS + (SWEEP if settings.job == "tune" else ())
    seconds = []
    with tempfile.TemporaryDirectory(prefix="effnet-again-") as name:
        folder = Path(name)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ["PYTHONPATH"] = counted_gpus(folder)
        (folder / "s3").mkdir()
        with rclone_server(folder / "s3") as endpoint, s3_environment(endpoint):
            bucket = fresh_bucket()
            pack_sample(f"{bucket}/digits")
            with autoscaled(node_types("gpu-small", "gpu-large"), folder) as env:
                for number in range(settings.times):
                    begin = time.perf_counter()
                    output = trained(env, settings.job, bucket, *flags, name=f"again-{number}")
                    done = time.perf_counter() - begin
                    assert gone(env), "machines that nobody needs are still there"
                    seconds.append(time.perf_counter() - begin)
                    gone_s = seconds[-1] - done
                    print(f"{output['release']}: {done:.0f} s, machines gone {gone_s:.0f} s later")
    print(json.dumps({
        "job": settings.job, "times": len(seconds), "stuck": 0,
        "median_s": round(statistics.median(seconds), 1), "longest_s": round(max(seconds), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings))
