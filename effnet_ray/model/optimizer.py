"""The optimizer, part by part, and the learning rate as a pure function of the step."""

import math
from collections import defaultdict

from torch import nn
from torch.optim import Optimizer

from effnet_ray.model.network import Network, trainable_parameters
from effnet_ray.phases import HEAD, lowest_trainable, part_of, phase_at
from effnet_ray.recipe import Recipe

FINAL_LR_FRACTION = 0.01
"""The cosine ends at 1 % of the peak."""
SCALE, PART = "lr_scale", "part"
"""What a parameter group says beside torch's own: timm's factor on the learning rate; its part."""
OWN: dict[str, dict[str, object]] = {
    **{name: {"fused": True} for name in ("adamw", "sgd", "momentum")},  # one kernel for all
    "lamb": {"max_grad_norm": None},  # `clip_grad` says
}
"""What some optimizers are told beside."""


def optimizer(network: Network, recipe: Recipe) -> Optimizer:
    """timm's optimizer of that name over all parameters that ever learn, part by part.

    A group's `lr_scale` is layer_decay to the power of the parts between it and the head, so a
    decay means the same for every variant (timm's own counts blocks, of which B7 has 55). No
    weight decay on norms and biases, which are the parameters of one dimension.
    """
    from timm.optim import create_optimizer_v2  # as in `network.build`

    groups = defaultdict[tuple[int, bool], list[nn.Parameter]](list)
    for name, parameter in trainable_parameters(
        network, recipe, lowest_trainable(recipe.unfreeze)
    ).items():
        groups[part_of(name), parameter.ndim > 1].append(parameter)
    decay = recipe.layer_decay or 1.0
    made: Optimizer = create_optimizer_v2(
        [
            {
                "params": parameters,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                SCALE: decay ** (HEAD - part),
                PART: part,
            }
            for (part, decays), parameters in groups.items()
        ],
        opt=recipe.opt,
        lr=recipe.lr,
        momentum=recipe.momentum,
        **OWN.get(recipe.opt, {}),
    )
    return made


def begin_phase(optimizer: Optimizer) -> None:
    """Forget steps that were counted for parameters which did not learn (timm's lamb does)."""
    for group in optimizer.param_groups:
        if not any(parameter in optimizer.state for parameter in group["params"]):
            group.pop("step", None)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the head at update `step` (0-based), of a settled recipe.

    In each phase: linear warm-up, then a cosine to 1 %, or the peak for ever.
    """
    phase = phase_at(recipe, step // steps_per_epoch)
    step -= phase.first * steps_per_epoch
    total = (phase.end - phase.first) * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return phase.lr * (step + 1) / warmup
    if recipe.sched == "constant":
        return phase.lr
    done = (step - warmup) / max(1, total - warmup)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return phase.lr * (FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[SCALE]
