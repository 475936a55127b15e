"""What using a network costs: parameters, multiply-adds and milliseconds an image."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from effnet_ray.model import network
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

WARM_UP, TIMED = 2, 7
"""Forward passes before and during the measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one image through one network."""

    params_m: float
    """Parameters, millions, with the head of these classes."""
    gmacs: float
    """Multiply-adds of convolutions and matrix products, billions, at this image size."""
    latency_ms: float
    """Median time of a forward pass of one image in float32 on `device`."""
    device: str
    """`cpu` or the GPU's name."""


@torch.inference_mode()
def measure(recipe: Recipe, spec: InputSpec, classes: int) -> Cost:
    """Measured on this machine's GPU where the process has one, else on its CPU."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    built = network.build(recipe, spec, classes).to(device).eval()
    size = spec.resolution
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        built(image)
    times = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        built(image).cpu()  # on a GPU this waits for the result
        times.append(time.perf_counter() - begin)
    return Cost(
        params_m=sum(p.numel() for p in built.parameters()) / 1e6,
        gmacs=counter.get_total_flops() / 2e9,  # two operations each
        latency_ms=1000 * statistics.median(times[WARM_UP:]),
        device=torch.cuda.get_device_name() if gpu else "cpu",
    )
