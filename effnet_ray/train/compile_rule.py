"""Which runs are compiled by default: those on this machine's CPUs that earn the minutes back."""

from collections import Counter

from effnet_ray.model.compile import compiler_works
from effnet_ray.phases import phase_at, size_at
from effnet_ray.recipe import Recipe

MIN_EAGER_S = 1800
"""Seconds of training per image size from which a run is compiled: twice the longest time after
which compiled steps were ahead, compilation included. That was 191 s with b0 and 312 s with b1 in
one process, and 930 s with b0 in two workers of a core each, whose steps became 1.12 times as fast
after 100 s of compilation (`benchmarks/results/train_step.txt`).

On a GPU nothing was measured, so no run is compiled there unless its recipe says so."""
CPU_CORE_SLOWDOWN = 288
"""How many times as long one CPU core takes for an image as the RTX 3090 of
`Variant.train_images_per_s`: the smallest ratio measured for b0 to b7 at 96 px, twice the 144 of
two cores (`benchmarks/results/train_step.txt`). Runs take longer than this estimate, not less."""


def compiles_by_default(recipe: Recipe, train_images: int, cores: int) -> bool:
    """Whether a resolved recipe is compiled on `cores` CPU cores of this machine.

    Compiles a small function if the run is long enough, which takes a few seconds.
    """
    measured = recipe.precision == "float32"
    long = eager_seconds(recipe, train_images, cores) >= MIN_EAGER_S
    return measured and long and compiler_works()


def eager_seconds(recipe: Recipe, train_images: int, cores: int) -> float:
    """The least time that eager steps take per image size, s; 0 if only the head is trained."""
    row, epochs_of = recipe.variant_spec, Counter[int]()
    for epoch in range(recipe.epochs):
        if not phase_at(recipe, epoch).frozen:
            epochs_of[size_at(recipe, epoch)] += 1
    if not epochs_of:
        return 0.0
    at_benchmark_size = CPU_CORE_SLOWDOWN / cores / row.train_images_per_s
    areas = sum(n * (size / row.benchmark_resolution) ** 2 for size, n in epochs_of.items())
    return train_images * areas * at_benchmark_size / len(epochs_of)
