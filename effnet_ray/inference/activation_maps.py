"""Class-activation maps: which places of an image speak for a class.

EfficientNet pools its last feature maps by their mean and has one linear layer after that. So a
logit is, but for the bias, the mean of a map: the feature maps, weighted by the class's weights
(Zhou et al. 2016, arXiv 1512.04150). Nothing is approximated.
"""

import io

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from effnet_ray.model.network import Network

COLOURS, OPACITY = "inferno", 0.7
"""Matplotlib's colours of a map, and its opacity where it is highest."""

Pixels = npt.NDArray[np.uint8]
"""[R, R, 3]"""


@torch.no_grad()
def class_maps(network: Network, views: Pixels, classes: Tensor) -> Tensor:
    """The maps [B, h, w] of one class [B] of each view [B, R, R, 3]; float32, on the CPU.

    The mean of a map and the class's bias add up to its logit. h and w are R / 32, rounded up.
    """
    layer = network.backbone.classifier
    device = layer.weight.device
    pixels = torch.from_numpy(np.asarray(views)).permute(0, 3, 1, 2).to(device)
    maps = network.feature_maps(pixels).float()
    weights = layer.weight[classes.to(device)].float()
    return torch.einsum("bfhw,bf->bhw", maps, weights).cpu()


def overlay(view: Pixels, class_map: Tensor) -> Pixels:
    """The view with its map over it: bright where the image speaks for the class."""
    values = class_map.clamp(min=0)
    values = values / values.max().clamp(min=1e-12)
    size = (view.shape[1], view.shape[0])
    smooth = Image.fromarray(values.numpy()).resize(size, Image.Resampling.BICUBIC)
    shares = np.clip(np.asarray(smooth), 0, 1)
    colours = 255 * colormaps[COLOURS](shares)[..., :3]
    opacity = OPACITY * shares[..., None]
    blended: Pixels = (view * (1 - opacity) + colours * opacity).round().astype(np.uint8)
    return blended


def side_by_side(view: Pixels, class_map: Tensor) -> bytes:
    """A PNG of the view and of its overlay."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([view, overlay(view, class_map)], axis=1)).save(file, "PNG")
    return file.getvalue()
