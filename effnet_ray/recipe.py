"""Recipe: every setting that decides the numbers of a run."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Self

from effnet_ray import recipe_checks
from effnet_ray.recipe_fields import RecipeFields
from effnet_ray.recipe_rules import (
    BATCH_SIZE,
    MULTICLASS,
    MULTILABEL,
    OPTIMIZERS,
    SOLVED,
    SYNC,
    TASKS,
    TRAINED,
)
from effnet_ray.schema import require
from effnet_ray.variants import DROP_PATH, FAMILIES, InputSpec

__all__ = [
    "MULTICLASS",
    "MULTILABEL",
    "OPTIMIZERS",
    "SOLVED",
    "SYNC",
    "TASKS",
    "TRAINED",
    "Recipe",
]

LR, LAYER_DECAY = 1e-3, 0.8
"""Defaults: AdamW's peak learning rate, and the layer decay of pretrained weights. A higher rate
or factor learns faster and forgets more of what the weights have learned. With ImageNet weights
3e-4 without layer decay was as good (`benchmarks/results/real_weights.md`); on a small backbone
without them, `benchmarks/results/transfer.md` measures 0.8 as worse than no layer decay."""
MIN_BATCH_SIZE, MIN_STEPS = 16, 25
"""Default batch size: the largest power of two, from this one to 64 for each GPU, of which an
epoch has so many steps; from scratch at least 64. The default lr follows its square root. With
1,000 images 32 at 7e-4 ended 0.6 points above 64 at 1e-3, on the mean of three sets with one seed
(`benchmarks/results/real_weights.md`). More than 64 was not measured."""
FEW_IMAGES, FEW_LR_FACTOR = 150, 0.6
"""Fewer train images of pretrained weights have this factor of the default lr: with 60 to 100
images 16 at 3e-4 ended above the solved head, at 5e-4 on average below it; with 250 images 5e-4
ended 1.4 points above 3e-4 (`benchmarks/results/real_weights.md`)."""
MIN_IMAGE_SIZE, MAX_ENLARGEMENT = 96, 8
"""Default image size of small images: eight times their shorter side, but no less than 96 px, in
steps of 32. With frozen features of Lite0, images of 8 px gained nothing above 96 px; those of
28 px gained up to 224, a point of top-1 over 160 (`benchmarks/results/real_weights.md`)."""
HEAD_LR_FACTOR = 10.0
"""Default head_lr as a multiple of lr: a newly initialised head has further to go, and at
the rate of the backbone it would need more epochs. Customary, not measured here."""
MICRO_BATCH_GB = 12
"""GPU memory for which the default micro-batch is chosen: half of the 24 GB in timm's benchmark,
which leaves room on a 16 GB GPU or, in float32, takes a few GB of a laptop's memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(RecipeFields):
    """Every setting that decides the numbers of a run.

    The defaults of unset fields depend on the weights, the data set and the first placement. They
    are filled in before the first step; runs and releases record this resolved recipe.
    """

    def __post_init__(self) -> None:
        """Raises RecipeError or WeightsError for the first value that is not allowed."""
        recipe_checks.check(self)

    @property
    def lanes(self) -> int:
        """Micro-batches per optimizer step. The recipe must be resolved."""
        assert self.batch_size is not None and self.micro_batch is not None
        return self.batch_size // self.micro_batch

    @property
    def rate_follows_images(self) -> bool:
        """Whether batch size and rate are defaults that the number of train images changes."""
        given = self.batch_size or self.lr or self.micro_batch
        return not given and self.unfreeze != "head"

    def for_images(self, train_images: int, gpus: int = 1) -> Self:
        """This recipe with the defaults that depend on the numbers of train images and GPUs.

        Batch size and rate belong together: if one of them is given, so is the other's default.
        """
        if not self.rate_follows_images:
            return self
        batch_size = BATCH_SIZE if self.weights == "none" else MIN_BATCH_SIZE
        while 2 * batch_size <= min(BATCH_SIZE * gpus, train_images / MIN_STEPS):
            batch_size *= 2
        factor, _ = OPTIMIZERS[self.opt]
        lr = factor * LR * math.sqrt(batch_size / BATCH_SIZE)
        if train_images < FEW_IMAGES and self.weights != "none":
            lr *= FEW_LR_FACTOR
        return replace(self, batch_size=batch_size, lr=lr)

    @property
    def size_follows_images(self) -> bool:
        """Whether the image size is a default that small images change."""
        return self.image_size is None and self.with_family.weights in FAMILIES

    def for_sides(self, side: float | None) -> Self:
        """This recipe with the image size that suits images whose shorter side is `side` px.

        Only smaller than that of the weights, and only for pretrained families.
        """
        if side is None or not self.size_follows_images:
            return self
        size = max(MIN_IMAGE_SIZE, math.ceil(MAX_ENLARGEMENT * side / 32) * 32)
        full_size = self.variant_spec.input_spec(self.with_family.weights).resolution
        return replace(self, image_size=size) if size < full_size else self

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
        head = self.head or self._default_head()
        return replace(
            self.with_family,
            head=head,
            batch_size=self.batch_size or BATCH_SIZE,
            epochs=1 if head == SOLVED and self.unfreeze == "head" else self.epochs,
            head_epochs=self._default_head_epochs(head, pretrained),
            lr=lr,
            head_lr=self.head_lr or (lr if lr_is_for_head else HEAD_LR_FACTOR * lr),
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
            layer_decay=self.layer_decay or (LAYER_DECAY if pretrained else 1.0),
            dropout=self.variant_spec.dropout if self.dropout is None else self.dropout,
            drop_path=DROP_PATH if self.drop_path is None else self.drop_path,
            batchnorm=self.batchnorm or ("frozen" if pretrained else "train"),
        )

    def _default_head(self) -> str:
        """Solved for a pretrained family, unless a field sets how the head is trained.

        The head of a release may be better as it is, and a single epoch trains all layers.
        """
        can_solve = self.with_family.weights in FAMILIES and self.head_cache
        trains = self.head_epochs is not None or self.head_lr or self.head_views > 1
        trains_too = self.lr if self.unfreeze == "head" else self.epochs == 1
        return SOLVED if can_solve and not (trains or trains_too) else TRAINED

    def _default_head_epochs(self, head: str, pretrained: bool) -> int:
        """One measures a solved head; a trained one has a quarter of the epochs, if not one."""
        if self.head_epochs is not None:
            return self.head_epochs
        if head == SOLVED:
            return 1
        if self.unfreeze == "head":
            return self.epochs
        return min(self.epochs - 1, max(1, self.epochs // 4)) if pretrained else 0

    def resolved(
        self,
        spec: InputSpec,
        *,
        workers: int,
        on_gpu: bool,
        bfloat16: bool = True,
        task: str = MULTICLASS,
    ) -> Self:
        """This recipe with every None replaced, given the weights' spec and the first placement.

        `bfloat16`: its GPUs compute in bfloat16 at full speed.
        `task` is the data set's. A multiclass data set may be trained as multilabel.
        """
        require(
            self.task != MULTICLASS or task == MULTICLASS,
            "task",
            self.task,
            f"{task}: images of this data set have any number of classes",
        )
        size, row = self.image_size or spec.resolution, self.variant_spec
        half = "bfloat16" if bfloat16 else "float16"
        return replace(
            self.with_defaults,
            task=self.task or task,
            image_size=size,
            micro_batch=self.micro_batch or self._default_micro_batch(size, workers),
            precision=self.precision or (half if on_gpu else "float32"),
            layout=self.layout or row.layout,
            compile=bool(self.compile),
        )

    def _default_micro_batch(self, size: int, workers: int) -> int:
        """Largest divisor of the batch size that is ≤ batch_size / workers and should fit."""
        batch_size = self.batch_size or BATCH_SIZE
        fits = int(self.variant_spec.images_in(MICRO_BATCH_GB, size))
        smallest = 2 if self.mixes else 1
        largest = max(1, min(batch_size // workers, fits))
        divisors = [m for m in range(1, batch_size + 1) if batch_size % m == 0]
        allowed = (m for m in divisors if smallest <= m <= largest)
        return max(allowed, default=divisors[smallest - 1])

    def differences(self, recorded: Self) -> str:
        """The fields that differ from those of a resolved recipe, in words; empty if none does.

        A None that depends on weights or placement agrees with every recorded value; but a
        `limit` of None means all images, a `teacher` of None that there is none.
        """
        ours, theirs = asdict(self.with_defaults), asdict(recorded)
        return ", ".join(
            f"{name} {value!r} (recorded: {theirs[name]!r})"
            for name, value in ours.items()
            if value != theirs[name] and (value is not None or name in ("limit", "teacher"))
        )
