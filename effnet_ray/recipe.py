"""Recipe: everything that decides the numbers of a run."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from effnet_ray.schema import require
from effnet_ray.speed import LAYOUTS, TABLE
from effnet_ray.tasks import MULTICLASS, MULTILABEL, TASKS
from effnet_ray.variants import (
    BEST_FAMILY,
    DROP_PATH,
    FAMILIES,
    MIN_IMAGE_SIZE,
    InputSpec,
    Variant,
    variant,
)

OPTIMIZERS = {
    "adamw": (1.0, 0.05), "nadamw": (1.0, 0.05), "lamb": (5.0, 0.02), "lion": (0.1, 0.5),
    "sgd": (20.0, 1e-4), "momentum": (20.0, 1e-4), "rmsproptf": (2.0, 1e-5),
}  # fmt: skip
"""timm's names of those whose resuming is tested to the bit: the learning rate to begin with as a
multiple of AdamW's, and the weight decay, which for the last three is an L2 penalty on the loss.
Starting points by the customs of the field, not measured here."""
AA = re.compile(r"none|auto|trivial|rand(-m(\d|[12]\d|30))?(-n[1-9])?")
UNFREEZE = re.compile(r"all|head|stage:[1-7]")
LR, LAYER_DECAY = 1e-3, 0.8
SYNC = "sync"
HEAD_LR = 10.0
"""Times lr: a head that knows nothing has further to go."""

RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("image_size", lambda v: v >= MIN_IMAGE_SIZE,
     f"at least {MIN_IMAGE_SIZE} px (the network halves it five times)"),
    ("epochs eval_every batch_size micro_batch limit head_views", lambda v: v >= 1, "1 or more"),
    ("head_epochs max_skips patience seed", lambda v: v >= 0, "0 or more"),
    ("lr head_lr", lambda v: 0 < v < math.inf, "above 0"),
    ("weight_decay warmup_epochs clip_grad mixup cutmix", lambda v: 0 <= v < math.inf,
     "0 or more"),
    ("label_smoothing dropout drop_path flip reprob balance", lambda v: 0 <= v <= 1, "0 to 1"),
    ("momentum ema_decay", lambda v: 0 <= v < 1, "0 or more, below 1"),
    ("layer_decay crop_scale progressive", lambda v: 0 < v <= 1, "above 0, up to 1"),
    ("crop_ratio", lambda v: 1 <= v < math.inf, "1 or more"),
    ("unfreeze", lambda v: UNFREEZE.fullmatch(v) is not None,
     "all, head, or stage:N with N from 1 to 7"),
    ("aa", lambda v: AA.fullmatch(v) is not None,
     "none, auto, trivial, rand or rand-mM-nN with M from 0 to 30, N from 1 to 9"),
    ("opt", OPTIMIZERS.__contains__, f"one of {', '.join(OPTIMIZERS)}"),
    ("task", TASKS.__contains__, " or ".join(TASKS)),
    ("class_weights", ("none", "balanced", "sqrt").__contains__, "none, balanced or sqrt"),
    ("sched", ("cosine", "constant").__contains__, "'cosine' or 'constant'"),
    ("batchnorm", ("train", "frozen", SYNC).__contains__, f"'train', 'frozen' or {SYNC!r}"),
    ("precision", ("float32", "bfloat16", "float16").__contains__,
     "'float32', 'bfloat16' or 'float16'"),
    ("layout", LAYOUTS.__contains__, " or ".join(map(repr, LAYOUTS))),
)  # fmt: skip
"""Fields, what a value of theirs must be, and the same in words; None is good for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the numbers of a run.

    A field that is None is *settled* from the weights and the first placement before step 0
    (`settled`), and the settled recipe is what a run and a Release record.
    """

    variant: str = "b0"
    """Which EfficientNet: b0, b1, … b7."""
    weights: str = "best"
    """Start from: in1k, aa, ra, ap, ns, best (highest ImageNet top-1), none (scratch), or a
    release of yours (NAME@vN or its URI)."""
    task: str | None = None
    """multiclass: an image has one class; multilabel: any number of them (binary cross-entropy,
    epochs judged by mean average precision). Not given: as the data are packed."""
    image_size: int | None = None
    """Height and width in px the network sees (≥ 32); not given: the weights' own."""
    progressive: float = 1.0
    """Train images begin at this share of the image size and grow to all of it over three
    quarters of the epochs after the head's; evaluation sees the whole size. 1: they do not."""
    epochs: int = 10
    """Passes over the train split, those of the head alone included."""
    eval_every: int = 1
    """Epochs from one evaluation to the next. The last one of a phase is always evaluated."""
    head_epochs: int | None = None
    """First epochs, in which only the new head learns, on a frozen backbone. Not given: a quarter
    of all for pretrained weights, 0 from scratch."""
    head_views: int = 1
    """Views of each train image that the head's epochs take in turn: the first is the plain one,
    as in evaluation, any further one is cropped and augmented. Nothing is mixed or erased."""
    head_cache: bool = True
    """Compute the features of these views once, for all of the head's epochs and for later runs,
    and keep them as float16 under RUNS/features; off: the backbone runs in every epoch."""
    unfreeze: str = "all"
    """What learns after them: all, head, or stage:N, which is the stages N to 7 (the blockN of
    Keras, blocks.N-1 of timm), the last convolution and the head."""
    batch_size: int = 64
    """Images per optimizer step, over all workers."""
    micro_batch: int | None = None
    """Images per forward pass, a divisor of the batch size: the rows of one lane. Not given:
    batch size / workers, if that fits; then part of the recipe."""
    opt: str = "adamw"
    """Optimizer, by timm's name: adamw, nadamw, lamb, lion, sgd (Nesterov), momentum or
    rmsproptf."""
    lr: float | None = None
    """Peak learning rate. Not given: 1e-3 for AdamW, for other optimizers a multiple of it (sgd
    20, rmsproptf 2, lamb 5, lion 0.1)."""
    head_lr: float | None = None
    """The same while only the head learns. Not given: ten times lr; with --unfreeze head: lr, if
    that is given."""
    layer_decay: float | None = None
    """Factor on the learning rate from one stage to the one below it. Not given: 0.8 for
    pretrained weights, 1 from scratch."""
    momentum: float = 0.9
    """Momentum of optimizers that have one (sgd, momentum, rmsproptf)."""
    weight_decay: float | None = None
    """Not on norms and biases. Not given: 0.05 for AdamW, 1e-4 for sgd, …"""
    sched: str = "cosine"
    """From the peak on: cosine (to 1 % of it at the phase's end) or constant."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, at most half of the phase."""
    clip_grad: float = 0.0
    """Gradients longer than this (norm over all parameters) are shortened to it; 0: never."""
    max_skips: int = 3
    """Steps in a row that may be skipped because their loss or gradient is no finite number;
    after them the run goes back to its newest checkpoint, once, and then ends."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, such as 0.99; it is evaluated too, and
    released if better. After n steps it is at most (1 + n) / (10 + n). 0: no average."""
    patience: int = 0
    """End the run after so many evaluations without a better one, once all that shall learn
    does; 0: never."""
    aa: str = "none"
    """What is done to training views after crop and flip: auto (AutoAugment), trivial
    (TrivialAugment), rand (RandAugment: 2 operations at magnitude 9 of 30) or rand-mM-nN; none."""
    mixup: float = 0.0
    """Alpha of mixup: images of a lane are blended in pairs by a Beta(alpha, alpha) draw; 0: off.
    Training loss and top-1 are told by each image's own label."""
    cutmix: float = 0.0
    """Alpha of cutmix: a box of another image is pasted in. With mixup, each takes half of the
    images; 0: off."""
    reprob: float = 0.0
    """Probability that a box of a training image is erased (noise)."""
    label_smoothing: float = 0.1
    """Share of each target spread over all classes, 0 to 1; of several, each gives of its own."""
    class_weights: str = "none"
    """What the loss of an image is multiplied by, mean 1: balanced (inversely to the train images
    of its class), sqrt (to their square root) or none. What is told of a run stays unweighted."""
    balance: float = 0.0
    """How far classes are levelled by using images more or less often, 0 to 1; an epoch stays as
    long as it is. 0: every image once; 1: every class equally often."""
    dropout: float | None = None
    """Dropout before the head; not given: the variant's (0.2 for b0 … 0.5 for b7)."""
    drop_path: float | None = None
    """Stochastic depth; not given: 0.2."""
    batchnorm: str | None = None
    """'train', 'frozen' (statistics and scales kept as loaded) or 'sync' (train, normalised over
    the whole batch: on GPUs, one worker for each micro-batch); not given: frozen for pretrained
    weights, train from scratch."""
    precision: str | None = None
    """'float32', 'bfloat16' or 'float16' (autocast; the last with a loss scale). Not given:
    bfloat16 on GPUs, float32 on CPUs."""
    layout: str | None = None
    """How images and weights lie in memory: 'channels_last' or 'contiguous' (NCHW). Not given:
    channels_last."""
    compile: bool | None = None
    """Compile the steps of all phases but the head's (torch.compile): needs a C++ compiler and
    begins with minutes of compiling, once for every size of images. Not given: no."""
    crop_scale: float = 0.35
    """Smallest area share of a training crop; the largest is 1."""
    crop_ratio: float = 4 / 3
    """Widest aspect ratio of a training crop; the narrowest is its inverse."""
    flip: float = 0.5
    """Probability that a training view is mirrored left to right."""
    limit: int | None = None
    """Use only the first N images of each split; packing shuffles, so they are a fair sample."""
    seed: int = 0
    """Seeds the order, the views, the new head, dropout, drop path, mixing and erasing."""

    def __post_init__(self) -> None:
        row = variant(self.variant)
        if self.weights == "best":  # recorded as what it is, not as what it was thought to be
            object.__setattr__(self, "weights", BEST_FAMILY)
        if self.weights in FAMILIES:
            row.weights_tag(self.weights)
        for names, good, expected in RULES:
            for name in names.split():
                value = getattr(self, name)
                require(value is None or good(value), name, value, expected)
        micro, head = self.micro_batch, self.head_epochs
        require(micro is None or self.batch_size % micro == 0, "micro_batch", micro,
                f"a divisor of batch_size {self.batch_size}")  # fmt: skip
        most = self.epochs
        require(head is None or head <= most, "head_epochs", head, f"at most epochs, {most}")
        require(self.unfreeze != "head" or head in (None, most), "head_epochs", head,
                f"all {most} epochs where unfreeze is head")  # fmt: skip
        mixes = self.mixup > 0 or self.cutmix > 0
        require(not mixes or min(self.batch_size, micro or 2) > 1, "micro_batch", micro,
                "2 or more images to mix (mixup, cutmix)")  # fmt: skip
        shown = mixes or self.reprob > 0
        require(not shown or self.unfreeze != "head", "unfreeze", "head",
                "all or stage:N with mixup, cutmix or reprob: not for a head")  # fmt: skip
        require(self.opt != "sgd" or self.momentum > 0, "momentum", self.momentum,
                "above 0 for sgd, which is Nesterov's")  # fmt: skip
        require(self.task != MULTILABEL or not self.needs_labels, "task", self.task,
                "multiclass with class_weights or balance: they are for images of one class",
                )  # fmt: skip
        require(self.batchnorm != SYNC or not self.compile, "compile", self.compile,
                "False where batchnorm is sync")  # fmt: skip
        whole = not head and self.unfreeze == "all"
        require(whole or self.weights != "none", "weights", "none",
                "pretrained ones where some stay frozen (head_epochs, unfreeze)")  # fmt: skip

    @property
    def variant_spec(self) -> Variant:
        """The variant's row of the table."""
        return variant(self.variant)

    @property
    def needs_labels(self) -> bool:
        """Whether the labels of the train split must be known before it is read."""
        return self.balance > 0 or self.class_weights != "none"

    @property
    def lanes(self) -> int:
        """Lanes of the plan: `batch_size / micro_batch`. The recipe must be settled."""
        assert self.micro_batch is not None
        return self.batch_size // self.micro_batch

    @property
    def with_defaults(self) -> Self:
        """This recipe with every None decided that neither weights nor placement have a say in."""
        pretrained = self.weights != "none"
        factor, weight_decay = OPTIMIZERS[self.opt]
        lr = self.lr or factor * LR
        alone = self.unfreeze == "head" and self.lr
        return replace(
            self,
            head_epochs=self._decided_head_epochs(pretrained),
            lr=lr,
            head_lr=self.head_lr or (lr if alone else HEAD_LR * lr),
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
            layer_decay=self.layer_decay or (LAYER_DECAY if pretrained else 1.0),
            dropout=self.variant_spec.dropout if self.dropout is None else self.dropout,
            drop_path=DROP_PATH if self.drop_path is None else self.drop_path,
            batchnorm=self.batchnorm or ("frozen" if pretrained else "train"),
        )

    def _decided_head_epochs(self, pretrained: bool) -> int:
        """One of two to seven epochs, two of eight, …; a single epoch is for all that learns."""
        if self.head_epochs is not None:
            return self.head_epochs
        if self.unfreeze == "head":
            return self.epochs
        return min(self.epochs - 1, max(1, self.epochs // 4)) if pretrained else 0

    def resolved(
        self, spec: InputSpec, *, workers: int, on_gpu: bool, task: str = MULTICLASS
    ) -> Self:
        """This recipe with every None decided: from the weights' spec and the first placement.

        `task` is the data set's; its images may be of one class and the recipe's multilabel.
        """
        require(self.task != MULTICLASS or task == MULTICLASS, "task", self.task,
                f"{task}: in this data set an image has any number of classes")  # fmt: skip
        size = self.image_size or spec.resolution
        speed = TABLE[self.variant, "cuda" if on_gpu else "cpu"]
        return replace(
            self.with_defaults,
            task=self.task or task,
            image_size=size,
            micro_batch=self.micro_batch or self._fitting_micro_batch(size, workers),
            precision=self.precision or ("bfloat16" if on_gpu else "float32"),
            layout=self.layout or speed.layout,
            compile=speed.compile if self.compile is None else self.compile,
        )

    def _fitting_micro_batch(self, size: int, workers: int) -> int:
        """Largest divisor of the batch size that is ≤ batch_size / workers and should fit.

        Half of what timm fitted into 24 GB leaves room for a 16 GB GPU or, in float32, a few GB
        of a laptop's memory.
        """
        fits = self.variant_spec.images_in(12, size)
        least = 2 if self.mixup or self.cutmix else 1
        largest = max(1, min(self.batch_size // workers, int(fits)))
        divisors = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
        return max((m for m in divisors if least <= m <= largest), default=divisors[least - 1])

    def agrees_with(self, recorded: Self) -> bool:
        """Whether every field given here is what `recorded` (a settled recipe) holds."""
        return not self.differences(recorded)

    def differences(self, recorded: Self) -> str:
        """The fields that differ from `recorded`, for a person to read.

        A None that weights or placement settled agrees with whatever it was settled to; but a
        `limit` of None means every image.
        """
        mine, theirs = asdict(self.with_defaults), asdict(recorded)
        return ", ".join(
            f"{name} {value!r} (recorded: {theirs[name]!r})"
            for name, value in mine.items()
            if value != theirs[name] and (value is not None or name == "limit")
        )
