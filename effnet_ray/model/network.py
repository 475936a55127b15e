"""The network: uint8 images in, logits out. It normalises by itself, on its own device.

Also how BatchNorm behaves here. EfficientNet normalises over a lane's micro-batch, whichever
worker runs it, and its running statistics take one step per optimizer step, from all lanes: so
that neither depends on how many workers there are.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from effnet_ray.model.dropout import Drop, replace_drop_paths
from effnet_ray.phases import lowest_trainable, part_of
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.speed import CHANNELS_LAST, CONTIGUOUS
from effnet_ray.variants import InputSpec

if TYPE_CHECKING:
    from timm.models import EfficientNet

MEMORY = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
"""Layout → torch's name of it."""


class Network(nn.Module):
    """timm's EfficientNet behind the normalisation of its InputSpec, with our dropout."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: "EfficientNet",
        spec: InputSpec,
        layout: str = CHANNELS_LAST,
        dropout: float = 0.0,
    ) -> None:
        """`dropout`: before the head; the backbone's own is expected to be 0."""
        super().__init__()
        self.layout = layout
        self.backbone = backbone.to(memory_format=MEMORY[layout])
        self.dropout = Drop(dropout, whole=False)
        self._drops = [module for module in self.modules() if isinstance(module, Drop)]
        scale = torch.tensor([spec.mean, spec.std]).view(2, 1, 3, 1, 1) * 255
        self.register_buffer("mean", scale[0], persistent=False)
        self.register_buffer("std", scale[1], persistent=False)

    @property
    def num_classes(self) -> int:
        """K, of the logits."""
        return int(self.backbone.num_classes)

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of pixels, [1, 3, 1, 1], of 0 to 255."""
        return self.mean, self.std

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, [B, F], of images [B, 3, R, R], 0 to 255: uint8, or mixed floats.

        Images may lie in memory as they like: convolutions go by whichever of image and weights
        is channels last, so the image is laid out as the weights are.
        """
        images = images.contiguous(memory_format=MEMORY[self.layout])
        maps = self.backbone.forward_features((images - self.mean) / self.std)
        pooled: Tensor = self.backbone.global_pool(maps)
        return pooled

    def forward(self, shown: Tensor) -> Tensor:
        """Logits [B, K] of images, or of features [B, F] that were made of them earlier."""
        seen = shown.float() if shown.ndim == 2 else self.features(shown)
        logits: Tensor = self.backbone.classifier(self.dropout(seen))
        return logits

    def begin_lane(self, rows: int) -> None:
        """The next so many images, in one pass or several, are a lane."""
        for drop in self._drops:
            drop.begin_lane(rows)


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
    import timm  # takes seconds; drivers and Ray Train's controllers build no network

    torch.manual_seed(recipe.seed)
    overlay = {"file": weights_file, "num_classes": weights_classes, "custom_load": False}
    backbone = timm.create_model(
        recipe.variant_spec.architecture,
        pretrained=weights_file is not None,
        pretrained_cfg_overlay=overlay if weights_file else None,
        num_classes=num_classes,
        drop_path_rate=recipe.drop_path,
    )
    replace_drop_paths(backbone)
    if recipe.batchnorm == SYNC:
        backbone = timm.layers.convert_sync_batchnorm(backbone)  # PyTorch's; the same names
    network = Network(backbone, spec, recipe.layout or CHANNELS_LAST, recipe.dropout or 0.0)
    set_trainable(network, recipe, lowest_trainable(recipe.unfreeze))
    return network


def trainable_parameters(network: Network, recipe: Recipe, lowest: int) -> dict[str, nn.Parameter]:
    """The parameters that learn where `lowest` is the lowest part that does, by timm's names."""
    frozen = batchnorms(network) if recipe.batchnorm == "frozen" else []
    fixed = {id(parameter) for layer in frozen for parameter in layer.parameters()}
    return {
        name: parameter
        for name, parameter in network.backbone.named_parameters()
        if part_of(name) >= lowest and id(parameter) not in fixed
    }


def set_trainable(network: Network, recipe: Recipe, lowest: int) -> list[nn.Parameter]:
    """Let these parameters learn, and no others; they are returned."""
    network.requires_grad_(False)
    learning = list(trainable_parameters(network, recipe, lowest).values())
    for parameter in learning:
        parameter.requires_grad_()
    return learning


def train_mode(network: Network, recipe: Recipe, lowest: int) -> None:
    """Dropout, drop path and BatchNorm's batches from part `lowest` up; below it as in use.

    BatchNorm's only where the recipe does not freeze it.
    """
    network.train()
    for name, module in network.backbone.named_modules():
        below = part_of(f"{name}.") < lowest if name else False  # all of it is no part
        if below or (recipe.batchnorm == "frozen" and isinstance(module, nn.BatchNorm2d)):
            module.training = False  # of this module alone, not of what it holds


def batchnorms(network: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """All BatchNorm layers, in the order of the forward pass."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


class RunningStatistics:
    """Updates BatchNorm's running statistics once per step, from all lanes of all workers.

    PyTorch moves them at every forward pass, which would make two lanes on one worker count
    differently from one lane on each of two. Every lane here starts from the step's beginning;
    its result is kept aside, weighted by its images, and the mean over all lanes is taken last.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """The layers' buffers become views of one tensor, and are changed in place."""
        self._live = _as_one(layers, ("running_mean", "running_var"))
        self._steps = _as_one(layers, ("num_batches_tracked",))
        self._taken = self._taken_before = int(self._steps[0])
        self._before = self._live.clone()
        # The last number is the count of images, so that one sum over workers is enough.
        self._sum = torch.zeros(len(self._live) + 1, device=self._live.device)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember where every lane of this step starts."""
        self._before.copy_(self._live)
        self._taken_before = self._taken
        self._sum.zero_()

    @torch.no_grad()
    def end_lane(self, images: int) -> None:
        """Keep what a lane of `images` images made of the statistics, and undo it."""
        self._sum[:-1].add_(self._live, alpha=images)
        self._sum[-1] += images
        self._live.copy_(self._before)
        self._steps.fill_(self._taken)  # counted once a step, as all else

    @torch.no_grad()
    def end_step(self, sum_over_workers: Callable[[Tensor], Tensor]) -> None:
        """Take the mean over the lanes of all workers."""
        sums = sum_over_workers(self._sum)
        if sums[-1] == 0:
            return
        torch.div(sums[:-1], sums[-1], out=self._live)
        self._taken += 1
        self._steps.fill_(self._taken)

    @torch.no_grad()
    def undo_step(self) -> None:
        """Be as before the step."""
        self._live.copy_(self._before)
        self._taken = self._taken_before
        self._steps.fill_(self._taken)


def _as_one(layers: Sequence[nn.Module], names: Sequence[str]) -> Tensor:
    """Lay the layers' buffers of these names side by side in one tensor: one call moves all."""
    buffers = [layer.get_buffer(name) for layer in layers for name in names]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    parts = iter(torch.split(flat, [buffer.numel() for buffer in buffers]))
    for layer in layers:
        for name in names:
            setattr(layer, name, next(parts).view_as(layer.get_buffer(name)))
    return flat
