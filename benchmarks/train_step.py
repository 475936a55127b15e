"""Images/s of a training step, by memory layout, eager and compiled: what fills `speed.TABLE`.

    python benchmarks/train_step.py [--variants b0,b1] [--size 96] [--batch 8] [--no-compiled]
        [--batchnorm frozen --micro-batch 2]

Forward, backward and optimizer through `train.step`, one lane a step, its images on the device.
With `--micro-batch` a step has several lanes, and the contestants compute one at a time, or all at
once. On a GPU a step is also tried with `torch.cuda.set_sync_debug_mode("error")`.
The contestants take turns, the first in turn changing every round; a warm-up, in which compiling
happens, is told apart. Prints a table and, last, one line of JSON. `pays_after_s` is the length of
an eager run from which compiling, from an empty cache, gains more than it takes.
"""

import itertools
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field, replace

import timm
import torch
import tyro
from torch._inductor.utils import fresh_cache

from effnet_ray.data.stream import Lane
from effnet_ray.model import network, optimizer
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, train_step
from effnet_ray.variants import DEFAULT_VARIANTS, LAYOUTS, VARIANTS

CLASSES = 100

HBM_LIMITS = {
    "b0": (15700, 22400), "b1": (9500, 13700), "b2": (7500, 10700), "b3": (4400, 6200),
    "b4": (2072, 2981), "b5": (1028, 1482), "b6": (606, 874), "b7": (348, 502),
}  # fmt: skip
"""Images/s of an NVIDIA H200 at each variant's own size in bfloat16, BatchNorm training, if memory
only moved, at 4.8 TB/s: (eager, compiled). A model, not a measurement: of the bytes that every
convolution's output is moved in, 19 times eagerly (31 with depthwise and squeeze-and-excite), 14
(20) fused. timm's figures for an RTX 3090 are 0.53 to 0.60 of its eager limits, for all eight."""
LIMITED = "H200"


@dataclass(frozen=True)
class Settings:
    """What is measured. A 0 or nothing: on a GPU each variant's own, on a CPU something small."""

    variants: str = ""
    """with commas between; default: all on a GPU, b0,b1 on a CPU"""
    size: int = 0
    """px; default: each variant's own on a GPU, 96 on a CPU"""
    batch: int = 0
    """images per step; default: half of what should fit on a GPU, 8 on a CPU"""
    steps: int = 3
    """steps per round"""
    rounds: int = 7
    """rounds of each contestant"""
    micro_batch: int = 0
    """images per lane; default: all of a step"""
    batchnorm: str = "train"
    """or frozen, as in fine-tuning"""
    compiled: bool = True
    """compiled contestants too"""


def on_gpu() -> bool:
    """Whether it runs on a GPU."""
    return torch.cuda.is_available()


def recipe_of(settings: Settings, variant: str, layout: str, compiled: bool) -> Recipe:
    """One lane from scratch, in the device's own precision."""
    row = VARIANTS[variant]
    size = settings.size or (row.resolution if on_gpu() else 96)
    batch = settings.batch or 8
    if not settings.batch and on_gpu():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        batch = max(1, int(row.images_in(memory / 2, size)))
    recipe = Recipe(
        variant=variant, weights="none", image_size=size, batch_size=batch,
        micro_batch=settings.micro_batch or batch,
        batchnorm=settings.batchnorm, layout=layout, compile=compiled,
    )  # fmt: skip
    return recipe.resolved(row.input_spec(), workers=1, on_gpu=on_gpu())


@dataclass
class Contestant:
    """One way of taking the same steps."""

    recipe: Recipe
    pass_size: int = 0
    """Images computed at once; 0: a lane."""
    first_s: float = 0.0
    """Of the first step, in which compiling happens."""
    rates: list[float] = field(default_factory=list)
    """Images/s of each round."""

    def __post_init__(self) -> None:
        device = torch.device("cuda" if on_gpu() else "cpu")
        spec = replace(
            self.recipe.variant_spec.input_spec(), resolution=self.recipe.image_size or 0
        )
        built = network.build(self.recipe, spec, CLASSES).to(device)
        self.state = TrainState(built, optimizer.optimizer(built, self.recipe))
        self.state.to_device()
        self.state.pass_size = self.pass_size
        self.batch = batch_of(self.recipe, device)
        self.worker = PhaseTrainer(self.state, self.recipe, phases(self.recipe)[0])
        self.worker.warm_up()
        with fresh_cache():  # else what others have compiled is used
            self.first_s = self.seconds(1)
        if on_gpu():
            torch.cuda.set_sync_debug_mode("error")
            batch, whole = self.batch, self.worker.sync_step(self.batch)
            train_step(self.worker, batch, whole.readable, 1e-4)
            torch.cuda.set_sync_debug_mode("default")
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        """What so many steps take."""
        begin = time.perf_counter()
        for _ in range(steps):
            whole = self.worker.sync_step(self.batch)
            train_step(self.worker, self.batch, whole.readable, 1e-4)
            self.state.step += 1
        if on_gpu():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def run(self, steps: int) -> None:
        """One round."""
        self.rates.append(steps * self.recipe.batch_size / self.seconds(steps))

    @property
    def rate(self) -> float:
        """Median images/s."""
        return statistics.median(self.rates)


def batch_of(recipe: Recipe, device: torch.device) -> Batch:
    """A step's lanes of noise, as a stream's views come."""
    random = torch.Generator().manual_seed(0)
    shape = (recipe.batch_size, recipe.image_size or 0, recipe.image_size or 0, 3)
    image = torch.randint(256, shape, dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    label = torch.randint(CLASSES, (recipe.batch_size,), generator=random)
    micro_batch = recipe.micro_batch or 1
    lanes = tuple(Lane(index, micro_batch) for index in range(recipe.lanes))
    weight = torch.ones(len(label), device=device)
    return Batch(image.to(device), label.to(device), weight, lanes, len(label))


def measured(settings: Settings, variant: str) -> dict[str, Contestant]:
    """All contestants of a variant, after their rounds."""
    ways = itertools.product((False, True) if settings.compiled else (False,), LAYOUTS)
    found = {
        f"{layout} {'compiled' if compiled else 'eager'}": Contestant(
            recipe_of(settings, variant, layout, compiled)
        )
        for compiled, layout in ways
        if not settings.micro_batch
    }
    if settings.micro_batch:
        recipe = recipe_of(settings, variant, LAYOUTS[0], compiled=False)
        found = {
            "one lane at a time": Contestant(recipe),
            "all lanes at once": Contestant(recipe, pass_size=recipe.batch_size or 1),
        }
    order = list(found.values())
    for _ in range(settings.rounds):
        for contestant in order:
            contestant.run(settings.steps)
        order = [*order[1:], order[0]]
    return found


def figures(variant: str, found: dict[str, Contestant]) -> dict[str, dict[str, object]]:
    """What is said of each contestant; ratios are medians over rounds, against the first."""
    base = next(iter(found.values()))
    told: dict[str, dict[str, object]] = {}
    for name, each in found.items():
        pairs = zip(each.rates, base.rates, strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        told[name] = {"images_per_s": round(each.rate, 1), "vs_first": round(ratio, 3)}
        if each.recipe.compile:
            spent = each.first_s - base.first_s
            gains = round(spent / (1 - 1 / ratio)) if ratio > 1 else None
            told[name] |= {"compile_s": round(spent, 1), "pays_after_s": gains}
        if limited(each.recipe):
            limit = HBM_LIMITS[variant][bool(each.recipe.compile)]
            told[name]["of_hbm_limit"] = round(each.rate / limit, 2)
    return told


def limited(recipe: Recipe) -> bool:
    """Whether the limits are this device's, at this size."""
    own = recipe.image_size == recipe.variant_spec.resolution and recipe.precision == "bfloat16"
    return on_gpu() and LIMITED in torch.cuda.get_device_name() and own


def show(found: dict[str, Contestant], told: dict[str, dict[str, object]]) -> None:
    """A variant's part of the table."""
    recipe = next(iter(found.values())).recipe
    print(f"{recipe.variant}  {recipe.image_size} px, {recipe.batch_size} images, "
          f"{recipe.precision}, BatchNorm {recipe.batchnorm}")  # fmt: skip
    for name, each in found.items():
        low, high = min(each.rates), max(each.rates)
        others = "".join(f"  {key} {value}" for key, value in told[name].items()
                         if key != "images_per_s")  # fmt: skip
        print(f"  {name:<23} {each.rate:8.1f} images/s  ({low:.1f} to {high:.1f}){others}",
              flush=True)  # fmt: skip


def main(settings: Settings) -> None:
    """Measure one variant after the other, and print."""
    variants = settings.variants or (",".join(DEFAULT_VARIANTS) if on_gpu() else "b0,b1")
    told = {}
    for variant in variants.split(","):
        found = measured(settings, variant)
        told[variant] = figures(variant, found)
        show(found, told[variant])
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(
        json.dumps(
            {
                "variants": told,
                "steps": settings.steps,
                "rounds": settings.rounds,
                "device": torch.cuda.get_device_name() if on_gpu() else "cpu",
                "machine": machine,
                "torch": torch.__version__,
                "timm": timm.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
