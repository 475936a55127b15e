"""The values that a Recipe's fields may have, alone and together."""

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

from effnet_ray.schema import require
from effnet_ray.variants import FAMILIES, LAYOUTS, MIN_IMAGE_SIZE, variant

MULTICLASS, MULTILABEL = "multiclass", "multilabel"
TASKS = (MULTICLASS, MULTILABEL)
"""An image has exactly one class, or any number of labels."""

OPTIMIZERS = {
    "adamw": (1.0, 0.05),
    "nadamw": (1.0, 0.05),
    "lamb": (5.0, 0.02),
    "lion": (0.1, 0.5),
    "sgd": (20.0, 1e-4),
    "momentum": (20.0, 1e-4),
    "rmsproptf": (2.0, 1e-5),
}
"""timm's names of the optimizers for which resuming is tested to the bit → the default learning
rate, as a multiple of AdamW's, and the default weight decay (for the last three an L2 penalty on
the loss). lion: a tenth of AdamW's rate and ten times its decay, the upper end of what its
authors advise (Chen et al. 2023, arXiv 2302.06675, §5); lamb: 5e-3 and 0.02 (Wightman et al. 2021,
arXiv 2110.00476, A2); rmsproptf: EfficientNet's decay (Tan & Le 2019, arXiv 1905.11946). The
others are customary, not measured here."""

SYNC = "sync"
"""The `batchnorm` mode that normalises over the whole batch."""

SYNONYMS = {
    **dict.fromkeys(("model", "arch", "architecture", "backbone"), "variant"),
    **dict.fromkeys(("pretrained", "checkpoint", "init"), "weights"),
    **dict.fromkeys(("img_size", "imgsz", "size", "input_size", "resolution"), "image_size"),
    **dict.fromkeys(("epoch", "num_epochs", "n_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("batch", "bs", "batchsize", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("optimizer", "optim"), "opt"),
    **dict.fromkeys(("learning_rate", "learningrate", "max_lr", "base_lr"), "lr"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "schedule"), "sched"),
    **dict.fromkeys(("warmup", "num_warmup_epochs"), "warmup_epochs"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clip_val"), "clip_grad"),
    **dict.fromkeys(("ema", "model_ema_decay"), "ema_decay"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("auto_augment", "augment", "randaugment"), "aa"),
    **dict.fromkeys(("erasing", "random_erasing"), "reprob"),
    **dict.fromkeys(("smoothing",), "label_smoothing"),
    **dict.fromkeys(("drop", "drop_rate", "dropout_rate"), "dropout"),
    **dict.fromkeys(("drop_path_rate", "stochastic_depth"), "drop_path"),
    **dict.fromkeys(("amp", "dtype"), "precision"),
    **dict.fromkeys(("hflip", "horizontal_flip"), "flip"),
    **dict.fromkeys(("random_seed", "random_state"), "seed"),
}
"""Usual names of a recipe's fields, as in timm, Keras, Lightning or Ultralytics → our field."""

_AUTO_AUGMENT = re.compile(r"none|auto|trivial|rand(-m(\d|[12]\d|30))?(-n[1-9])?")

CHOICES: dict[str, tuple[str, ...]] = {
    "task": TASKS,
    "opt": tuple(OPTIMIZERS),
    "sched": ("cosine", "constant"),
    "class_weights": ("none", "balanced", "sqrt"),
    "batchnorm": ("train", "frozen", SYNC),
    "precision": ("float32", "bfloat16", "float16"),
    "layout": LAYOUTS,
}
"""Fields with a fixed set of values → the values."""

_Rule = tuple[str, Callable[[Any], bool], str]


def _one_of(name: str, words: str = "") -> _Rule:
    return name, CHOICES[name].__contains__, words or " or ".join(map(repr, CHOICES[name]))


_RULES: tuple[_Rule, ...] = (
    (
        "image_size",
        lambda v: v >= MIN_IMAGE_SIZE,
        f"at least {MIN_IMAGE_SIZE} px (the network halves it five times)",
    ),
    ("epochs eval_every batch_size micro_batch limit head_views", lambda v: v >= 1, "1 or more"),
    ("head_epochs max_skips patience seed", lambda v: v >= 0, "0 or more"),
    ("lr head_lr", lambda v: 0 < v < math.inf, "above 0"),
    (
        "weight_decay warmup_epochs clip_grad mixup cutmix",
        lambda v: 0 <= v < math.inf,
        "0 or more",
    ),
    ("label_smoothing dropout drop_path flip reprob balance", lambda v: 0 <= v <= 1, "0 to 1"),
    ("momentum ema_decay", lambda v: 0 <= v < 1, "0 or more, below 1"),
    ("layer_decay crop_scale progressive", lambda v: 0 < v <= 1, "above 0, up to 1"),
    ("crop_ratio", lambda v: 1 <= v < math.inf, "1 or more"),
    (
        "aa",
        lambda v: _AUTO_AUGMENT.fullmatch(v) is not None,
        "none, auto, trivial, rand or rand-mM-nN with M from 0 to 30, N from 1 to 9",
    ),
    _one_of("opt", f"one of {', '.join(OPTIMIZERS)}"),
    _one_of("task", " or ".join(TASKS)),
    _one_of("class_weights", "none, balanced or sqrt"),
    _one_of("sched"),
    _one_of("batchnorm", f"'train', 'frozen' or {SYNC!r}"),
    _one_of("precision", "'float32', 'bfloat16' or 'float16'"),
    _one_of("layout"),
)
"""Fields, the test of a value, and the same in words; None passes every test."""


class _Recipe(Protocol):
    """The fields of a Recipe that have rules together; `Recipe` itself imports this module."""

    @property
    def variant(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def unfreeze(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def head_epochs(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def mixes(self) -> bool: ...
    @property
    def reprob(self) -> float: ...
    @property
    def opt(self) -> str: ...
    @property
    def momentum(self) -> float: ...
    @property
    def task(self) -> str | None: ...
    @property
    def needs_labels(self) -> bool: ...
    @property
    def batchnorm(self) -> str | None: ...
    @property
    def compile(self) -> bool | None: ...


def check(recipe: _Recipe) -> None:
    """Raise RecipeError or WeightsError for the first value that is not allowed."""
    row = variant(recipe.variant)
    if recipe.weights in FAMILIES:
        row.weights_tag(recipe.weights)
    for names, is_allowed, expected in _RULES:
        for name in names.split():
            value = getattr(recipe, name)
            require(value is None or is_allowed(value), name, value, expected)
    _check_unfreeze(recipe, row.stages)
    _check_batches(recipe)
    _check_combinations(recipe)


def _check_unfreeze(recipe: _Recipe, stages: int) -> None:
    choices = ("all", "head", *(f"stage:{stage}" for stage in range(1, stages + 1)))
    require(
        recipe.unfreeze in choices,
        "unfreeze",
        recipe.unfreeze,
        f"all, head, or stage:N with N from 1 to {stages}",
    )


def _check_batches(recipe: _Recipe) -> None:
    micro_batch, head_epochs, epochs = recipe.micro_batch, recipe.head_epochs, recipe.epochs
    require(
        micro_batch is None or recipe.batch_size % micro_batch == 0,
        "micro_batch",
        micro_batch,
        f"a divisor of batch_size {recipe.batch_size}",
    )
    require(
        head_epochs is None or head_epochs <= epochs,
        "head_epochs",
        head_epochs,
        f"at most epochs, {epochs}",
    )
    require(
        recipe.unfreeze != "head" or head_epochs in (None, epochs),
        "head_epochs",
        head_epochs,
        f"all {epochs} epochs when unfreeze is head",
    )
    require(
        not recipe.mixes or min(recipe.batch_size, micro_batch or 2) > 1,
        "micro_batch",
        micro_batch,
        "2 or more with mixup or cutmix",
    )


def _check_combinations(recipe: _Recipe) -> None:
    require(
        recipe.unfreeze != "head" or not (recipe.mixes or recipe.reprob > 0),
        "unfreeze",
        "head",
        "all or stage:N with mixup, cutmix or reprob: they do not apply while only the head "
        "is trained",
    )
    require(
        recipe.opt != "sgd" or recipe.momentum > 0,
        "momentum",
        recipe.momentum,
        "above 0 for sgd, which uses Nesterov momentum",
    )
    require(
        recipe.task != MULTILABEL or not recipe.needs_labels,
        "task",
        recipe.task,
        "multiclass with class_weights or balance: they need exactly one class per image",
    )
    require(
        recipe.batchnorm != SYNC or not recipe.compile,
        "compile",
        recipe.compile,
        "False when batchnorm is sync",
    )
    trains_everything = not recipe.head_epochs and recipe.unfreeze == "all"
    require(
        trains_everything or recipe.weights != "none",
        "weights",
        "none",
        "pretrained weights if parts of the network stay frozen (head_epochs, unfreeze)",
    )
