"""Whether every machine of a cluster has a local folder: NFS, Lustre, FSx and the like."""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray

from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.runtime import nodes

SHARED_ENV = "EFFNET_SHARED"
"""Folders that machines which do not run yet will mount, too; separated by colons."""
PROBE = ".effnet-probe-"
PROBE_TIMEOUT_S = 60
"""Seconds for a machine to start a process and read a file. Chosen, not measured."""
STALE_S = 3600.0
"""A probe that is older belongs to a driver that was killed. Chosen, not measured."""


def check_reachable(uris: Sequence[str]) -> None:
    """Raise ClusterError for a local path that some machine of the cluster does not have.

    The driver writes a file there, or takes one that is there if it may not write, and every
    machine reads it. Machines that the autoscaler may launch cannot be asked: for
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
    """Raise ClusterError unless every machine reads the same file."""
    file, content, temporary = _probe_file(Path(uri))
    references = [nodes.task_on(machine, _read).remote(str(file)) for machine in machines]
    try:
        for machine, reference in zip(machines, references, strict=True):
            if not _reads_the_same(machine, reference, content):
                raise ClusterError(
                    f"{uri} is a local folder that {machine.name} does not share: use an s3:// "
                    "URI, or a folder that all machines mount"
                )
    finally:
        if temporary:
            file.unlink()


def _reads_the_same(
    machine: nodes.Machine, reference: "ray.ObjectRef[bytes | None]", content: bytes
) -> bool:
    """Whether a machine read `content`, or has left the cluster.

    Raises ClusterError if it did not answer.
    """
    try:
        return bool(ray.get(reference, timeout=PROBE_TIMEOUT_S) == content)
    except Exception as error:  # any kind: the machine left, or is too busy
        if nodes.has_left(machine):
            return True  # no worker will start there
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ClusterError(
            f"{machine.name} did not look for a shared folder ({reason}): try again, or use s3:// "
            "URIs"
        ) from error


def _probe_file(folder: Path) -> tuple[Path, bytes, bool]:
    """A file, its first bytes, and whether it was written for this.

    It lies in the folder, or in its nearest parent that exists. In a read-only folder it is one
    that is there already.
    """
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    _delete_stale_probes(folder)
    content = uuid.uuid4().bytes
    file = folder / f"{PROBE}{content.hex()}"
    try:
        file.write_bytes(content)
        return file, content, True
    except OSError:
        file = next((Path(top) / names[0] for top, _, names in os.walk(folder) if names), folder)
        return file, _read(str(file)) or b"", False


def _delete_stale_probes(folder: Path) -> None:
    """Delete probes of killed drivers, as far as this user may."""
    for probe in folder.glob(f"{PROBE}*"):
        with suppress(OSError):
            if probe.stat().st_mtime < time.time() - STALE_S:
                probe.unlink()


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(1024**2)
    except OSError:
        return None
