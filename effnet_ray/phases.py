"""The phases of a run: which parts of the network are trained in which epochs, and how fast.

A part means the same for every variant: 0 is the stem, 1 to N are the stages of the paper's table
(block1 … blockN in Keras, blocks.0 … blocks.N-1 in timm), N + 1 is the last convolution, and
N + 2 the head. N is the variant's `stages`.
"""

import re
from dataclasses import dataclass

from effnet_ray.recipe import SOLVED, Recipe
from effnet_ray.variants import MIN_IMAGE_SIZE

STEM = 0

FORWARD_COST = 1 / 3
"""Cost of a forward pass, in training steps: the backward pass costs two forward passes."""
CACHED_COST = 0.01
"""Cost of an epoch of linear probing from cached features, in full epochs; measured values are
below it (`benchmarks/features.py`)."""
GROWTH_SHARE = 0.75
"""Progressive resizing: share of a phase in which images grow (FFCV's schedule)."""
GROWTH_STEP = 16
"""Progressive resizing: image sizes are multiples of this, px."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_STEM_NAMES = ("conv_stem.", "bn1.")
_FINAL_CONV_NAMES = ("conv_head.", "bn2.")
_HEAD_NAMES = ("classifier.",)


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive epochs that train the same parts, with one learning-rate schedule."""

    first: int
    """First epoch, from 0."""
    end: int
    """The epoch after the last."""
    lr: float
    """Peak learning rate."""
    lowest_trainable: int
    """The lowest trainable part; everything above it is trained too."""
    frozen: bool
    """Whether the whole backbone is frozen, so that only the head is trained."""
    solved: bool = False
    """Whether the head is solved before the first epoch, so that steps change nothing."""


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a resolved recipe, in order; together they are its epochs."""
    head_epochs, lr, head_lr = recipe.head_epochs, recipe.lr, recipe.head_lr
    assert head_epochs is not None and lr is not None and head_lr is not None
    stages = recipe.variant_spec.stages
    head, lowest_part = head_part(stages), lowest_trainable(recipe.unfreeze, stages)
    both = (
        Phase(0, head_epochs, head_lr, head, frozen=True, solved=recipe.head == SOLVED),
        Phase(head_epochs, recipe.epochs, lr, lowest_part, frozen=lowest_part == head),
    )
    return tuple(phase for phase in both if phase.end > phase.first)


def cost(recipe: Recipe, epochs: int) -> float:
    """The cost of the first `epochs`, in epochs that train everything at the full image size.

    With a frozen backbone an epoch costs a forward pass; with the feature cache, each view costs
    one forward pass in total.
    """
    total = 0.0
    for phase in phases(recipe):
        done = max(0, min(phase.end, epochs) - phase.first)
        if not phase.frozen:
            shares = (_size_share(recipe, phase, phase.first + n) for n in range(done))
            total += sum(share**2 for share in shares)
        elif recipe.head_cache:
            views = min(recipe.head_views, phase.end - phase.first)
            total += FORWARD_COST * views * (done > 0) + CACHED_COST * done
        else:
            total += FORWARD_COST * done
    return total


def size_at(recipe: Recipe, epoch: int) -> int:
    """Height and width of an epoch's training images, px, for a resolved recipe.

    Progressive learning (Tan and Le 2021, arXiv 2104.00298, section 4) in steps of 16 px; the full
    size is reached at three quarters of the phase, as in FFCV's schedule.
    """
    size, phase = recipe.image_size, phase_at(recipe, epoch)
    assert size is not None
    share = 1.0 if phase.frozen else _size_share(recipe, phase, epoch)
    rounded = GROWTH_STEP * round(size * share / GROWTH_STEP)
    return size if share == 1 else min(size, max(MIN_IMAGE_SIZE, rounded))


def _size_share(recipe: Recipe, phase: Phase, epoch: int) -> float:
    """Share of the full image size in an epoch that trains the backbone."""
    progress = (epoch - phase.first) / (GROWTH_SHARE * (phase.end - phase.first))
    return min(1.0, recipe.progressive + (1 - recipe.progressive) * progress)


def view_at(recipe: Recipe, epoch: int) -> int | None:
    """The number of the view of each training image in an epoch; None: the evaluation view."""
    if not phase_at(recipe, epoch).frozen:
        return epoch
    return epoch % recipe.head_views or None


def uses_feature_cache(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch trains from cached features."""
    return recipe.head_cache and phase_at(recipe, epoch).frozen


def phase_at(recipe: Recipe, epoch: int) -> Phase:
    """The phase of an epoch (from 0)."""
    return next(phase for phase in phases(recipe) if phase.first <= epoch < phase.end)


def evaluates(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch (from 0) ends with an evaluation: each `eval_every`, and a phase's last."""
    return (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == phase_at(recipe, epoch).end


def describe(recipe: Recipe) -> str:
    """The phases in words, such as `a solved head, then all layers for 7 epochs`."""
    return ", then ".join(map(_describe_phase, phases(recipe)))


def _describe_phase(phase: Phase) -> str:
    if phase.solved:
        return "a solved head"
    epochs = phase.end - phase.first
    return f"{_describe_parts(phase)} for {epochs} epoch{'s' if epochs > 1 else ''}"


def _describe_parts(phase: Phase) -> str:
    if phase.frozen:
        return "the head"
    if phase.lowest_trainable == STEM:
        return "all layers"
    return f"stage {phase.lowest_trainable} and above"


def lowest_trainable(unfreeze: str, stages: int) -> int:
    """The lowest part that `unfreeze` (head, stage:N or all) trains."""
    if unfreeze == "head":
        return head_part(stages)
    return STEM if unfreeze == "all" else int(unfreeze.removeprefix("stage:"))


def head_part(stages: int) -> int:
    """The number of the head in a network with `stages` stages."""
    return stages + 2


def part_of(name: str, stages: int) -> int:
    """The part of a parameter or module, by its name in timm's network.

    Raises ValueError for a name of no known part.
    """
    block = _BLOCK.match(name)
    if block and int(block.group(1)) < stages:
        return int(block.group(1)) + 1
    if name.startswith(_STEM_NAMES):
        return STEM
    if name.startswith(_FINAL_CONV_NAMES):
        return stages + 1
    if name.startswith(_HEAD_NAMES):
        return head_part(stages)
    raise ValueError(
        f"{name} is not the name of a parameter or module of a network with {stages} stages"
    )
