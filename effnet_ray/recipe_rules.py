"""The values that a Recipe's fields may have."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from effnet_ray.schema import require
from effnet_ray.variants import LAYOUTS, MIN_IMAGE_SIZE

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
"""timm's name → (default rate as a multiple of AdamW's, default weight decay). Resuming is tested
to the bit for these. The last three apply decay as an L2 penalty. Sources: lion, a tenth of
AdamW's rate and ten times its decay, the upper end of what its authors advise (Chen et al. 2023,
arXiv 2302.06675, §5); lamb, 5e-3 and 0.02 (Wightman et al. 2021, arXiv 2110.00476, A2);
rmsproptf, EfficientNet's decay (Tan & Le 2019, arXiv 1905.11946). The others are customary, not
measured here."""

SYNC = "sync"
"""The `batchnorm` mode that normalises over the whole batch."""

SOLVED, TRAINED = "solved", "trained"
"""How linear probing finds the head: computed from cached features, or trained step by step."""

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


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values a field may have; None, an unset field, passes every rule."""

    is_allowed: Callable[[Any], bool]
    expected: str
    """The same in words."""


Metadata = dict[str, Any]
"""Metadata of a dataclass field: its `rule`, and its `choices` if it has a fixed set of values."""


def rule(is_allowed: Callable[[Any], bool], expected: str) -> Metadata:
    """The metadata of a field whose values pass a test."""
    return {"rule": Rule(is_allowed, expected)}


def one_of(*choices: str) -> Metadata:
    """The metadata of a field with a fixed set of values."""
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    expected = f"one of {', '.join(choices)}" if len(choices) > 3 else listed
    return rule(choices.__contains__, expected) | {"choices": choices}


BATCH_SIZE = 64
"""Default batch size: customary, as in Keras's example and fastai."""

MAX_IMAGE_SIZE, MAX_EPOCHS, MAX_BATCH_SIZE = 4096, 100_000, 1_000_000
"""Beyond what anybody trains with; plans of such runs would take the driver minutes."""
AT_LEAST_1 = rule(lambda v: v >= 1, "1 or more")
AT_LEAST_0 = rule(lambda v: 0 <= v < math.inf, "0 or more")
ABOVE_0 = rule(lambda v: 0 < v < math.inf, "above 0")
SHARE = rule(lambda v: 0 <= v <= 1, "0 to 1")
SHARE_ABOVE_0 = rule(lambda v: 0 < v <= 1, "above 0, up to 1")
DECAY = rule(lambda v: 0 <= v < 1, "0 or more, below 1")
RATIO = rule(lambda v: 1 <= v < math.inf, "1 or more")
IMAGE_SIZE = rule(
    lambda v: MIN_IMAGE_SIZE <= v <= MAX_IMAGE_SIZE,
    f"at least {MIN_IMAGE_SIZE} px (the network halves it five times), up to {MAX_IMAGE_SIZE}",
)
EPOCHS = rule(lambda v: 1 <= v <= MAX_EPOCHS, f"1 to {MAX_EPOCHS:,}")
IMAGES_PER_STEP = rule(lambda v: 1 <= v <= MAX_BATCH_SIZE, f"1 to {MAX_BATCH_SIZE:,}")
AUTO_AUGMENT = rule(
    lambda v: re.fullmatch(r"none|auto|trivial|rand(-m(\d|[12]\d|30))?(-n[1-9])?", v) is not None,
    "none, auto, trivial, rand or rand-mM-nN with M from 0 to 30, N from 1 to 9",
)
TASK, OPT = one_of(*TASKS), one_of(*OPTIMIZERS)
SCHED, CLASS_WEIGHTS = one_of("cosine", "constant"), one_of("none", "balanced", "sqrt")
HEAD = one_of(SOLVED, TRAINED)
BATCHNORM, LAYOUT = one_of("train", "frozen", SYNC), one_of(*LAYOUTS)
PRECISION = one_of("float32", "bfloat16", "float16")
GRADIENTS = one_of("float32", "bfloat16")


def check_fields(record: Any) -> None:
    """Raise RecipeError for the first field of a dataclass whose value breaks its rule."""
    for field in fields(record):
        found: Rule | None = field.metadata.get("rule")
        value = getattr(record, field.name)
        if found and value is not None:
            require(found.is_allowed(value), field.name, value, found.expected)
