"""Checks the cluster that a job is connected to: versions, capacity, GPU memory."""

import math
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import ray

import effnet_ray
from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.placement import Placement
from effnet_ray.preflight.findings import Finding, problem, run_check
from effnet_ray.recipe import Recipe
from effnet_ray.runtime import gpus, nodes, session
from effnet_ray.runtime.nodes import ACCELERATOR_LABEL, Capacity, Machine
from effnet_ray.runtime.session import ResourceRequest
from effnet_ray.variants import Variant

PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "s3fs")
VERSIONS_TIMEOUT_S = 120
"""Seconds for a machine to report its versions, with the time in which it unpacks the working dir.
Chosen, not measured."""
MIN_GPU_IMAGES = 16
"""With fewer images per step a GPU waits for Python: an EfficientNet has hundreds of kernels,
whose launches take longer than so few images. Estimated from timm's benchmark, not measured."""
MEMORY_GB = {
    "T4": 16, "V100": 16, "P100": 16, "L4": 24, "A10G": 24, "L40S": 48, "A100": 40,
    "A100-40G": 40, "A100-80G": 80, "H100": 80, "H20": 96, "H200": 141, "B200": 180,
}  # fmt: skip
"""By Ray's names, from NVIDIA's data sheets; the smallest size if there are several."""


def check_cluster(recipe: Recipe, placement: Placement, uris: Sequence[str]) -> Iterator[Finding]:
    """Checks of the connected cluster. `recipe` is resolved; `uris`: data, runs, store.

    Runs one short task on each machine, and launches no machine.
    """
    yield _check_versions()
    yield from _check_store_durability(uris[-1])
    try:
        request = session.request_resources(placement, uris[:-1])
    except ClusterError as error:
        yield Finding(check="workers", ok=False, found=str(error))
        return
    capacity = nodes.worker_capacity(request.resources_per_worker, request.accelerators)
    yield Finding(check="workers", ok=True, found=_describe_workers(request, placement, capacity))
    if placement.gpus_per_worker:
        machines_with_room = [
            machine
            for machine in nodes.alive_nodes()
            if machine.max_workers(request.resources_per_worker)
        ]
        yield from _check_gpus(recipe, placement, [*machines_with_room, *capacity.machine_types])


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on, in this process, without builds (`+cu130`)."""
    result = {"python": platform.python_version(), "effnet_ray": effnet_ray.__version__}
    for name in PACKAGES:
        try:
            result[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            result[name] = "none"
    return result


def _check_versions() -> Finding:
    """Whether all machines have the versions of this process."""
    expected, machines = versions(), nodes.alive_nodes()
    references = [nodes.task_on(machine, versions).remote() for machine in machines]
    wrong = []
    for machine, reference in zip(machines, references, strict=True):
        try:
            installed = ray.get(reference, timeout=VERSIONS_TIMEOUT_S)
        except Exception as error:  # any kind: this machine would not run a worker either
            wrong.append(f"{machine.name}: {str(error).strip().splitlines()[-1]}")
            continue
        wrong += [
            f"{machine.name} has {name} {installed[name]}, but the driver has {expected[name]}"
            for name in expected
            if installed[name] != expected[name]
        ]
    summary = ", ".join(f"{name} {expected[name]}" for name in ("python", "ray", "torch", "timm"))
    return problem(
        "versions",
        "; ".join(wrong),
        f"{summary} on {len(machines)} machine{'s' if len(machines) > 1 else ''}",
        "install requirements.lock on every machine, and restart Ray there",
    )


def _check_store_durability(store: str) -> Iterator[Finding]:
    """Warn if releases would be lost with the cluster's head."""
    if session.is_submitted_job() and not storage.is_remote(store):
        yield Finding(
            check="store durability",
            ok=True,
            found=f"{store} is a folder on the cluster's head and is deleted with it",
            do="use --store s3://…",
        )


def _describe_workers(request: ResourceRequest, placement: Placement, capacity: Capacity) -> str:
    """Workers that fit now, and machines that the autoscaler would launch."""
    low, high = placement.worker_range
    requested = request.describe(high) if low == high else f"{low} to {request.describe(high)}"
    if capacity.now >= high:
        return f"{requested}: all fit on the running machines"
    if not capacity.machine_types:
        tail = (
            "the machines that the autoscaler can launch are unknown"
            if math.isinf(capacity.maximum)
            else ""
        )
        return f"{requested}: {capacity.now:g} fit now{'; ' if tail else ''}{tail}"
    missing = high - capacity.now
    launches = []
    for machine_type in capacity.machine_types:
        per_machine = machine_type.max_workers(request.resources_per_worker)
        count = min(machine_type.count, max(1, math.ceil(missing / per_machine)))
        launches.append(f"{count:g} {machine_type.name}")
    launched = " or ".join(launches)
    return f"{requested}: {capacity.now:g} fit now, the autoscaler would launch {launched}"


def _check_gpus(
    recipe: Recipe, placement: Placement, machines_with_room: Sequence[Machine]
) -> Iterator[Finding]:
    """The micro-batch against the memory of each accelerator that a worker may get."""
    accelerators = placement.accelerators or sorted(
        {m.labels.get(ACCELERATOR_LABEL, "") for m in machines_with_room}
    )
    share = placement.gpus_per_worker or 0
    for name in accelerators:
        yield check_memory(recipe, name, share)
        yield from _check_computes(name, share, machines_with_room)
    images = (recipe.batch_size or 0) // placement.gpus
    if images < MIN_GPU_IMAGES:
        yield Finding(
            check="batch",
            ok=True,
            found=f"{images} images per step and GPU: so few may leave the GPUs waiting",
            do=f"use fewer --workers, or a --batch-size of {MIN_GPU_IMAGES * placement.gpus}",
        )


def _check_computes(name: str, share: float, machines: Sequence[Machine]) -> Iterator[Finding]:
    """Whether torch computes on GPUs of a type: tried on one running machine, if there is one."""
    check = f"GPU {name}".strip()
    reason = gpus.unsupported_reason(name)
    running = [m for m in machines if m.node_id and m.labels.get(ACCELERATOR_LABEL, "") == name]
    if reason:
        yield Finding(check=check, ok=False, found=reason, do="choose another --accelerator")
    elif running:
        yield run_check(check, lambda: gpus.try_convolution(running[0], share))


def check_memory(recipe: Recipe, accelerator: str, share: float = 1) -> Finding:
    """Whether a resolved recipe's micro-batch fits into a share of the accelerator's memory."""
    size, micro = recipe.image_size, recipe.micro_batch
    assert size is not None and micro is not None
    check = f"memory {accelerator}".strip()
    batch = f"the micro-batch is {micro}"
    if accelerator not in MEMORY_GB:
        gpu = f"of a {accelerator}" if accelerator else "of the GPU"
        return Finding(check=check, ok=True, found=f"the memory {gpu} is unknown; {batch}")
    gigabytes = MEMORY_GB[accelerator] * share
    max_images = images_that_fit(recipe.variant_spec, gigabytes, size, recipe.precision)
    return Finding(
        check=check,
        ok=micro <= max_images,
        found=f"about {max_images:,} images of {size} px fit into {gigabytes:g} GB, {batch}",
        do="lower --micro-batch, or choose another --accelerator" if micro > max_images else "",
    )


def images_that_fit(variant: Variant, gigabytes: float, size: int, precision: str | None) -> int:
    """About how many images fit into the memory; in float32 half as many."""
    return int(variant.images_in(gigabytes, size) / (2 if precision == "float32" else 1))
