"""The optimizer with layer-wise learning rates, and the learning-rate schedule."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effnet_ray.model.network import Network, trainable_parameters
from effnet_ray.phases import head_part, lowest_trainable, part_of, phase_at
from effnet_ray.recipe import Recipe

FINAL_LR_FRACTION = 0.01
"""The cosine schedule ends at this share of the peak: low enough to settle, and above timm's 0, at
which the last steps of a short run would change nothing."""
SCALE, PART = "lr_scale", "part"
"""Keys of a parameter group: timm's factor on the learning rate, and the part of the network."""
OPTIONS: dict[str, dict[str, object]] = {
    **{name: {"fused": True} for name in ("adamw", "sgd", "momentum")},  # one kernel for all
    "lamb": {"max_grad_norm": None},  # `clip_grad` clips instead
}
"""Further options of some optimizers."""


def optimizer(network: Network, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer, by timm, over all parameters that are ever trained.

    Parameters are grouped by part. A group's `lr_scale` is layer_decay ** (parts between the group
    and the head), so a decay means the same for every variant (timm's own layer decay counts
    blocks, of which B7 has 55). Norms and biases, the parameters with one
    dimension, have no weight decay.
    """
    from timm.optim import create_optimizer_v2  # as in `network.build`

    stages = recipe.variant_spec.stages
    lowest_part, head = lowest_trainable(recipe.unfreeze, stages), head_part(stages)
    groups = defaultdict[tuple[int, bool], list[nn.Parameter]](list)
    for name, parameter in trainable_parameters(network, recipe, lowest_part).items():
        groups[part_of(name, stages), parameter.ndim > 1].append(parameter)
    layer_decay = recipe.layer_decay or 1.0
    result: Optimizer = create_optimizer_v2(
        [
            {
                "params": parameters,
                "weight_decay": recipe.weight_decay if has_weight_decay else 0.0,
                SCALE: layer_decay ** (head - part),
                PART: part,
            }
            for (part, has_weight_decay), parameters in groups.items()
        ],
        opt=recipe.opt,
        lr=recipe.lr,
        momentum=recipe.momentum,
        **OPTIONS.get(recipe.opt, {}),
    )
    return result


def begin_phase(optimizer: Optimizer) -> None:
    """Reset the step counts of groups that have no state yet: timm's lamb counts for them too."""
    for group in optimizer.param_groups:
        if not any(parameter in optimizer.state for parameter in group["params"]):
            group.pop("step", None)


@torch.no_grad()
def take_step(optimizer: Optimizer, finite: Tensor) -> None:
    """Update the parameters if `finite` ([] bool) is true; otherwise nothing changes.

    Fused optimizers check it on the device, as torch.amp.GradScaler lets them. For others Python
    waits until the gradients are computed.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        if finite:
            optimizer.step()
        return
    _create_momentum(optimizer)
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()


def _create_momentum(optimizer: Optimizer) -> None:
    """Let SGD's momentum begin at 0: its first step would leave it undefined if not finite."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The head's learning rate at optimizer step `step` (0-based), of a resolved recipe.

    Each phase has a linear warm-up, and then a cosine to 1 % of the peak or a constant rate.
    """
    phase = phase_at(recipe, step // steps_per_epoch)
    step -= phase.first * steps_per_epoch
    total = (phase.end - phase.first) * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return phase.lr * (step + 1) / warmup
    if recipe.sched == "constant":
        return phase.lr
    progress = (step - warmup) / max(1, total - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return phase.lr * (FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's learning rate: the head's, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[SCALE]
