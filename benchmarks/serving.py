"""The HTTP server: its throughput against a bare ONNX Runtime loop, and how it bears overload.

    python benchmarks/serving.py [--rounds 3] [--seconds 10] [--overload-s 60] [--variant b0]

The bare loop decodes, preprocesses and computes batches of the server's size in one thread, as a
replica does, without HTTP. The server is `jobs/serve.py` with one replica; its clients share the
machine. Capacity is measured with as many connections as keep it busy (closed loop). Then requests
arrive at random (Poisson) at 1.5 times that rate, whether or not earlier ones were answered (open
loop), and in the middle the alias moves to another release. Prints tables and one line of JSON.
"""

import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np
import onnxruntime
import ray
import tyro
from photographs import make
from predict import Settings as ReleaseSettings, untrained

from effnet_ray.data.views import write_eval_view
from effnet_ray.inference.export import export
from effnet_ray.inference.options import ServeOptions
from effnet_ray.release.load import LoadedRelease
from effnet_ray.release.store import ModelStore

ALIAS = "live"
JOB = Path(__file__).parents[1] / "jobs" / "serve.py"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rounds: int = 3
    seconds: float = 10
    """Of each measurement of throughput."""
    overload_s: float = 60
    overload: float = 1.5
    """Arrivals per second, as a multiple of the capacity."""
    connections: int = 64
    images: int = 128
    """Different photographs."""
    variant: str = "b0"
    port: int = 18_437


@dataclass(frozen=True)
class Answered:
    """One request and its answer."""

    status: int
    """0 if the connection failed."""
    seconds: float
    model: str


def second_version(release: LoadedRelease, store: ModelStore) -> None:
    """Publish the same network again, as another run's."""
    folder = Path(release.uri)
    names = json.loads((folder / "release.json").read_text())["files"]
    files = {name: (folder / name).read_bytes() for name in names}
    store.publish("untrained", files, {"run": "another"})


def bare_rate(
    session: onnxruntime.InferenceSession,
    release: LoadedRelease,
    photos: Sequence[bytes],
    seconds: float,
) -> float:
    """Images per second of the loop by hand."""
    size, batch = release.spec.resolution, ServeOptions().max_batch
    views, done, start = np.zeros((batch, size, size, 3), np.uint8), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for slot, view in enumerate(views):
            write_eval_view(photos[(done + slot) % len(photos)], release.spec, view)
        images = np.ascontiguousarray(views.transpose(0, 3, 1, 2))
        session.run(["probabilities"], {session.get_inputs()[0].name: images})
        done += batch
    return done / (time.perf_counter() - start)


async def ask(client: aiohttp.ClientSession, url: str, photo: bytes) -> Answered:
    """One request."""
    start = time.perf_counter()
    try:
        async with client.post(url, data=photo) as response:
            await response.read()
            model = response.headers.get("effnet-model", "")
            return Answered(response.status, time.perf_counter() - start, model)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return Answered(0, time.perf_counter() - start, "")


def connected() -> aiohttp.ClientSession:
    """A client with as many connections as it needs."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
    )


async def closed_loop(url: str, photos: Sequence[bytes], connections: int, s: float) -> float:
    """Answered images per second with this number of connections."""
    done, end = 0, time.perf_counter() + s

    async def worker(client: aiohttp.ClientSession, first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < end:
            answer = await ask(client, url, photos[number % len(photos)])
            done += answer.status == 200
            number += connections

    start = time.perf_counter()
    async with connected() as client:
        await asyncio.gather(*(worker(client, first) for first in range(connections)))
    return done / (time.perf_counter() - start)


async def open_loop(
    url: str, photos: Sequence[bytes], rate: float, s: float, store: ModelStore
) -> list[Answered]:
    """The answers to Poisson arrivals; halfway the alias moves to the second release."""
    draws, tasks = np.random.default_rng(0), list[asyncio.Task[Answered]]()
    start = time.perf_counter()
    arrivals = start + np.cumsum(draws.exponential(1 / rate, int(rate * s)))
    moved = False
    async with connected() as client:
        for number, arrival in enumerate(arrivals.tolist()):
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, url, photos[number % len(photos)])))
            if not moved and arrival - start > s / 2:
                await asyncio.to_thread(store.promote, "untrained@v2", ALIAS, force=True)
                moved = True
        return await asyncio.gather(*tasks)


@contextmanager
def served(store: str, port: int, log: Path) -> Iterator[str]:
    """The job, from its first answer on; ended with Ctrl-C's signal."""
    command = [
        sys.executable, str(JOB), "--model", f"untrained@{ALIAS}", "--store", store,
        "--port", str(port), "--follow-every", "1", "--local",
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}/"
            asyncio.run(_until_ready(url, process))
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


async def _until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    async with connected() as client:
        while process.poll() is None:
            try:
                async with client.get(f"{url}healthz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise SystemExit("the server ended before it answered")


def overload_table(answers: Sequence[Answered]) -> dict[str, object]:
    """Counts and latencies of the open loop."""
    accepted = np.array([a.seconds for a in answers if a.status == 200])
    refused = np.array([a.seconds for a in answers if a.status == 503])
    p50, p99 = np.percentile(accepted, (50, 99)).tolist()
    return {
        "sent": len(answers),
        "statuses": dict(Counter(a.status for a in answers)),
        "accepted_p50_s": round(p50, 3),
        "accepted_p99_s": round(p99, 3),
        "p99_over_p50": round(p99 / p50, 2),
        "refused_p99_s": round(float(np.percentile(refused, 99)), 3) if len(refused) else None,
        "by_release": dict(Counter(a.model for a in answers if a.status == 200)),
    }


def main(settings: Settings) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="effnet-serving-") as name:
        folder, store = Path(name), ModelStore(f"{name}/store")
        make(folder / "photographs", settings.images, width=500, height=375)
        photos = [path.read_bytes() for path in sorted((folder / "photographs").rglob("*.jpg"))]
        size = ReleaseSettings(variant=settings.variant)
        release = untrained(size, store.uri)
        second_version(release, store)  # which the alias moves to
        store.promote("untrained@v1", ALIAS, force=True)
        export(release, f"{name}/onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(f"{name}/onnx/model.onnx", options)
        rates: dict[str, list[float]] = {"bare loop": [], "server": []}
        with served(store.uri, settings.port, folder / "log") as url:
            for _ in range(settings.rounds):
                rates["bare loop"].append(bare_rate(session, release, photos, settings.seconds))
                closed = closed_loop(url, photos, settings.connections, settings.seconds)
                rates["server"].append(asyncio.run(closed))
            medians = {who: statistics.median(each) for who, each in rates.items()}
            arrivals = settings.overload * medians["server"]
            overloaded = open_loop(url, photos, arrivals, settings.overload_s, store)
            table = overload_table(asyncio.run(overloaded))
    print("| | images/s | each round |\n|---|---|---|")
    for who, each in rates.items():
        print(f"| {who} | {medians[who]:.1f} | {', '.join(f'{rate:.1f}' for rate in each)} |")
    print(json.dumps({
        "ratio": round(medians["server"] / medians["bare loop"], 3), "overloaded": table,
        **asdict(settings), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "onnxruntime": onnxruntime.__version__, "ray": ray.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
