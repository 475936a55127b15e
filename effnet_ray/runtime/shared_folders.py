"""Whether every machine of a cluster has a local folder: NFS, Lustre, FSx and the like."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.runtime import nodes

SHARED_ENV = "EFFNET_SHARED"
"""Folders that machines which do not run yet will mount, too; separated by colons."""
PROBE = ".effnet-probe-"
PROBE_TIMEOUT_S = 60
"""Seconds for a machine to start a process and read a file. Chosen, not measured."""


def check_reachable(uris: Sequence[str]) -> None:
    """Raise ClusterError for a local path that some machine of the cluster does not have.

    The driver writes a file into the folder, or takes one that is there if it may not write, and
    every other machine reads it. Machines that the autoscaler may launch cannot be asked: for
    them EFFNET_SHARED must name the folder.
    """
    local = [uri for uri in uris if not storage.is_remote(uri)]
    if not local:
        return
    machines, launchable = nodes.alive_nodes(), nodes.launchable()
    if launchable:
        _check_declared(local)
    if len(machines) > 1:
        for uri in local:
            _probe(uri, machines)


def _check_declared(uris: Sequence[str]) -> None:
    shared = [folder for folder in os.environ.get(SHARED_ENV, "").split(":") if folder]
    for uri in uris:
        if not any(Path(uri).is_relative_to(folder) for folder in shared):
            raise ClusterError(
                f"{uri} is a local folder, and the autoscaler may launch machines without it: use "
                f"an s3:// URI, or set {SHARED_ENV} to a folder that every machine mounts"
            )


def _probe(uri: str, machines: Sequence[nodes.Machine]) -> None:
    """Raise ClusterError unless every machine reads the same file below a folder."""
    file, content, temporary = _probe_file(Path(uri))
    try:
        read = ray.remote(_read)
        references = [
            read.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False),
            ).remote(str(file))
            for machine in machines
        ]
        for machine, reference in zip(machines, references, strict=True):
            if ray.get(reference, timeout=PROBE_TIMEOUT_S) != content:
                raise ClusterError(
                    f"{uri} is a local folder that {machine.name} does not share: use an s3:// "
                    "URI, or a folder that all machines mount"
                )
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(
            f"not every machine could look for {uri} within {PROBE_TIMEOUT_S} s: try again, or "
            "use an s3:// URI"
        ) from None
    finally:
        if temporary:
            file.unlink()


def _probe_file(folder: Path) -> tuple[Path, bytes, bool]:
    """A file of the folder, its first bytes, and whether it was written for this."""
    content = uuid.uuid4().bytes
    file = folder / f"{PROBE}{content.hex()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file, content, True
    except OSError:  # read-only: machines compare what is there
        existing = next((path for path in sorted(folder.rglob("*")) if path.is_file()), folder)
        return existing, _read(str(existing)) or b"", False


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(1024**2)
    except OSError:
        return None
