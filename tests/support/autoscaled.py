"""A real autoscaler on one machine: our cluster file's machines become raylets of this one."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import get_node_ip_address

from effnet_ray.runtime.nodes import ACCELERATOR_LABEL
from support.servers import free_port

ROOT = Path(__file__).parents[2]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip
"""Empty here, but Ray 2.60 wants them."""
IDLE_S = 10
"""After which a machine that nobody uses is given back."""


def node_types(*wanted: str) -> dict[str, Any]:
    """Machines of our own cluster file, what is asked of EC2 left out."""
    config = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    types = config["available_node_types"]
    return {name: {**types[name], "node_config": {}, "idle_timeout_s": IDLE_S} for name in wanted}


@contextmanager
def autoscaled(types: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` finds a cluster of a head and these types.

    Ray 2.60's wheel lacks what its own `fake_multinode` needs, so the provider is named as an
    external one. Only processes of this cluster are ended.
    """
    port, dashboard = free_port(), free_port()
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "fake",
        "max_workers": sum(each["max_workers"] for each in types.values()),
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"{get_node_ip_address()}:{port}",
        },
        "available_node_types": {"ray.head.default": head, **types},
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 8,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in LISTS},
    }
    file, token = folder / "autoscaling.json", folder / "token"
    file.write_text(json.dumps(config))
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "EFFNET_TEST_CLUSTER": str(folder),
    }
    try:
        started = subprocess.run(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--num-cpus=0",
             f"--port={port}", f"--dashboard-port={dashboard}", f"--autoscaling-config={file}",
             f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        yield env
    finally:
        end(folder)


def submit(
    env: Mapping[str, str], *command: str, options: Sequence[str] = (), timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Submit a job, once the head takes jobs, and wait for its end."""
    while True:
        done = subprocess.run(
            [Path(sys.executable).with_name("ray"), "job", "submit", *options, "--", *command],
            env=dict(env), capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
        if "No available agent" not in done.stderr:
            return done
        time.sleep(1)


def trained(
    env: Mapping[str, str], job: str, bucket: str, *flags: str, name: str = "bought"
) -> dict[str, Any]:
    """What a small submitted job says at its end."""
    flags += ("--data", f"{bucket}/digits", "--runs", f"{bucket}/runs", "--name", name)
    flags += (
        "--store",
        f"{bucket}/store",
        "--single-writer",
        "--weights",
        "none",
        "--image-size",
        "32",
    )
    flags += ("--limit", "64", "--batch-size", "16")
    done = submit(env, sys.executable, str(ROOT / f"jobs/{job}.py"), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    last = next(line for line in done.stdout.splitlines() if line[:1] == "{")
    output: dict[str, Any] = json.loads(last)
    return output


def gone(env: Mapping[str, str], within_s: float = 60) -> bool:
    """Whether the cluster comes back to its head alone."""
    until = time.monotonic() + within_s
    while (left := len(machines(env))) > 1 and time.monotonic() < until:
        time.sleep(1)
    return left == 1


def accelerators(env: Mapping[str, str]) -> list[str]:
    """What the machines that were bought have, those given back among them."""
    bought = machines(env, "state!=NEVER")
    return sorted(filter(None, (node["labels"].get(ACCELERATOR_LABEL) for node in bought)))


def machines(env: Mapping[str, str], which: str = "state=ALIVE") -> list[dict[str, Any]]:
    """Machines of the cluster, the head among them; if nothing else is asked, those that live."""
    listed = subprocess.run(
        [Path(sys.executable).with_name("ray"), "list", "nodes", f"--filter={which}",
         "--format=json", "--detail"],
        env={**env, "RAY_ADDRESS": env["RAY_API_SERVER_ADDRESS"]},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    result: list[dict[str, Any]] = json.loads(listed.stdout)
    return result


def end(folder: Path) -> None:
    """Kill the processes that were started with this cluster's environment, and no other."""
    mine = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EFFNET_TEST_CLUSTER") == str(folder):
                mine.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    for process in mine:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(mine, timeout=20)
