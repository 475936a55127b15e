"""The eight EfficientNets and their pretrained weights: one row each, every number sourced.

An InputSpec belongs to the *weights*, not to the variant's letter: AdvProp weights of B0 want
another mean and std than AutoAugment weights of B0. Nothing in this package branches on a
variant's name; a ninth variant would be a ninth row.
"""

from dataclasses import dataclass

from effnet_ray.errors import RecipeError, WeightsError

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
INCEPTION_MEAN_STD: Triple = (0.5, 0.5, 0.5)

MIN_IMAGE_SIZE = 32
"""The network halves its input five times: below 32 px its last map would be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """What a network expects of an image. Field meanings are those of timm's `pretrained_cfg`."""

    resolution: int
    """Height and width, px."""
    crop: float
    """Share of the resized image's shorter side that the centre crop keeps."""
    interpolation: str = "bicubic"
    mean: Triple = IMAGENET_MEAN
    """Per channel, of values scaled to 0..1."""
    std: Triple = IMAGENET_STD


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One of b0…b7.

    Width, depth, resolution and dropout: Tan & Le 2019 (arXiv 1905.11946) and the reference
    implementation's table. Crop: timm 1.0.31 `pretrained_cfg` of `tf_efficientnet_b*`.
    `images_in_24gb`, `train_images_per_s`: the batch and the speed with which timm trained, in
    mixed precision on an RTX 3090 (timm `benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`).
    """

    name: str
    width: float
    depth: float
    resolution: int
    crop: float
    dropout: float
    families: tuple[str, ...]
    """Weight families that exist for this variant, keys of `FAMILIES`."""
    images_in_24gb: int
    train_images_per_s: float

    def images_in(self, gigabytes: float, size: int) -> float:
        """About how many images of `size` px it trains on at once in so much memory.

        In mixed precision; activations, which are most of it, grow with the area.
        """
        return self.images_in_24gb * gigabytes / 24 * (self.resolution / size) ** 2

    @property
    def architecture(self) -> str:
        """timm's name of the network. One architecture for all families and for scratch."""
        return f"tf_efficientnet_{self.name}"

    def weights_tag(self, family: str) -> str:
        """timm's name of this variant's checkpoint of a weight family.

        Raises WeightsError when the family is unknown or has no weights for this variant.
        """
        wanted = BEST_FAMILY if family == "best" else family
        if wanted not in self.families:
            have = ", ".join((*self.families, "best", "none"))
            known = "exists, but not for" if wanted in FAMILIES else "is not known for"
            raise WeightsError(
                f"weights {family!r} {known} {self.name}: choose one of {have}, "
                "or a release (NAME@vN or its URI)"
            )
        return f"{self.architecture}.{FAMILIES[wanted][0]}"

    def input_spec(self, family: str | None = None) -> InputSpec:
        """What the family's weights expect; ImageNet's mean and std for `None` (scratch)."""
        key = BEST_FAMILY if family == "best" else family
        mean, std = FAMILIES[key][1:] if key else (IMAGENET_MEAN, IMAGENET_STD)
        return InputSpec(resolution=self.resolution, crop=self.crop, mean=mean, std=std)


FAMILIES: dict[str, tuple[str, Triple, Triple]] = {
    # family: (timm tag, mean, std); timm 1.0.31, timm/models/efficientnet.py
    "in1k": ("in1k", IMAGENET_MEAN, IMAGENET_STD),
    "aa": ("aa_in1k", IMAGENET_MEAN, IMAGENET_STD),  # AutoAugment
    "ra": ("ra_in1k", IMAGENET_MEAN, IMAGENET_STD),  # RandAugment
    "ap": ("ap_in1k", INCEPTION_MEAN_STD, INCEPTION_MEAN_STD),  # AdvProp
    "ns": ("ns_jft_in1k", IMAGENET_MEAN, IMAGENET_STD),  # NoisyStudent
}

BEST_FAMILY = "ns"
"""Highest ImageNet top-1 for all eight variants (timm `results/results-imagenet.csv`)."""

DROP_PATH = 0.2
"""Stochastic depth of the reference implementation (survival probability 0.8), all variants."""


def _row(
    name: str,
    scale: tuple[float, float],
    view: tuple[int, float],
    dropout: float,
    families: str,
    on_rtx_3090: tuple[int, float],
) -> Variant:
    return Variant(
        name=name,
        width=scale[0],
        depth=scale[1],
        resolution=view[0],
        crop=view[1],
        dropout=dropout,
        families=tuple(families.split()),
        images_in_24gb=on_rtx_3090[0],
        train_images_per_s=on_rtx_3090[1],
    )


VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        _row("b0", (1.0, 1.0), (224, 0.875), 0.2, "in1k aa ap ns", (384, 1779)),
        _row("b1", (1.0, 1.1), (240, 0.882), 0.2, "in1k aa ap ns", (256, 1100)),
        _row("b2", (1.1, 1.2), (260, 0.890), 0.3, "in1k aa ap ns", (192, 849)),
        _row("b3", (1.2, 1.4), (300, 0.904), 0.3, "in1k aa ap ns", (128, 495)),
        _row("b4", (1.4, 1.8), (380, 0.922), 0.4, "in1k aa ap ns", (64, 242)),
        _row("b5", (1.6, 2.2), (456, 0.934), 0.4, "in1k aa ra ap ns", (32, 111.4)),
        _row("b6", (1.8, 2.6), (528, 0.942), 0.5, "aa ap ns", (16, 62.8)),
        _row("b7", (2.0, 3.1), (600, 0.949), 0.5, "aa ra ap ns", (8, 37.2)),
    )
}


def variant(name: str) -> Variant:
    """The row of a variant. Raises RecipeError for a name that is not b0…b7."""
    if name not in VARIANTS:
        raise RecipeError(f"variant {name!r} is unknown: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
