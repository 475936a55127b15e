"""Recipe and Placement: what decides a run's numbers, and what decides only where and how fast.

Changing a Placement never changes a loss curve beyond float noise; that is why the two are two.
Both are frozen, checked on construction, and survive JSON.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_type_hints

from effnet_ray.errors import RecipeError
from effnet_ray.variants import (
    BEST_FAMILY,
    DROP_PATH,
    FAMILIES,
    MIN_IMAGE_SIZE,
    InputSpec,
    Variant,
    variant,
)

Record = TypeVar("Record")


def from_dict(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Build a dataclass from its JSON form, refusing unknown names and saying the nearest one."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass type
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": known are {', '.join(known)}"
            raise RecipeError(f"{kind.__name__} has no field {name!r}{hint}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        _check_type(f"{kind.__name__}.{name}", value, hints[name])
    return kind(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_type(name: str, value: object, hint: Any) -> None:
    """Refuse a JSON value of another type than a plain field's; containers are left alone."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return
    allowed = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in allowed:
        names = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise RecipeError(f"{name} is {value!r}: expected {names}")


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise RecipeError(f"{field} is {value!r}: expected {expected}")


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
    image_size: int | None = None
    """Height and width in px the network sees (≥ 32); not given: the weights' own."""
    epochs: int = 10
    """Passes over the train split."""
    batch_size: int = 64
    """Images per optimizer step, over all workers."""
    micro_batch: int | None = None
    """Images per forward pass, a divisor of the batch size: the rows of one lane. Not given:
    batch size / workers, if that fits; then part of the recipe."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; linear warm-up, then cosine to 1 % of it."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; not on norms and biases."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up."""
    label_smoothing: float = 0.1
    """Share of each target spread over all classes, 0 to 1."""
    dropout: float | None = None
    """Dropout before the head; not given: the variant's (0.2 for b0 … 0.5 for b7)."""
    drop_path: float | None = None
    """Stochastic depth; not given: 0.2."""
    batchnorm: str | None = None
    """'train' or 'frozen' (statistics and scales kept as loaded); not given: frozen for
    pretrained weights, train from scratch."""
    precision: str | None = None
    """'float32' or 'bfloat16' (autocast); not given: bfloat16 on GPUs, float32 on CPUs."""
    crop_scale: float = 0.35
    """Smallest area share of a training crop; the largest is 1."""
    crop_ratio: float = 4 / 3
    """Widest aspect ratio of a training crop; the narrowest is its inverse."""
    flip: float = 0.5
    """Probability that a training view is mirrored left to right."""
    limit: int | None = None
    """Use only the first N images of each split; packing shuffles, so they are a fair sample."""
    seed: int = 0
    """Seeds the order, the views, the new head, dropout and drop path."""

    def __post_init__(self) -> None:
        row = variant(self.variant)
        if self.weights == "best":  # recorded as what it is, not as what it was thought to be
            object.__setattr__(self, "weights", BEST_FAMILY)
        if self.weights in FAMILIES:
            row.weights_tag(self.weights)
        size = self.image_size
        _require(
            size is None or size >= MIN_IMAGE_SIZE,
            "image_size", size, f"at least {MIN_IMAGE_SIZE} px (the network halves it five times)",
        )  # fmt: skip
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        micro = self.micro_batch
        _require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "micro_batch", micro, f"a divisor of batch_size {self.batch_size}",
        )  # fmt: skip
        _require(0 < self.lr < math.inf, "lr", self.lr, "above 0")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(
            0 <= self.warmup_epochs < math.inf, "warmup_epochs", self.warmup_epochs, "0 or more"
        )
        for name in ("label_smoothing", "dropout", "drop_path", "flip"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, value, "0 to 1")
        _require(self.batchnorm in (None, "train", "frozen"), "batchnorm", self.batchnorm,
                 "'train' or 'frozen'")  # fmt: skip
        _require(self.precision in (None, "float32", "bfloat16"), "precision", self.precision,
                 "'float32' or 'bfloat16'")  # fmt: skip
        _require(0 < self.crop_scale <= 1, "crop_scale", self.crop_scale, "above 0, up to 1")
        _require(1 <= self.crop_ratio < math.inf, "crop_ratio", self.crop_ratio, "1 or more")
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")

    @property
    def row(self) -> Variant:
        """The variant's row of the table."""
        return variant(self.variant)

    @property
    def lanes(self) -> int:
        """Lanes of the plan: `batch_size / micro_batch`. The recipe must be settled."""
        assert self.micro_batch is not None
        return self.batch_size // self.micro_batch

    def settled(self, spec: InputSpec, *, workers: int, on_gpu: bool) -> Self:
        """This recipe with every None decided: from the weights' spec and the first placement."""
        pretrained = self.weights != "none"
        size = self.image_size or spec.resolution
        return replace(
            self,
            image_size=size,
            micro_batch=self.micro_batch or self._fitting_micro_batch(size, workers),
            dropout=self.row.dropout if self.dropout is None else self.dropout,
            drop_path=DROP_PATH if self.drop_path is None else self.drop_path,
            batchnorm=self.batchnorm or ("frozen" if pretrained else "train"),
            precision=self.precision or ("bfloat16" if on_gpu else "float32"),
        )

    def _fitting_micro_batch(self, size: int, workers: int) -> int:
        """Largest divisor of the batch size that is ≤ batch_size / workers and should fit.

        Half of what timm fitted into 24 GB leaves room for a 16 GB GPU or, in float32, a few GB
        of a laptop's memory.
        """
        fits = self.row.images_in(12, size)
        largest = max(1, min(self.batch_size // workers, int(fits)))
        return max(m for m in range(1, largest + 1) if self.batch_size % m == 0)

    def agrees_with(self, recorded: Self) -> bool:
        """Whether every field given here is what `recorded` (a settled recipe) holds."""
        return not self.differences(recorded)

    def differences(self, recorded: Self) -> str:
        """The given fields that differ from `recorded`, for a person to read.

        None agrees with whatever it was settled to; but a `limit` of None means every image.
        """
        mine, theirs = asdict(self), asdict(recorded)
        return ", ".join(
            f"{name} {value!r} (recorded: {theirs[name]!r})"
            for name, value in mine.items()
            if value != theirs[name] and (value is not None or name == "limit")
        )


ACCELERATOR = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")
"""What a label's value may be in Ray, and in Kubernetes."""
PREFETCH_MB = 320
"""For each decode task: eight chunks of 256 views of 224 px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Everything that decides only where and how fast a run goes."""

    workers: str = "2"
    """Training workers: N, or MIN:MAX to grow and shrink with the cluster."""
    gpus_per_worker: float = 0
    """GPUs per worker; 0 trains on CPUs."""
    accelerator: str = ""
    """Which GPUs, as Ray names them: L4, L40S, A100, …; several with commas between. Default:
    any."""
    checkpoint_every: int = 0
    """Steps between checkpoints, beside the one at every epoch's end; 0: only those."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; the best one is kept besides."""
    max_failures: int = 3
    """Worker failures to recover from before the run is given up."""
    cores: int | None = None
    """CPU cores that each worker may count on, its decoding included; not given: the machine's,
    over this run's workers on it."""
    decode_tasks: int | None = None
    """Parallel decode tasks per worker; not given: one more than a machine's workers have
    cores, over the workers."""
    prefetch_mb: int | None = None
    """Decoded images to hold ahead of each worker, MB; not given: 320 for each decode task,
    or what the object store has room for."""
    max_bad_fraction: float = 0.01
    """The run stops when more than this share of a split's images, and more than one image,
    cannot be read in an epoch; 0 stops at the first."""
    audit: bool = False
    """Write which images every step used, as Parquet, under the run's audit/ folder."""

    def __post_init__(self) -> None:
        low, high = self.worker_range
        _require(1 <= low <= high, "workers", self.workers, "N or MIN:MAX, 1 or more")
        gpus = self.gpus_per_worker
        _require(0 <= gpus <= 1 or (1 < gpus < math.inf and gpus % 1 == 0), "gpus_per_worker",
                 gpus, "a share of one GPU, or a whole number")  # fmt: skip
        named = all(map(ACCELERATOR.fullmatch, self.accelerators))
        _require(
            named and (not self.accelerators or self.gpus_per_worker > 0),
            "accelerator", self.accelerator, "names like L4 or L4,L40S, with gpus_per_worker > 0",
        )  # fmt: skip
        _require(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every,
                 "0 or more steps")  # fmt: skip
        _require(
            self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "1 or more"
        )
        _require(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        _require(self.cores is None or self.cores >= 1, "cores", self.cores, "1 or more")
        _require(self.decode_tasks is None or self.decode_tasks >= 1, "decode_tasks",
                 self.decode_tasks, "1 or more")  # fmt: skip
        _require(self.prefetch_mb is None or self.prefetch_mb >= 16, "prefetch_mb",
                 self.prefetch_mb, "16 or more")  # fmt: skip
        _require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", self.max_bad_fraction,
                 "0 to 1")  # fmt: skip

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        try:
            numbers = [int(part) for part in self.workers.split(":")]
        except ValueError:
            numbers = []
        _require(len(numbers) in (1, 2), "workers", self.workers, "N or MIN:MAX, 1 or more")
        return numbers[0], numbers[-1]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The GPUs' types; none: any."""
        return tuple(self.accelerator.split(",")) if self.accelerator else ()

    def decoding(self, cores: int, workers: int, store_mb: float = math.inf) -> tuple[int, int]:
        """Decode tasks and MB ahead for each of a machine's workers.

        One task more than there are cores, so that none waits while Ray hands out the next. Half
        of the object store is left to whatever else there is, like the next window's start.
        """
        tasks = self.decode_tasks or max(1, (cores + 1) // workers)
        ahead = min(PREFETCH_MB * tasks, store_mb / 2 / workers)
        return tasks, self.prefetch_mb or max(16, int(ahead))
