"""The phases of a run: in which epochs which parts of the network learn, and how fast. Pure.

A part means the same for every variant: 0 is the stem, 1 to 7 are the stages of the paper's table
(Keras's block1 … block7, timm's blocks.0 … blocks.6), 8 is the last convolution, 9 the head.
"""

import re
from dataclasses import dataclass

from effnet_ray.recipe import Recipe
from effnet_ray.variants import MIN_IMAGE_SIZE

STEM, FINAL_CONV, HEAD = 0, 8, 9
"""Parts that are no stages."""

FORWARD = 1 / 3
"""What a forward pass costs of a training step."""
CACHED = 0.01
"""What an epoch of the head costs once the features are there; measured below it
(`benchmarks/features.py`)."""
GROWS, STEP_PX = 0.75, 16
"""Share of a phase in which train images grow, where they do; by so many px at least."""
BLOCK = re.compile(r"blocks\.(\d+)\.")
TOPS = ("conv_head.", "bn2.")
"""timm's names of the last convolution and its norm."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Epochs in which the same parts learn, at a rate that rises and falls once."""

    first: int
    """Its first epoch, from 0."""
    end: int
    """The epoch after its last."""
    lr: float
    """Peak learning rate."""
    lowest: int
    """The lowest part that learns; all above it do too."""

    @property
    def frozen(self) -> bool:
        """Whether the whole backbone is: the head learns from its features."""
        return self.lowest == HEAD


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a settled recipe, in order; together they are its epochs."""
    head_epochs, lr, head_lr = recipe.head_epochs, recipe.lr, recipe.head_lr
    assert head_epochs is not None and lr is not None and head_lr is not None
    both = (
        Phase(0, head_epochs, head_lr, HEAD),
        Phase(head_epochs, recipe.epochs, lr, lowest_trainable(recipe.unfreeze)),
    )
    return tuple(phase for phase in both if phase.end > phase.first)


def cost(recipe: Recipe, epochs: int) -> float:
    """What the first `epochs` cost, in epochs in which everything learns.

    A frozen backbone costs its forward pass alone: a third, the backward pass being two of the
    kind; and only once for each view, where its features are kept.
    """
    spent = 0.0
    for phase in phases(recipe):
        done = max(0, min(phase.end, epochs) - phase.first)
        if not phase.frozen:
            shares = (_share(recipe, phase, phase.first + n) for n in range(done))
            spent += sum(share**2 for share in shares)
        elif recipe.head_cache:
            views = min(recipe.head_views, phase.end - phase.first)
            spent += FORWARD * views * (done > 0) + CACHED * done
        else:
            spent += FORWARD * done
    return spent


def size_at(recipe: Recipe, epoch: int) -> int:
    """Height and width in px of the train images of an epoch, of a settled recipe.

    Progressive learning (Tan and Le 2021, arXiv 2104.00298, section 4) in steps of 16 px, to the
    whole size at three quarters of the phase: FFCV's schedule.
    """
    size, phase = recipe.image_size, phase_at(recipe, epoch)
    assert size is not None
    share = 1.0 if phase.frozen else _share(recipe, phase, epoch)
    grown = STEP_PX * round(size * share / STEP_PX)
    return size if share == 1 else min(size, max(MIN_IMAGE_SIZE, grown))


def _share(recipe: Recipe, phase: Phase, epoch: int) -> float:
    """Of the image size, in an epoch of a phase that is not frozen."""
    grown = (epoch - phase.first) / (GROWS * (phase.end - phase.first))
    return min(1.0, recipe.progressive + (1 - recipe.progressive) * grown)


def view_at(recipe: Recipe, epoch: int) -> int | None:
    """Which view of each train image an epoch shows, by number; None: the plain one."""
    if not phase_at(recipe, epoch).frozen:
        return epoch
    return epoch % recipe.head_views or None


def uses_feature_cache(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch goes by kept features."""
    return recipe.head_cache and phase_at(recipe, epoch).frozen


def phase_at(recipe: Recipe, epoch: int) -> Phase:
    """The phase of an epoch (from 0)."""
    return next(phase for phase in phases(recipe) if phase.first <= epoch < phase.end)


def evaluates(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch (from 0) ends with an evaluation: every so many, and a phase's last."""
    return (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == phase_at(recipe, epoch).end


def describe(recipe: Recipe) -> str:
    """The phases in words, as `2 epochs of the head, then 6 of all`."""
    what = {HEAD: "the head", STEM: "all"}
    first, *rest = (
        (phase.end - phase.first, what.get(phase.lowest, f"stage {phase.lowest} and above"))
        for phase in phases(recipe)
    )
    begin = f"{first[0]} epoch{'s' if first[0] > 1 else ''} of {first[1]}"
    return ", then ".join([begin, *(f"{epochs} of {parts}" for epochs, parts in rest)])


def lowest_trainable(unfreeze: str) -> int:
    """The lowest part that `unfreeze` (head, stage:N or all) lets learn."""
    named = {"all": STEM, "head": HEAD}
    return named[unfreeze] if unfreeze in named else int(unfreeze.removeprefix("stage:"))


def part_of(name: str) -> int:
    """The part to which a parameter or module belongs, by its name in timm's network."""
    block = BLOCK.match(name)
    if block:
        return int(block.group(1)) + 1
    if name.startswith("classifier."):
        return HEAD
    return FINAL_CONV if name.startswith(TOPS) else STEM
