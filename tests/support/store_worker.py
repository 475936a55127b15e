"""Publishes and promotes in processes of its own, which may be killed at any step or race.

Reads commands as JSON lines: a list of jobs, each for a child of its own, all let go at once; a
job is {"store", "do": [action, …]}, perhaps with "kill_at", a step, or "kill_after_s". Answers
each with a list of what became of the children: what they said, steps taken, and by which signal
they ended.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import ReleaseError
from effnet_ray.release import publish
from effnet_ray.release.store import ModelStore
from effnet_ray.storage import conditional, local

WEIGHTS = 4_000
"""Bytes."""


def files(run: str, top1: float) -> dict[str, bytes]:
    """What a run releases."""
    return {
        "model.safetensors": (run.encode() + b"|") * (WEIGHTS // (len(run) + 1)),
        "config.json": json.dumps({"run": run}).encode(),
        "metrics.json": json.dumps({"best": {"eval_top1": top1}}).encode(),
        "README.md": f"# {run}".encode(),
    }


def act(store: ModelStore, action: list[Any]) -> Any:
    """Do one thing."""
    match action:
        case ["publish", name, run, top1]:
            return store.publish(name, files(run, top1), {"run": run}).version
        case ["promote", reference, alias]:
            with contextlib.suppress(FileNotFoundError):
                return store.promote(reference, alias, force=True).id
        case ["promote own", name, run, alias]:
            version = store.publish(name, files(run, 0.5), {"run": run}).version
            return version, store.promote(f"{name}@v{version}", alias, force=True).id
        case ["delete", reference]:
            with contextlib.suppress(ReleaseError):  # it is `best`, deleted or not there
                store.delete(reference)
            return None
        case ["gc", stale_after_s]:
            return len(store.gc(stale_after_s).removed)
    raise AssertionError(action)


def main() -> None:
    """Serve commands until stdin ends."""
    for line in sys.stdin:
        print(json.dumps(together(json.loads(line))), flush=True)


def together(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs at once."""
    gate, let_go = os.pipe()
    running = []
    for job in jobs:
        answer, said = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(let_go)
            os.read(gate, 1)  # all are let go by closing it
            child(job, said)
        os.close(said)
        running.append((pid, answer))
    os.close(let_go)
    os.close(gate)
    return [ended(pid, answer) for pid, answer in running]


def ended(pid: int, answer: int) -> dict[str, Any]:
    """What became of a child."""
    with os.fdopen(answer) as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    output: dict[str, Any] = json.loads(text) if text else {}
    return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, **output}


def child(job: dict[str, Any], said: int) -> None:
    """Do a job and say how it went; never returns."""
    steps = count_steps(job.get("kill_at"))
    if "kill_after_s" in job:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
        signal.setitimer(signal.ITIMER_REAL, job["kill_after_s"])
    publish.CLAIM_WAIT_S = job.get("helped_after_s", publish.CLAIM_WAIT_S)
    try:
        store = ModelStore(job["store"], job.get("single_writer", False))
        output: dict[str, Any] = {"said": [act(store, action) for action in job["do"]]}
    except BaseException as error:
        output = {"error": f"{type(error).__name__}: {error}"}
    os.write(said, json.dumps({**output, "steps": steps()}).encode())
    os._exit(0)


def count_steps(kill_at: int | None) -> Callable[[], int]:
    """Count whatever leaves a trace in storage, before and after it; die at the step told."""
    taken = [0]

    def step() -> None:
        if taken[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        taken[0] += 1

    def around(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            step()
            result = original(*arguments, **more)
            step()
            return result

        setattr(owner, name, counted)

    around(storage, "write_bytes")
    around(storage, "delete")
    around(conditional, "swap")
    for name in ("fsync", "link", "replace", "unlink"):
        around(local.os, name)
    return lambda: taken[0]


if __name__ == "__main__":
    main()
