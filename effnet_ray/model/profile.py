"""The cost of a network: parameters, multiply-adds and latency."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from effnet_ray.model import network
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

WARM_UP_PASSES, TIMED_PASSES = 2, 7
"""The first passes allocate memory; the median of seven ignores three slow ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one image through one network."""

    params_m: float
    """Parameters, millions, including the head for the data set's classes."""
    gmacs: float
    """Multiply-adds of convolutions and matrix products, billions, at this image size."""
    latency_ms: float
    """Median time of a forward pass of one image in float32 on `device`."""
    device: str
    """`cpu` or the GPU's name."""


@torch.inference_mode()
def measure(recipe: Recipe, spec: InputSpec, classes: int) -> Cost:
    """Measure the cost on this process's GPU, or on the CPU if it has none."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = network.build(recipe, spec, classes).to(device).eval()
    size = spec.resolution
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        model(image)
    seconds = []
    for _ in range(WARM_UP_PASSES + TIMED_PASSES):
        begin = time.perf_counter()
        model(image).cpu()  # on a GPU this waits for the result
        seconds.append(time.perf_counter() - begin)
    return Cost(
        params_m=sum(p.numel() for p in model.parameters()) / 1e6,
        gmacs=counter.get_total_flops() / 2e9,  # a multiply-add counts as two operations
        latency_ms=1000 * statistics.median(seconds[WARM_UP_PASSES:]),
        device=torch.cuda.get_device_name() if gpu else "cpu",
    )
