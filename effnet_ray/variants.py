"""The EfficientNet variants and their pretrained weights, one row each.

An InputSpec belongs to the *weights*, not to the variant: AdvProp weights of B0 expect another
mean and std than AutoAugment weights of B0. Nothing in this package branches on a variant's name,
so another variant is another row.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray.errors import RecipeError, WeightsError

Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Mean and std, as timm names them."""

MIN_IMAGE_SIZE = 32
"""Pixels. The network halves its input five times, so a smaller image leaves an empty map."""

CENTER, SQUASH = "center", "squash"
CROP_MODES = (CENTER, SQUASH)
"""timm's names for how an image of any shape is resized before the centre crop."""

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LAYOUTS = (CHANNELS_LAST, CONTIGUOUS)
"""Memory layouts of images and weights."""

DROP_PATH = 0.2
"""Stochastic depth of the reference implementations (survival probability 0.8), all variants."""


@dataclass(frozen=True, slots=True)
class Family:
    """A way of pretraining."""

    tag: str
    """timm's tag of its checkpoints."""
    classes: int = 1000
    """Outputs of their head."""


FAMILIES = {
    "in1k": Family("in1k"),  # ImageNet-1k
    "aa": Family("aa_in1k"),  # AutoAugment
    "ra": Family("ra_in1k"),  # RandAugment
    "ap": Family("ap_in1k"),  # AdvProp
    "ns": Family("ns_jft_in1k"),  # NoisyStudent
    "in21k": Family("in21k", classes=21_843),  # ImageNet-21k
    "in21k_ft": Family("in21k_ft_in1k"),  # ImageNet-21k, then ImageNet-1k
}
"""The families of pretrained weights (timm 1.0.31, `timm/models/efficientnet.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """How images are preprocessed for a network; fields as in timm's `pretrained_cfg`."""

    resolution: int
    """Height and width, px, in training and evaluation alike.

    EfficientNetV2 was pretrained on smaller images than it was tested on, up to a fifth. Here it
    is fine-tuned at the test size (`test_input_size`), for which its published accuracy holds."""
    crop: float
    """Share of the resized image's shorter side that the centre crop keeps."""
    interpolation: str = "bicubic"
    mean: Triple = IMAGENET[0]
    """Per channel, of values scaled to 0..1."""
    std: Triple = IMAGENET[1]
    crop_mode: str = CENTER
    """center: the shorter side is resized, so that the aspect ratio is kept, and the ends of the
    longer side are cropped. squash: both sides are resized to the same length."""

    @property
    def resized(self) -> int:
        """Length of the shorter side (center) or of both sides (squash) before the crop, px."""
        return math.floor(self.resolution / self.crop)

    @property
    def crop_description(self) -> str:
        """The crop in words."""
        squashed = "squashed to a square, " if self.crop_mode == SQUASH else ""
        return f"{squashed}centre crop {self.crop:g}"

    def as_json(self) -> dict[str, Any]:
        """The fields for a record, which leaves `crop_mode` out if it is center."""
        values = asdict(self)
        if self.crop_mode == CENTER:
            del values["crop_mode"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One EfficientNet: its network, its weights, and the defaults of a Recipe.

    Layout and compiling are fixed, never measured during a run, so that a run computes the same
    wherever it is resumed.
    """

    name: str
    title: str
    """Its name in the papers: Tan & Le 2019, arXiv 1905.11946, and V2: 2021, arXiv 2104.00298."""
    architecture: str
    """timm's name of the network; the same for all families and for training from scratch."""
    stages: int = 7
    """Stages of blocks between the stem and the last convolution."""
    weights: Mapping[str, InputSpec]
    """Weight families that exist for this variant → their InputSpec.

    Checked against timm 1.0.31, `pretrained_cfg`. The first is trained on ImageNet-1k alone, and
    its InputSpec is that of training from scratch. The last has the highest ImageNet top-1 (timm
    `results/results-imagenet.csv`)."""
    dropout: float
    """Dropout before the head.

    Source: the reference implementations. B: tensorflow/tpu,
    `models/official/efficientnet/efficientnet_builder.py`; Lite: its
    `lite/efficientnet_lite_builder.py`; V2: google/automl, `efficientnetv2/effnetv2_configs.py`.
    """
    layout: str = CHANNELS_LAST
    """Default memory layout, one of LAYOUTS.

    CPU: measured by `benchmarks/train_step.py` on 2 cores with AVX-512, in float32
    (`benchmarks/results/train_step.txt`). At 96 px channels_last is 10 % faster for b0 to b2 and
    up to 13 % slower for b4 to b7; at their own resolutions, the default, it is 10 to 20 % faster
    for b4 and b5. The others were not measured there. GPU: not measured here. channels_last trains
    all variants 1.16 to 1.43 times as fast in timm's benchmarks
    (`benchmark-train-amp-{nchw,nhwc}-pt112-cu113-rtx3090.csv`)."""
    benchmark_resolution: int
    """Image size in timm's training benchmark, in mixed precision on an RTX 3090
    (`benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`): of V2 the size of pretraining."""
    images_in_24gb: int
    """Batch size in that benchmark; 512 is its largest, so more would fit."""
    train_images_per_s: float
    """Training speed in that benchmark."""

    @property
    def families(self) -> tuple[str, ...]:
        """Weight families that exist for this variant."""
        return tuple(self.weights)

    @property
    def best_family(self) -> str:
        """The family of the highest ImageNet top-1."""
        return self.families[-1]

    @property
    def resolution(self) -> int:
        """Image size of the weights, px; the same for all families."""
        return self.input_spec().resolution

    def images_in(self, gigabytes: float, size: int) -> float:
        """Approximate batch size of `size` px that fits into memory, in mixed precision.

        Activations take most of the memory, and grow with the image's area.
        """
        return self.images_in_24gb * gigabytes / 24 * (self.benchmark_resolution / size) ** 2

    def weights_tag(self, family: str) -> str:
        """timm's name of this variant's checkpoint of a weight family, or of the `best` one.

        Raises WeightsError if the family is unknown or has no weights for this variant.
        """
        resolved = self.resolved_family(family)
        if resolved not in self.weights:
            choices = ", ".join((*self.families, "best", "none"))
            problem = (
                f"there are no {family!r} weights for {self.name}"
                if resolved in FAMILIES
                else f"weights {family!r} are unknown"
            )
            raise WeightsError(
                f"{problem}: choose one of {choices}, or a release (NAME@vN or its URI)"
            )
        return f"{self.architecture}.{FAMILIES[resolved].tag}"

    def input_spec(self, family: str | None = None) -> InputSpec:
        """The InputSpec of the family's weights, or of training from scratch (None)."""
        return self.weights[self.resolved_family(family) if family else self.families[0]]

    def resolved_family(self, weights: str) -> str:
        """The weights, `best` replaced by the family that is meant."""
        return self.best_family if weights == "best" else weights


def _spec(
    resolution: int,
    crop: float,
    mean_std: tuple[Triple, Triple] = IMAGENET,
    *,
    interpolation: str = "bicubic",
    crop_mode: str = CENTER,
) -> InputSpec:
    mean, std = mean_std
    return InputSpec(
        resolution=resolution,
        crop=crop,
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_mode=crop_mode,
    )


def _b(resolution: int, crop: float, families: str) -> dict[str, InputSpec]:
    """The weights of an EfficientNet-B."""
    spec, advprop = _spec(resolution, crop), _spec(resolution, crop, INCEPTION)
    return {family: advprop if family == "ap" else spec for family in families.split()}


def _lite(resolution: int, crop: float, interpolation: str) -> dict[str, InputSpec]:
    """The weights of an EfficientNet-Lite."""
    return {"in1k": _spec(resolution, crop, INCEPTION, interpolation=interpolation)}


def _v2(resolution: int, crop_mode: str) -> dict[str, InputSpec]:
    """The weights of an EfficientNetV2-S, M or L: the whole image is in view."""
    spec = _spec(resolution, 1.0, INCEPTION, crop_mode=crop_mode)
    return {"in1k": spec, "in21k": spec, "in21k_ft": spec}


def _row(
    name: str,
    title: str,
    weights: Mapping[str, InputSpec],
    dropout: float,
    benchmark: tuple[int, int, float],
    stages: int = 7,
) -> Variant:
    """A row of the table below; timm names the architecture by its title."""
    return Variant(
        name=name,
        title=title,
        architecture="tf_" + title.lower().replace("-", "_"),
        stages=stages,
        weights=weights,
        dropout=dropout,
        benchmark_resolution=benchmark[0],
        images_in_24gb=benchmark[1],
        train_images_per_s=benchmark[2],
    )


_V2_B3 = {
    "in1k": _spec(300, 0.904),
    "in21k": _spec(300, 0.904, INCEPTION),
    "in21k_ft": _spec(300, 0.900, INCEPTION, crop_mode=SQUASH),
}
# name, title, weights, dropout, (px, batch in 24 GB, images/s), stages
_B = (
    _row("b0", "EfficientNet-B0", _b(224, 0.875, "in1k aa ap ns"), 0.2, (224, 384, 1779)),
    _row("b1", "EfficientNet-B1", _b(240, 0.882, "in1k aa ap ns"), 0.2, (240, 256, 1100)),
    _row("b2", "EfficientNet-B2", _b(260, 0.890, "in1k aa ap ns"), 0.3, (260, 192, 849)),
    _row("b3", "EfficientNet-B3", _b(300, 0.904, "in1k aa ap ns"), 0.3, (300, 128, 495)),
    _row("b4", "EfficientNet-B4", _b(380, 0.922, "in1k aa ap ns"), 0.4, (380, 64, 242)),
    _row("b5", "EfficientNet-B5", _b(456, 0.934, "in1k aa ra ap ns"), 0.4, (456, 32, 111.4)),
    _row("b6", "EfficientNet-B6", _b(528, 0.942, "aa ap ns"), 0.5, (528, 16, 62.8)),
    _row("b7", "EfficientNet-B7", _b(600, 0.949, "aa ra ap ns"), 0.5, (600, 8, 37.2)),
)
_LITE = (
    _row("lite0", "EfficientNet-Lite0", _lite(224, 0.875, "bicubic"), 0.2, (224, 512, 2135)),
    _row("lite1", "EfficientNet-Lite1", _lite(240, 0.882, "bicubic"), 0.2, (240, 256, 1443)),
    _row("lite2", "EfficientNet-Lite2", _lite(260, 0.890, "bicubic"), 0.3, (260, 256, 1121)),
    _row("lite3", "EfficientNet-Lite3", _lite(300, 0.904, "bilinear"), 0.3, (300, 128, 666)),
    _row("lite4", "EfficientNet-Lite4", _lite(380, 0.920, "bilinear"), 0.3, (380, 64, 325)),
)
_V2 = (
    _row("v2_b0", "EfficientNetV2-B0", {"in1k": _spec(224, 0.875)}, 0.2, (192, 512, 3428), 6),
    _row("v2_b1", "EfficientNetV2-B1", {"in1k": _spec(240, 0.882)}, 0.2, (192, 512, 2549), 6),
    _row("v2_b2", "EfficientNetV2-B2", {"in1k": _spec(260, 0.890)}, 0.3, (208, 512, 1952), 6),
    _row("v2_b3", "EfficientNetV2-B3", _V2_B3, 0.3, (240, 256, 1042), 6),
    _row("v2_s", "EfficientNetV2-S", _v2(384, CENTER), 0.2, (300, 128, 488), 6),
    _row("v2_m", "EfficientNetV2-M", _v2(480, SQUASH), 0.3, (384, 48, 173.4)),
    _row("v2_l", "EfficientNetV2-L", _v2(480, SQUASH), 0.4, (384, 32, 97.6)),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in (*_B, *_LITE, *_V2)}

DEFAULT_VARIANTS = tuple(row.name for row in _B)
"""The variants of a sweep unless it says otherwise: the original EfficientNets."""


def variant(name: str) -> Variant:
    """The row of a variant. Raises RecipeError for an unknown name."""
    if name not in VARIANTS:
        raise RecipeError(f"variant {name!r} is unknown: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
