"""The fields of a Recipe, each with its rule.

A new field has `LATER` in its metadata; its flag, its JSON key and its domain in a sweep follow.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from effnet_ray.recipe_rules import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    AUTO_AUGMENT,
    BATCHNORM,
    CLASS_WEIGHTS,
    DECAY,
    EPOCHS,
    GRADIENTS,
    HEAD,
    IMAGE_SIZE,
    IMAGES_PER_STEP,
    LAYOUT,
    OPT,
    PRECISION,
    RATIO,
    SCHED,
    SHARE,
    SHARE_ABOVE_0,
    TASK,
)
from effnet_ray.variants import Variant, variant

CHANGES_VIEW = {"changes_view": True}
"""Metadata of the fields that change how a training view is drawn: they are part of the feature
cache's key. Mark every new augmentation that applies during linear probing."""

LATER = {"later": True}
"""Metadata of fields that were added later: while they have their default, they are no part of a
run's default name. Mark every new field, or all unnamed runs are renamed and none is resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFields:
    """What a Recipe consists of. A field's docstring is the help of its flag.

    Sources of defaults: dropout and drop path are EfficientNet's (Tan & Le 2019, §5.2), label
    smoothing 0.1 is Szegedy et al. 2016's, the crop's aspect ratio Szegedy et al. 2015's, and
    `recipe` has those of rates. Ten epochs, one of them warm-up, batches of 64 and flips of every
    second image are customary. Crops of at least 0.35 of the image, where training from scratch
    uses 0.08, were chosen so that small train splits show whole objects; not measured.
    """

    variant: str = "b0"
    """EfficientNet variant, such as b0, lite0 or v2_s; an unknown name lists all. `tune` takes
    --variants instead."""
    weights: str = "best"
    """Initial weights: a pretrained family of the variant (in1k, aa, ra, ap, ns, in21k, in21k_ft,
    or best: the highest ImageNet top-1), none (train from scratch), or one of your releases
    (NAME@vN or its URI)."""
    task: str | None = field(default=None, metadata=TASK)
    """multiclass (one class per image) or multilabel (any number of labels per image: binary
    cross-entropy, the best epoch chosen by mean average precision). Default: the data set's."""
    image_size: int | None = field(default=None, metadata=IMAGE_SIZE)
    """Height and width of the network's input, px, at least 32. Default: the resolution of the
    weights; for images so small that eight times their shorter side is less, that, but at least
    96."""
    progressive: float = field(default=1.0, metadata=SHARE_ABOVE_0)
    """Progressive resizing: training starts at this share of the image size and grows to the full
    size over the first three quarters of the epochs after linear probing; evaluation always uses
    the full size. 1: off."""
    epochs: int = field(default=10, metadata=EPOCHS)
    """Epochs (passes over the train split), including the linear-probing epochs. A solved head
    alone (--unfreeze head) always takes one."""
    eval_every: int = field(default=1, metadata=AT_LEAST_1)
    """Epochs between evaluations. The last epoch of each phase is always evaluated."""
    head: str | None = field(default=None, metadata=HEAD | LATER)
    """How linear probing finds the new head: solved (logistic regression of the train images'
    cached features, with an L2 penalty chosen on a held-out fifth of them; its epoch only
    measures the result) or trained (by the optimizer, for head_epochs). Default: solved for a
    pretrained family, unless head_lr, head_epochs, several head_views, no head_cache or a single
    epoch is given, or lr with unfreeze head."""
    head_epochs: int | None = field(default=None, metadata=AT_LEAST_0)
    """Linear-probing epochs: epochs at the start with a frozen backbone. Default: 1 for a solved
    head, a quarter of all epochs for a trained one, 0 from scratch."""
    head_views: int = field(default=1, metadata=AT_LEAST_1)
    """Number of views of each image during linear probing, cycled by epoch: view 1 is the eval
    view, the others are augmented random crops, without mixup, cutmix or random erasing."""
    head_cache: bool = True
    """Feature cache: compute the backbone's features of these views once, and keep them as
    float16 under RUNS/features for all linear-probing epochs and for later runs. Off: the
    backbone runs in every linear-probing epoch."""
    unfreeze: str = "all"
    """Layers trained after linear probing: all, head, or stage:N (stage N and everything above
    it). Stage N is blockN in Keras and blocks.N-1 in timm."""
    batch_size: int | None = field(default=None, metadata=IMAGES_PER_STEP)
    """Batch size: images per optimizer step, over all workers. Default: the largest power of two
    of which an epoch has 25 steps, up to 64 for each GPU, and at least 16 (64 from scratch); 64 if
    lr or micro_batch is given; for tune: for one GPU."""
    micro_batch: int | None = field(default=None, metadata=AT_LEAST_1)
    """Images per forward pass (gradient accumulation). Must divide the batch size. Default: batch
    size / workers, reduced if it may not fit in memory. The chosen value is saved with the run."""
    opt: str = field(default="adamw", metadata=OPT)
    """Optimizer, by timm's name: adamw, nadamw, lamb, lion, sgd (with Nesterov momentum),
    momentum (SGD without Nesterov) or rmsproptf."""
    lr: float | None = field(default=None, metadata=ABOVE_0)
    """Peak learning rate. Default: 1e-3 for adamw and nadamw; × 20 for sgd and momentum, × 2 for
    rmsproptf, × 5 for lamb, × 0.1 for lion; times the square root of a default batch size / 64;
    × 0.6 for pretrained weights and fewer than 150 train images."""
    head_lr: float | None = field(default=None, metadata=ABOVE_0)
    """Peak learning rate of linear probing, for a trained head. Default: 10 × lr; with --unfreeze
    head: --lr, if given."""
    layer_decay: float | None = field(default=None, metadata=SHARE_ABOVE_0)
    """Layer-wise learning-rate decay: factor from each stage to the one below it. Default: 0.8
    for pretrained weights, 1 (off) from scratch."""
    momentum: float = field(default=0.9, metadata=DECAY)
    """Momentum, for sgd, momentum and rmsproptf."""
    weight_decay: float | None = field(default=None, metadata=AT_LEAST_0)
    """Weight decay; not applied to norms and biases. Default: 0.05 for adamw and nadamw, 0.02 for
    lamb, 0.5 for lion, 1e-4 for sgd and momentum, 1e-5 for rmsproptf."""
    sched: str = field(default="cosine", metadata=SCHED)
    """Learning-rate schedule after warm-up: cosine (down to 1 % of the peak at the end of the
    phase) or constant."""
    warmup_epochs: float = field(default=1.0, metadata=AT_LEAST_0)
    """Epochs of linear learning-rate warm-up; at most half of a phase."""
    clip_grad: float = field(default=0.0, metadata=AT_LEAST_0)
    """Gradient clipping: maximum norm over all parameters. 0: off."""
    max_skips: int = field(default=3, metadata=AT_LEAST_0)
    """Consecutive steps that may be skipped because of a NaN or infinite loss or gradient. If
    more are skipped, the run resumes once from the newest checkpoint; if it happens again, it
    fails."""
    ema_decay: float = field(default=0.0, metadata=DECAY)
    """EMA of the weights: decay per step, such as 0.99. The average is evaluated too, and released
    if it is better. After n steps the decay is at most (1 + n) / (10 + n). 0: off."""
    patience: int = field(default=0, metadata=AT_LEAST_0)
    """Early stopping: evaluations without improvement before the run ends, counted from the end
    of linear probing. 0: off."""
    aa: str = field(default="none", metadata=AUTO_AUGMENT | CHANGES_VIEW)
    """Auto-augment policy of training images, after crop and flip: auto (AutoAugment), trivial
    (TrivialAugment), rand (RandAugment: 2 operations at magnitude 9 of 30), rand-mM-nN (magnitude
    M, N operations) or none."""
    mixup: float = field(default=0.0, metadata=AT_LEAST_0)
    """Mixup alpha: images of a micro-batch are blended in pairs, with a weight drawn from
    Beta(alpha, alpha). Reported training loss and top-1 ignore the mixed-in label. 0: off."""
    cutmix: float = field(default=0.0, metadata=AT_LEAST_0)
    """CutMix alpha: a box of another image is pasted in. If mixup is on too, each image gets one
    of the two at random. 0: off."""
    reprob: float = field(default=0.0, metadata=SHARE)
    """Random erasing: probability that a box of a training image is replaced by noise."""
    label_smoothing: float = field(default=0.1, metadata=SHARE)
    """Label smoothing: share of each target that is spread over all classes, 0 to 1. For
    multilabel data, each 0/1 target is smoothed."""
    class_weights: str = field(default="none", metadata=CLASS_WEIGHTS)
    """Class weights of the loss, with mean 1: balanced (inverse to the number of the class's
    training images), sqrt (inverse to its square root) or none. Reported metrics are
    unweighted."""
    balance: float = field(default=0.0, metadata=SHARE)
    """Class-balanced sampling, 0 to 1: 0 draws each training image once per epoch, 1 draws all
    classes equally often. The length of an epoch does not change."""
    teacher: str | None = field(default=None, metadata=LATER)
    """Knowledge distillation: a release (NAME@vN or its URI; if an alias moves, the same command
    is another run) whose probabilities of the train images are learned beside their labels. It
    must know all classes of the data. Its logits of the images' eval views are computed once and
    kept under RUNS/features."""
    teacher_weight: float = field(default=0.5, metadata=SHARE | LATER)
    """Weight of the teacher's probabilities in the loss, 0 to 1; the labels have the rest."""
    teacher_temperature: float = field(default=1.0, metadata=ABOVE_0 | LATER)
    """Temperature of the teacher's and the network's probabilities in that part of the loss."""
    dropout: float | None = field(default=None, metadata=SHARE)
    """Dropout before the head. Default: the variant's (0.2 for b0 to 0.5 for b7)."""
    drop_path: float | None = field(default=None, metadata=SHARE)
    """Stochastic depth (drop path). Default: 0.2."""
    batchnorm: str | None = field(default=None, metadata=BATCHNORM)
    """BatchNorm: train, frozen (statistics and scales stay as loaded) or sync (train, normalised
    over the whole batch: on GPUs, with one worker per micro-batch). Default: frozen for pretrained
    weights, train from scratch."""
    precision: str | None = field(default=None, metadata=PRECISION)
    """Mixed precision (autocast): float32, bfloat16 or float16 (with a loss scale). Default:
    bfloat16 on GPUs, float16 on those older than bfloat16 (T4), float32 on CPUs."""
    gradients: str = field(default="float32", metadata=GRADIENTS | LATER)
    """Precision in which workers add up their gradients: float32, or bfloat16, which sends half as
    much (for machines whose network is slower than about 25 Gbit/s). With bfloat16 the loss curve
    depends a little on the number of workers."""
    layout: str | None = field(default=None, metadata=LAYOUT)
    """Memory layout of images and weights: channels_last or contiguous (NCHW). Default:
    channels_last."""
    compile: bool | None = None
    """Compile the training steps after linear probing (torch.compile). Needs a C++ compiler,
    and takes about a minute for each image size on a CPU. Default: yes for a run on this machine's
    CPUs that trains for half an hour or more per image size, if a compiler works; else no."""
    crop_scale: float = field(default=0.35, metadata=SHARE_ABOVE_0 | CHANGES_VIEW)
    """Random resized crop: smallest share of the image's area; the largest is 1."""
    crop_ratio: float = field(default=4 / 3, metadata=RATIO | CHANGES_VIEW)
    """Random resized crop: largest aspect ratio; the smallest is its inverse."""
    flip: float = field(default=0.5, metadata=SHARE | CHANGES_VIEW)
    """Horizontal flip: probability for each training image."""
    limit: int | None = field(default=None, metadata=AT_LEAST_1)
    """Use only the first N images of each split. Packing shuffles, so they are a random sample
    (not with pack --in-place). Default: all images."""
    seed: int = field(default=0, metadata=AT_LEAST_0)
    """Random seed of image order, augmentation, the new head, dropout, drop path, mixup, cutmix
    and random erasing."""

    @property
    def for_names(self) -> dict[str, Any]:
        """The fields that default names follow from: those added later only if they are set."""
        later = {item.name: item.default for item in fields(self) if item.metadata.get("later")}
        values = asdict(self).items()
        return {name: v for name, v in values if name not in later or v != later[name]}

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
