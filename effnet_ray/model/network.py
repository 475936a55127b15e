"""The network: uint8 images in, logits out. It normalises by itself, on its own device.

Also how BatchNorm behaves here. EfficientNet normalises over a lane's micro-batch, whichever
worker runs it, and its running statistics take one step per optimizer step, from all lanes: so
that neither depends on how many workers there are.
"""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec


class Network(nn.Module):
    """timm's EfficientNet behind the normalisation of its InputSpec."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.backbone = backbone
        scale = torch.tensor([spec.mean, spec.std]).view(2, 1, 3, 1, 1) * 255
        self.register_buffer("mean", scale[0], persistent=False)
        self.register_buffer("std", scale[1], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, R, R] uint8."""
        logits: Tensor = self.backbone((images - self.mean) / self.std)
        return logits


def build(
    recipe: Recipe,
    spec: InputSpec,
    num_classes: int,
    *,
    weights_file: str | None = None,
    weights_classes: int = 1000,
) -> Network:
    """The recipe's network; a new head is seeded by the recipe.

    `weights_file` is a safetensors file in timm's naming whose head has `weights_classes`
    outputs; timm leaves that head out where `num_classes` differs. A settled recipe is expected.
    """
    torch.manual_seed(recipe.seed)
    overlay = {"file": weights_file, "num_classes": weights_classes, "custom_load": False}
    backbone = timm.create_model(
        recipe.row.architecture,
        pretrained=weights_file is not None,
        pretrained_cfg_overlay=overlay if weights_file else None,
        num_classes=num_classes,
        drop_rate=recipe.dropout,
        drop_path_rate=recipe.drop_path,
    )
    network = Network(backbone, spec).to(memory_format=torch.channels_last)
    if recipe.batchnorm == "frozen":
        for layer in _batchnorms(network):
            layer.requires_grad_(False)
    return network


def train_mode(network: Network, recipe: Recipe) -> None:
    """Dropout and drop path on; BatchNorm too, unless the recipe freezes it."""
    network.train()
    if recipe.batchnorm == "frozen":
        for layer in _batchnorms(network):
            layer.eval()


def _batchnorms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


class RunningStatistics:
    """Updates BatchNorm's running statistics once per step, from all lanes of all workers.

    PyTorch moves them at every forward pass, which would make two lanes on one worker count
    differently from one lane on each of two. Every lane here starts from the step's beginning;
    its result is kept aside, weighted by its images, and the mean over all lanes is taken last.
    """

    def __init__(self, network: Network) -> None:
        """`network`'s BatchNorm buffers are changed in place from now on."""
        self._layers = _batchnorms(network)
        self._live = [
            buffer
            for layer in self._layers
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]
        self._steps = [
            layer.num_batches_tracked
            for layer in self._layers
            if layer.num_batches_tracked is not None
        ]
        self._taken = int(self._steps[0]) if self._steps else 0
        self._before = [buffer.clone() for buffer in self._live]
        self._sum = [torch.zeros_like(buffer) for buffer in self._live]
        self._count = torch.zeros(1, dtype=torch.float32)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember where every lane of this step starts."""
        torch._foreach_copy_(self._before, self._live)
        torch._foreach_zero_(self._sum)
        self._count.zero_()

    @torch.no_grad()
    def end_lane(self, images: int) -> None:
        """Keep what a lane of `images` images made of the statistics, and undo it."""
        torch._foreach_add_(self._sum, self._live, alpha=float(images))
        torch._foreach_copy_(self._live, self._before)
        for steps in self._steps:  # counted once a step, as all else
            steps.fill_(self._taken)
        self._count += images

    @torch.no_grad()
    def end_step(self, sum_over_workers: Callable[[Tensor], Tensor]) -> None:
        """Take the mean over the lanes of all workers."""
        device = self._live[0].device
        flat = torch.cat([t.flatten() for t in self._sum] + [self._count.to(device)])
        flat = sum_over_workers(flat)
        count = flat[-1]
        if count == 0:
            return
        means = torch.split(flat[:-1] / count, [buffer.numel() for buffer in self._live])
        torch._foreach_copy_(self._live, list(means))
        self._taken += 1
        for steps in self._steps:
            steps.fill_(self._taken)
