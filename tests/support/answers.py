"""Shared by tests: without_numbers."""

from pathlib import Path

import safetensors.torch

from effnet_ray.release.layout import WEIGHTS
from effnet_ray.release.load import LoadedRelease
from support.forged import forge


def without_numbers(release: LoadedRelease) -> LoadedRelease:
    """The release with a head whose sums are beyond float32, sealed again."""
    weights = Path(release.uri) / WEIGHTS
    tensors = safetensors.torch.load(weights.read_bytes())
    tensors["classifier.weight"].fill_(1e38)  # finite, as a release must be; its sums are not
    forge(Path(release.uri), WEIGHTS, safetensors.torch.save(tensors))
    return release
