"""Recipe: every setting that decides the numbers of a run."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from effnet_ray import recipe_rules
from effnet_ray.recipe_rules import CHOICES, MULTICLASS, MULTILABEL, OPTIMIZERS, SYNC, TASKS
from effnet_ray.schema import require
from effnet_ray.variants import DROP_PATH, InputSpec, Variant, variant

__all__ = ["MULTICLASS", "MULTILABEL", "OPTIMIZERS", "SYNC", "TASKS", "Recipe"]

LR, LAYER_DECAY = 1e-3, 0.8
"""Defaults: AdamW's peak learning rate, and the layer decay of pretrained weights. A higher rate
or factor learns faster and forgets more of what the weights have learned. Not measured with
ImageNet weights; on a small backbone without them, `benchmarks/results/transfer.md` measures 0.8
as worse than no layer decay."""
HEAD_LR_FACTOR = 10.0
"""Default head_lr as a multiple of lr: a newly initialised head has further to go, and at
the rate of the backbone it would need more epochs. Customary, not measured here."""
MICRO_BATCH_GB = 12
"""GPU memory for which the default micro-batch is chosen: half of the 24 GB in timm's benchmark,
which leaves room on a 16 GB GPU or, in float32, takes a few GB of a laptop's memory."""

CHANGES_VIEW = {"changes_view": True}
"""Metadata of the fields that change how a training view is drawn: they are part of the feature
cache's key. Mark every new augmentation that applies during linear probing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Every setting that decides the numbers of a run.

    The defaults of unset fields depend on the weights, the data set and the first placement. They
    are filled in before the first step; runs and releases record this resolved recipe.
    """

    variant: str = "b0"
    """EfficientNet variant: b0 to b7, lite0 to lite4, v2_b0 to v2_b3, v2_s, v2_m or v2_l. `tune`
    takes --variants instead."""
    weights: str = "best"
    """Initial weights: a pretrained family of the variant (in1k, aa, ra, ap, ns, in21k, in21k_ft,
    or best: the highest ImageNet top-1), none (train from scratch), or one of your releases
    (NAME@vN or its URI)."""
    task: str | None = field(default=None, metadata={"choices": CHOICES["task"]})
    """multiclass (one class per image) or multilabel (any number of labels per image: binary
    cross-entropy, the best epoch chosen by mean average precision). Default: the data set's."""
    image_size: int | None = None
    """Height and width of the network's input, px, at least 32. Default: the resolution of the
    weights."""
    progressive: float = 1.0
    """Progressive resizing: training starts at this share of the image size and grows to the full
    size over the first three quarters of the epochs after linear probing; evaluation always uses
    the full size. 1: off."""
    epochs: int = 10
    """Epochs (passes over the train split), including the linear-probing epochs."""
    eval_every: int = 1
    """Epochs between evaluations. The last epoch of each phase is always evaluated."""
    head_epochs: int | None = None
    """Linear-probing epochs: epochs at the start that train only the new head, on a frozen
    backbone. Default: a quarter of all epochs for pretrained weights, 0 from scratch."""
    head_views: int = 1
    """Number of views of each image during linear probing, cycled by epoch: view 1 is the eval
    view, the others are augmented random crops, without mixup, cutmix or random erasing."""
    head_cache: bool = True
    """Feature cache: compute the backbone's features of these views once, and keep them as
    float16 under RUNS/features for all linear-probing epochs and for later runs. Off: the
    backbone runs in every linear-probing epoch."""
    unfreeze: str = "all"
    """Layers trained after linear probing: all, head, or stage:N (stage N and everything above
    it). Stage N is blockN in Keras and blocks.N-1 in timm."""
    batch_size: int = 64
    """Batch size: images per optimizer step, over all workers."""
    micro_batch: int | None = None
    """Images per forward pass (gradient accumulation). Must divide the batch size. Default: batch
    size / workers, reduced if it may not fit in memory. The chosen value is saved with the run."""
    opt: str = field(default="adamw", metadata={"choices": CHOICES["opt"]})
    """Optimizer, by timm's name: adamw, nadamw, lamb, lion, sgd (with Nesterov momentum),
    momentum (SGD without Nesterov) or rmsproptf."""
    lr: float | None = None
    """Peak learning rate. Default: 1e-3 for adamw and nadamw; × 20 for sgd and momentum, × 2 for
    rmsproptf, × 5 for lamb, × 0.1 for lion."""
    head_lr: float | None = None
    """Peak learning rate of linear probing. Default: 10 × lr; with --unfreeze head: --lr, if
    given."""
    layer_decay: float | None = None
    """Layer-wise learning-rate decay: factor from each stage to the one below it. Default: 0.8
    for pretrained weights, 1 (off) from scratch."""
    momentum: float = 0.9
    """Momentum, for sgd, momentum and rmsproptf."""
    weight_decay: float | None = None
    """Weight decay; not applied to norms and biases. Default: 0.05 for adamw and nadamw, 0.02 for
    lamb, 0.5 for lion, 1e-4 for sgd and momentum, 1e-5 for rmsproptf."""
    sched: str = field(default="cosine", metadata={"choices": CHOICES["sched"]})
    """Learning-rate schedule after warm-up: cosine (down to 1 % of the peak at the end of the
    phase) or constant."""
    warmup_epochs: float = 1.0
    """Epochs of linear learning-rate warm-up; at most half of a phase."""
    clip_grad: float = 0.0
    """Gradient clipping: maximum norm over all parameters. 0: off."""
    max_skips: int = 3
    """Consecutive steps that may be skipped because of a NaN or infinite loss or gradient. If
    more are skipped, the run resumes once from the newest checkpoint; if it happens again, it
    fails."""
    ema_decay: float = 0.0
    """EMA of the weights: decay per step, such as 0.99. The average is evaluated too, and released
    if it is better. After n steps the decay is at most (1 + n) / (10 + n). 0: off."""
    patience: int = 0
    """Early stopping: evaluations without improvement before the run ends, counted from the end
    of linear probing. 0: off."""
    aa: str = field(default="none", metadata=CHANGES_VIEW)
    """Auto-augment policy of training images, after crop and flip: auto (AutoAugment), trivial
    (TrivialAugment), rand (RandAugment: 2 operations at magnitude 9 of 30), rand-mM-nN (magnitude
    M, N operations) or none."""
    mixup: float = 0.0
    """Mixup alpha: images of a micro-batch are blended in pairs, with a weight drawn from
    Beta(alpha, alpha). Reported training loss and top-1 ignore the mixed-in label. 0: off."""
    cutmix: float = 0.0
    """CutMix alpha: a box of another image is pasted in. If mixup is on too, each image gets one
    of the two at random. 0: off."""
    reprob: float = 0.0
    """Random erasing: probability that a box of a training image is replaced by noise."""
    label_smoothing: float = 0.1
    """Label smoothing: share of each target that is spread over all classes, 0 to 1. For
    multilabel data, each 0/1 target is smoothed."""
    class_weights: str = field(default="none", metadata={"choices": CHOICES["class_weights"]})
    """Class weights of the loss, with mean 1: balanced (inverse to the number of the class's
    training images), sqrt (inverse to its square root) or none. Reported metrics are
    unweighted."""
    balance: float = 0.0
    """Class-balanced sampling, 0 to 1: 0 draws each training image once per epoch, 1 draws all
    classes equally often. The length of an epoch does not change."""
    dropout: float | None = None
    """Dropout before the head. Default: the variant's (0.2 for b0 to 0.5 for b7)."""
    drop_path: float | None = None
    """Stochastic depth (drop path). Default: 0.2."""
    batchnorm: str | None = field(default=None, metadata={"choices": CHOICES["batchnorm"]})
    """BatchNorm: train, frozen (statistics and scales stay as loaded) or sync (train, normalised
    over the whole batch: on GPUs, with one worker per micro-batch). Default: frozen for pretrained
    weights, train from scratch."""
    precision: str | None = field(default=None, metadata={"choices": CHOICES["precision"]})
    """Mixed precision (autocast): float32, bfloat16 or float16 (with a loss scale). Default:
    bfloat16 on GPUs, float32 on CPUs."""
    layout: str | None = field(default=None, metadata={"choices": CHOICES["layout"]})
    """Memory layout of images and weights: channels_last or contiguous (NCHW). Default:
    channels_last."""
    compile: bool | None = None
    """Compile the training steps after linear probing (torch.compile). Needs a C++
    compiler, and takes minutes at the start for each image size. Default: no."""
    crop_scale: float = field(default=0.35, metadata=CHANGES_VIEW)
    """Random resized crop: smallest share of the image's area; the largest is 1."""
    crop_ratio: float = field(default=4 / 3, metadata=CHANGES_VIEW)
    """Random resized crop: largest aspect ratio; the smallest is its inverse."""
    flip: float = field(default=0.5, metadata=CHANGES_VIEW)
    """Horizontal flip: probability for each training image."""
    limit: int | None = None
    """Use only the first N images of each split. Packing shuffles, so they are a random sample
    (not with pack --in-place). Default: all images."""
    seed: int = 0
    """Random seed of image order, augmentation, the new head, dropout, drop path, mixup, cutmix
    and random erasing."""

    def __post_init__(self) -> None:
        recipe_rules.check(self)

    @property
    def variant_spec(self) -> Variant:
        """The variant's row."""
        return variant(self.variant)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed (mixup or cutmix)."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def needs_labels(self) -> bool:
        """Whether all labels of the train split must be read before training."""
        return self.balance > 0 or self.class_weights != "none"

    @property
    def view_settings(self) -> tuple[Any, ...]:
        """What decides a drawn training view: the seed, then the `CHANGES_VIEW` fields."""
        marked = [item.name for item in fields(self) if item.metadata.get("changes_view")]
        return self.seed, *(getattr(self, name) for name in marked)

    @property
    def lanes(self) -> int:
        """Micro-batches per optimizer step. The recipe must be resolved."""
        assert self.micro_batch is not None
        return self.batch_size // self.micro_batch

    @property
    def with_family(self) -> Self:
        """This recipe with the family itself in place of `best`, which may change later."""
        return replace(self, weights=self.variant_spec.resolved_family(self.weights))

    @property
    def with_defaults(self) -> Self:
        """This recipe with every default that depends on the recipe alone."""
        pretrained = self.weights != "none"
        factor, weight_decay = OPTIMIZERS[self.opt]
        lr = self.lr or factor * LR
        lr_is_for_head = self.unfreeze == "head" and self.lr
        return replace(
            self.with_family,
            head_epochs=self._default_head_epochs(pretrained),
            lr=lr,
            head_lr=self.head_lr or (lr if lr_is_for_head else HEAD_LR_FACTOR * lr),
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
            layer_decay=self.layer_decay or (LAYER_DECAY if pretrained else 1.0),
            dropout=self.variant_spec.dropout if self.dropout is None else self.dropout,
            drop_path=DROP_PATH if self.drop_path is None else self.drop_path,
            batchnorm=self.batchnorm or ("frozen" if pretrained else "train"),
        )

    def _default_head_epochs(self, pretrained: bool) -> int:
        """A quarter of the epochs, at least one; but a single epoch trains everything."""
        if self.head_epochs is not None:
            return self.head_epochs
        if self.unfreeze == "head":
            return self.epochs
        return min(self.epochs - 1, max(1, self.epochs // 4)) if pretrained else 0

    def resolved(
        self, spec: InputSpec, *, workers: int, on_gpu: bool, task: str = MULTICLASS
    ) -> Self:
        """This recipe with every None replaced, given the weights' spec and the first placement.

        `task` is the data set's. A multiclass data set may be trained as multilabel.
        """
        require(
            self.task != MULTICLASS or task == MULTICLASS,
            "task",
            self.task,
            f"{task}: images of this data set have any number of classes",
        )
        size, row = self.image_size or spec.resolution, self.variant_spec
        return replace(
            self.with_defaults,
            task=self.task or task,
            image_size=size,
            micro_batch=self.micro_batch or self._default_micro_batch(size, workers),
            precision=self.precision or ("bfloat16" if on_gpu else "float32"),
            layout=self.layout or row.layout,
            compile=row.compile if self.compile is None else self.compile,
        )

    def _default_micro_batch(self, size: int, workers: int) -> int:
        """Largest divisor of the batch size that is ≤ batch_size / workers and should fit."""
        fits = int(self.variant_spec.images_in(MICRO_BATCH_GB, size))
        smallest = 2 if self.mixes else 1
        largest = max(1, min(self.batch_size // workers, fits))
        divisors = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
        allowed = (m for m in divisors if smallest <= m <= largest)
        return max(allowed, default=divisors[smallest - 1])

    def differences(self, recorded: Self) -> str:
        """The fields that differ from those of a resolved recipe, in words; empty if none does.

        A None that depends on weights or placement agrees with every recorded value; but a
        `limit` of None means all images.
        """
        ours, theirs = asdict(self.with_defaults), asdict(recorded)
        return ", ".join(
            f"{name} {value!r} (recorded: {theirs[name]!r})"
            for name, value in ours.items()
            if value != theirs[name] and (value is not None or name == "limit")
        )
