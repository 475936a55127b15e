"""Whether workers use GPUs by default, and what those GPUs can compute."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import ray

from effnet_ray.errors import ClusterError
from effnet_ray.placement import Workers
from effnet_ray.runtime import nodes, session
from effnet_ray.runtime.nodes import Machine

CAPABILITY = {"K80": (3, 7), "P100": (6, 0), "P4": (6, 1), "V100": (7, 0), "T4": (7, 5)}
"""CUDA compute capability of the types, by Ray's names, that are older than BFLOAT16 (NVIDIA's
"CUDA GPU Compute Capability")."""
BFLOAT16 = (8, 0)
"""Lowest capability that computes convolutions in bfloat16; older GPUs fall to slow kernels."""

CONVOLUTION_TIMEOUT_S = 120
"""Seconds for a machine to start a process and compute a convolution. Chosen, not measured."""

AnyWorkers = TypeVar("AnyWorkers", bound=Workers)


def with_default_gpus(
    placement: AnyWorkers, connect: Callable[[AnyWorkers], object]
) -> AnyWorkers:
    """The placement with its default GPUs per worker: 1 if there are GPUs, else 0.

    If there are fewer GPUs than workers, several share one. On a cluster, or if this machine has a
    GPU, `connect` is called first: only Ray knows all GPUs, and their types. Raises ClusterError
    for accelerators that there are not.
    """
    if placement.gpus_per_worker == 0:
        return placement
    gpus = 0
    if _may_have_gpus():
        connect(placement)
        gpus = int(nodes.max_resource("GPU", placement.accelerators))
    if placement.gpus_per_worker is not None:
        return placement
    if placement.accelerator and not gpus:
        raise ClusterError(
            f"Ray has no GPU of type {placement.accelerator}, and its autoscaler launches none: "
            "choose another --accelerator, or none"
        )
    share = 1 / math.ceil(placement.worker_range[0] / gpus) if gpus else 0
    return replace(placement, gpus_per_worker=math.floor(share * 10_000) / 10_000)


def _may_have_gpus() -> bool:
    if session.is_connected() or session.is_submitted_job():
        return True
    import torch  # takes a second

    return torch.cuda.device_count() > 0


def have_bfloat16(placement: Workers) -> bool:
    """Whether every GPU that the workers may get computes in bfloat16 at full speed.

    True for CPUs, and for types that are not known to be older.
    """
    if not (placement.gpus_per_worker and session.is_connected()):
        return True
    return all(CAPABILITY.get(kind, BFLOAT16) >= BFLOAT16 for kind in gpu_types(placement))


def unsupported_reason(kind: str) -> str:
    """Why this torch cannot compute on GPUs of a type; empty if it can, or if that is unknown."""
    import torch

    built_for = [arch for arch in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", arch)]
    lowest = min((int(arch.removeprefix("sm_")) for arch in built_for), default=0)
    major, minor = CAPABILITY.get(kind, BFLOAT16)
    if 10 * major + minor >= lowest:
        return ""
    return (
        f"{kind} has compute capability {major}.{minor}, but torch {torch.__version__} has code "
        f"for {lowest // 10}.{lowest % 10} and newer"
    )


def try_convolution(machine: Machine, share: float) -> str:
    """Compute a convolution and its gradient on a share of a GPU of a machine.

    Returns the GPU's name, or that no GPU was free. Raises ClusterError if it fails.
    """
    reference = nodes.task_on(machine, _convolve, num_gpus=share).remote()
    try:
        return str(ray.get(reference, timeout=CONVOLUTION_TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return f"not tried: no GPU was free within {CONVOLUTION_TIMEOUT_S} s"
    except Exception as error:  # any kind: this machine would not train either
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise ClusterError(
            f"a convolution fails on {machine.name} ({reason}): install the driver that this "
            "torch needs, or choose another --accelerator"
        ) from error


def _convolve() -> str:
    import torch

    image = torch.ones(1, 3, 32, 32, device="cuda", requires_grad=True)
    weight = torch.ones(8, 3, 3, 3, device="cuda", requires_grad=True)
    torch.nn.functional.conv2d(image, weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return torch.cuda.get_device_name()


def gpu_types(placement: Workers) -> set[str]:
    """The types of GPUs that workers may get; "" for a machine whose type is not known."""
    if placement.accelerators:
        return set(placement.accelerators)
    machines = [*nodes.alive_nodes(), *(nodes.launchable() or ())]
    return {
        machine.labels.get(nodes.ACCELERATOR_LABEL, "")
        for machine in machines
        if machine.resources.get("GPU")
    }
