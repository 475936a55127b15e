"""The cluster that a job is connected to: what runs on it, and whether it can hold the job."""

import math
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import effnet_ray
from effnet_ray import storage
from effnet_ray.errors import ClusterError
from effnet_ray.placement import Placement
from effnet_ray.preflight.findings import Finding, problem
from effnet_ray.recipe import Recipe
from effnet_ray.runtime import nodes, session
from effnet_ray.runtime.nodes import ACCELERATOR_LABEL, Capacity, Machine
from effnet_ray.runtime.session import ResourceRequest
from effnet_ray.variants import Variant

PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "s3fs")
ANSWER_S = 120
"""A machine unpacks the working dir first."""
MEMORY_GB = {
    "T4": 16, "V100": 16, "P100": 16, "L4": 24, "A10G": 24, "L40S": 48, "A100": 40,
    "A100-40G": 40, "A100-80G": 80, "H100": 80, "H20": 96, "H200": 141, "B200": 180,
}  # fmt: skip
"""By Ray's names, from NVIDIA's data sheets; of those that come with more or less, the less."""


def cluster(recipe: Recipe, placement: Placement, uris: Sequence[str]) -> Iterator[Finding]:
    """Of the cluster this process is connected to. `recipe` is settled; `uris`: data, runs, store.

    Nothing is leased but a moment on each machine, and no machine is bought.
    """
    yield _versions()
    yield from _lasting(uris[-1])
    try:
        lease = session.request_resources(placement, uris[:-1])
    except ClusterError as error:
        yield Finding(check="workers", ok=False, found=str(error))
        return
    room = nodes.worker_capacity(lease.resources_per_worker, lease.accelerators)
    yield Finding(check="workers", ok=True, found=_workers(lease, placement, room))
    if placement.gpus_per_worker:
        holders = [
            each for each in nodes.alive_nodes() if each.max_workers(lease.resources_per_worker)
        ]
        yield from _memory(recipe, placement, [*holders, *room.machine_types])


def versions() -> dict[str, str]:
    """Of what a run's numbers hang on, in this process; the build (`+cu130`) left out."""
    found = {"python": platform.python_version(), "effnet_ray": effnet_ray.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _versions() -> Finding:
    """Whether all machines have this process's."""
    mine, others = versions(), nodes.alive_nodes()
    asked = [
        ray.remote(versions)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False),
        )
        .remote()
        for machine in others
    ]
    wrong = []
    for machine, answer in zip(others, asked, strict=True):
        try:
            found = ray.get(answer, timeout=ANSWER_S)
        except Exception as error:  # of whatever kind: that machine would not run a worker either
            wrong.append(f"{machine.name}: {str(error).strip().splitlines()[-1]}")
            continue
        wrong += [
            f"{machine.name} has {name} {found[name]}, the driver {mine[name]}"
            for name in mine
            if found[name] != mine[name]
        ]
    told = ", ".join(f"{name} {mine[name]}" for name in ("python", "ray", "torch", "timm"))
    return problem(
        "versions",
        "; ".join(wrong),
        f"{told} on {len(others)} machine{'s' if len(others) > 1 else ''}",
        "install requirements.lock on every machine, and start its Ray again",
    )


def _lasting(store: str) -> Iterator[Finding]:
    """Releases in a folder of a cluster's head are gone with it."""
    if session.is_submitted_job() and not storage.is_remote(store):
        yield Finding(
            check="store lasts",
            ok=True,
            found=f"{store} is a folder of the cluster's head, and gone with it",
            do="--store s3://…",
        )


def _workers(lease: ResourceRequest, placement: Placement, room: Capacity) -> str:
    """What there is room for, and what would be bought."""
    low, high = placement.worker_range
    asked = lease.describe(high) if low == high else f"{low} to {lease.describe(high)}"
    if room.now >= high:
        return f"{asked}: the machines that are here have room"
    if not room.machine_types:
        tail = "what its autoscaler may buy is not known here" if math.isinf(room.maximum) else ""
        return f"{asked}: room for {room.now:g} now{'; ' if tail else ''}{tail}"
    missing = high - room.now
    launches = []
    for machine_type in room.machine_types:
        per_machine = machine_type.max_workers(lease.resources_per_worker)
        count = min(machine_type.count, max(1, math.ceil(missing / per_machine)))
        launches.append(f"{count:g} {machine_type.name}")
    bought = " or ".join(launches)
    return f"{asked}: room for {room.now:g} now, the autoscaler would buy {bought}"


def _memory(recipe: Recipe, placement: Placement, holders: Sequence[Machine]) -> Iterator[Finding]:
    """The micro-batch against each accelerator that a worker may come to."""
    wanted = placement.accelerators or sorted(
        {m.labels.get(ACCELERATOR_LABEL, "") for m in holders}
    )
    share = min(1, placement.gpus_per_worker)
    for name in wanted:
        yield memory(recipe, name, share)


def memory(recipe: Recipe, accelerator: str, share: float = 1) -> Finding:
    """Whether a settled recipe's micro-batch fits a share of the accelerator's memory."""
    size, micro = recipe.image_size, recipe.micro_batch
    assert size is not None and micro is not None
    check = f"memory {accelerator}".strip()
    batch = f"the micro-batch is {micro}"
    if accelerator not in MEMORY_GB:
        what = f"a {accelerator}" if accelerator else "its GPU"
        return Finding(check=check, ok=True, found=f"how much {what} has is unknown; {batch}")
    gigabytes = MEMORY_GB[accelerator] * share
    fits = fitting(recipe.variant_spec, gigabytes, size, recipe.precision)
    return Finding(
        check=check,
        ok=micro <= fits,
        found=f"{gigabytes:g} GB hold about {fits:,} images of {size} px, {batch}",
        do="lower --micro-batch, or choose another --accelerator" if micro > fits else "",
    )


def fitting(variant: Variant, gigabytes: float, size: int, precision: str | None) -> int:
    """About how many images fit; in float32 half as many."""
    return int(variant.images_in(gigabytes, size) / (2 if precision == "float32" else 1))
