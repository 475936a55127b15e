"""A server under load whose processes are killed, and whose store is damaged or gone."""

import http.client
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from sklearn.datasets import load_sample_images
from support.releases import released
from support.servers import free_port

from effnet_ray import storage
from effnet_ray.release.store import ModelStore
from faults.machines import marked, marking

JOB = Path(__file__).parents[2] / "jobs" / "serve.py"
NAME, ALIAS = "birds", "live"
CLIENTS = 4
PROCESSES = {
    "replica": "ray::ServeReplica",
    "proxy": "ray::ProxyActor",
    "controller": "ray::ServeC",
}
STORE_GONE_S = 60.0
QUIET_S = 15.0
"""Seconds of right answers alone after which a disturbance is over."""
LIMIT_S = 180.0
Expected = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One request and its answer."""

    at: float
    """When it was answered."""
    status: int
    """0: the connection broke."""
    right: bool
    """Whether it is 200 with what the release says of the image."""


class Load:
    """Clients that send the same image again and again, in threads."""

    def __init__(self, port: int, image: bytes) -> None:
        self._port, self._image, self._stop = port, image, threading.Event()
        self.answers: list[Answer] = []
        self._expected = json.loads(self._ask()[1])
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/", body=self._image)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                status, body = self._ask()
                right = status == 200 and self._is_expected(json.loads(body))
            except (OSError, http.client.HTTPException):
                status, right = 0, False
                time.sleep(0.1)
            self.answers.append(Answer(time.monotonic(), status, right))

    def _is_expected(self, answer: Expected) -> bool:
        same = all(answer[key] == self._expected[key] for key in ("model", "label"))
        pairs = zip(answer["labels"], self._expected["labels"], strict=True)
        return same and all(abs(a["probability"] - b["probability"]) < 1e-5 for a, b in pairs)


def run_all(runs: int, done: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Servers that see every disturbance once; yields what each disturbance did."""
    released(scratch / "release", store=scratch / "store")
    store = ModelStore(str(scratch / "store"))
    to_damaged = _publish_damaged(store)
    image = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((200, 150)).save(image, "JPEG")
    disturbances: dict[str, Callable[[str], None]] = {
        **dict.fromkeys(PROCESSES, _kill),
        "roll to a damaged release": lambda _: _roll(store, to_damaged),
        "store gone": lambda _: _hide(scratch / "store"),
    }
    for number in range(0, runs, len(disturbances)):
        order = random.Random(number).sample(sorted(disturbances), len(disturbances))
        if number in done:
            continue
        with (
            _served(store.uri) as (port, mark),
            Load(port, image.getvalue()) as load,
        ):
            for offset, kind in enumerate(order):
                result = _disturb(load, lambda kind=kind: disturbances[kind](f"{mark}/{kind}"))
                yield {"run": number + offset, "kind": kind, **result}
                store.promote(f"{NAME}@v1", ALIAS, force=True)


def _disturb(load: Load, act: Callable[[], None]) -> dict[str, Any]:
    """Disturb and wait until all is well again; what clients met."""
    first, start = len(load.answers), time.monotonic()
    act()
    while True:
        time.sleep(0.5)
        answers, now = load.answers[first:], time.monotonic()
        last_bad = max((answer.at for answer in answers if not answer.right), default=start)
        if now - last_bad > QUIET_S and answers and answers[-1].right:
            break
        if now - start > LIMIT_S + STORE_GONE_S:
            break
    statuses = Counter(answer.status for answer in answers if not answer.right)
    failure = "" if answers and answers[-1].right else "no answers"
    failure = failure or ("a wrong answer" if 200 in statuses else "")
    return {
        "failure": failure, "answers": len(answers), "not_answered": dict(statuses),
        "recovered_s": round(last_bad - start, 2),
    }  # fmt: skip


def _kill(where: str) -> None:
    mark, kind = where.split("/")
    for process in marked(mark):
        try:
            if "".join(process.cmdline()).startswith(PROCESSES[kind]):
                return process.kill()
        except psutil.Error:
            continue
    raise RuntimeError(f"there is no {kind}")


def _publish_damaged(store: ModelStore) -> bytes:
    """Publish a second version, one byte of whose weights is then changed.

    Returns the alias's file of the moment when it pointed there: `promote` would refuse it now.
    """
    folder = Path(store.find(f"{NAME}@v1").uri)
    files = json.loads((folder / "release.json").read_text())["files"]
    contents = {file: (folder / file).read_bytes() for file in files}
    second = store.publish(NAME, contents, {"run": "another"})
    store.promote(f"{NAME}@v2", ALIAS)
    alias = Path(store.uri, NAME, "aliases", f"{ALIAS}.json").read_bytes()
    store.promote(f"{NAME}@v1", ALIAS)
    weights = Path(second.uri, "model.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    return alias


def _roll(store: ModelStore, alias: bytes) -> None:
    storage.write_bytes(f"{store.uri}/{NAME}/aliases/{ALIAS}.json", alias)
    time.sleep(10)  # ten looks at the alias


def _hide(store: Path) -> None:
    hidden = store.with_name("hidden")
    store.rename(hidden)
    time.sleep(STORE_GONE_S)
    shutil.rmtree(store, ignore_errors=True)
    hidden.rename(store)


@contextmanager
def _served(store: str) -> Iterator[tuple[int, str]]:
    """A server of two replicas; its port, and the mark of its processes."""
    port = free_port()
    command = [
        sys.executable, str(JOB), "--model", f"{NAME}@{ALIAS}", "--store", store, "--local",
        "--port", str(port), "--follow-every", "1", "--replicas", "2", "--runtime", "torch",
    ]  # fmt: skip
    with marking() as mark:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await(port, process)
            yield port, mark
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _await(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server does not answer")
