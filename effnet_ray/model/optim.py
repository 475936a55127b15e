"""AdamW over timm's parameter groups, and the learning rate as a pure function of the step."""

import math

from torch.optim import Optimizer

from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe

FINAL_LR_FRACTION = 0.01
"""The cosine ends at 1 % of the peak."""


def optimizer(network: Network, recipe: Recipe) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019); no weight decay on norms and biases (timm's grouping)."""
    from timm.optim import create_optimizer_v2  # as in `network.build`

    made: Optimizer = create_optimizer_v2(
        network,
        opt="adamw",
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=True,
        fused=True,
    )
    return made


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of update `step` (0-based): linear warm-up, then a cosine to 1 %."""
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return recipe.lr * (FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
