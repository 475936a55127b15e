"""The EfficientNet variants and their pretrained weights, one row each.

An InputSpec belongs to the *weights*, not to the variant: AdvProp weights of B0 expect another
mean and std than AutoAugment weights of B0. Nothing in this package branches on a variant's name,
so another variant is another row.
"""

from dataclasses import dataclass

from effnet_ray.errors import RecipeError, WeightsError

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
INCEPTION_MEAN_STD: Triple = (0.5, 0.5, 0.5)

MIN_IMAGE_SIZE = 32
"""Pixels. The network halves its input five times, so a smaller image leaves an empty map."""

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LAYOUTS = (CHANNELS_LAST, CONTIGUOUS)
"""Memory layouts of images and weights."""

DROP_PATH = 0.2
"""Stochastic depth of the reference implementation (survival probability 0.8), all variants."""

FAMILIES: dict[str, tuple[str, Triple, Triple]] = {
    # family: (timm tag, mean, std); timm 1.0.31, timm/models/efficientnet.py
    "in1k": ("in1k", IMAGENET_MEAN, IMAGENET_STD),
    "aa": ("aa_in1k", IMAGENET_MEAN, IMAGENET_STD),  # AutoAugment
    "ra": ("ra_in1k", IMAGENET_MEAN, IMAGENET_STD),  # RandAugment
    "ap": ("ap_in1k", INCEPTION_MEAN_STD, INCEPTION_MEAN_STD),  # AdvProp
    "ns": ("ns_jft_in1k", IMAGENET_MEAN, IMAGENET_STD),  # NoisyStudent
}
"""The families of pretrained weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """How images are preprocessed for a network; fields as in timm's `pretrained_cfg`."""

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
    """One EfficientNet: its network, its weights, and the defaults of a Recipe.

    Fields with a default are the same for B0 to B7. Layout and compiling are fixed, never measured
    during a run, so that a run computes the same wherever it is resumed.
    """

    name: str
    architecture: str
    """timm's name of the network; the same for all families and for training from scratch."""
    stages: int = 7
    """Stages of blocks between the stem and the last convolution."""
    resolution: int
    """Image size of the pretrained weights, px (Tan & Le 2019, arXiv 1905.11946)."""
    crop: float
    """Share of the centre crop (timm 1.0.31, `pretrained_cfg`)."""
    dropout: float
    """Dropout before the head (reference implementation)."""
    families: tuple[str, ...]
    """Weight families that exist for this variant, keys of `FAMILIES`."""
    best_family: str = "ns"
    """The family of the highest ImageNet top-1 (timm `results/results-imagenet.csv`)."""
    layout: str = CHANNELS_LAST
    """Default memory layout, one of LAYOUTS.

    CPU: measured by `benchmarks/train_step.py` on 2 cores with AVX-512, in float32
    (`benchmarks/results/train_step.txt`). At 96 px channels_last is 10 % faster for b0 to b2 and
    up to 13 % slower for b4 to b7; at their own resolutions, the default, it is 10 to 20 % faster
    for b4 and b5. b6 and b7 were not measured there and follow b4 and b5. GPU: not measured here.
    channels_last trains all eight variants 1.16 to 1.36 times as fast in timm's benchmarks
    (`benchmark-train-amp-{nchw,nhwc}-pt112-cu113-rtx3090.csv`)."""
    compile: bool = False
    """Whether training steps are compiled by default (torch.compile).

    Measured for b0 and b1 on a CPU, as above: 1.2 to 1.4 times as fast, after a minute of
    compiling, which runs of fewer than five minutes do not win back. GPU: not measured here. It is
    off because it costs short runs and trials more than it gains."""
    images_in_24gb: int
    """Batch size of timm's training benchmark, in mixed precision on an RTX 3090
    (`benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`)."""
    train_images_per_s: float
    """Training speed in the same benchmark."""

    def images_in(self, gigabytes: float, size: int) -> float:
        """Approximate batch size of `size` px that fits into memory, in mixed precision.

        Activations take most of the memory, and grow with the image's area.
        """
        return self.images_in_24gb * gigabytes / 24 * (self.resolution / size) ** 2

    def weights_tag(self, family: str) -> str:
        """timm's name of this variant's checkpoint of a weight family, or of the `best` one.

        Raises WeightsError if the family is unknown or has no weights for this variant.
        """
        resolved = self._resolve(family)
        if resolved not in self.families:
            choices = ", ".join((*self.families, "best", "none"))
            problem = (
                f"there are no {family!r} weights for {self.name}"
                if resolved in FAMILIES
                else f"weights {family!r} is no known family"
            )
            raise WeightsError(
                f"{problem}: choose one of {choices}, or a release (NAME@vN or its URI)"
            )
        return f"{self.architecture}.{FAMILIES[resolved][0]}"

    def input_spec(self, family: str | None = None) -> InputSpec:
        """The InputSpec of the family's weights; ImageNet's mean and std for None (scratch)."""
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if family:
            _, mean, std = FAMILIES[self._resolve(family)]
        return InputSpec(resolution=self.resolution, crop=self.crop, mean=mean, std=std)

    def _resolve(self, family: str) -> str:
        return self.best_family if family == "best" else family


def _row(
    name: str,
    architecture: str,
    image: tuple[int, float],
    dropout: float,
    families: str,
    benchmark: tuple[int, float],
) -> Variant:
    """A row of the table below; a variant with other stages or defaults is a `Variant` in it."""
    return Variant(
        name=name,
        architecture=architecture,
        resolution=image[0],
        crop=image[1],
        dropout=dropout,
        families=tuple(families.split()),
        images_in_24gb=benchmark[0],
        train_images_per_s=benchmark[1],
    )


VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        # name, architecture, (resolution, crop), dropout, families, (batch in 24 GB, images/s)
        _row("b0", "tf_efficientnet_b0", (224, 0.875), 0.2, "in1k aa ap ns", (384, 1779)),
        _row("b1", "tf_efficientnet_b1", (240, 0.882), 0.2, "in1k aa ap ns", (256, 1100)),
        _row("b2", "tf_efficientnet_b2", (260, 0.890), 0.3, "in1k aa ap ns", (192, 849)),
        _row("b3", "tf_efficientnet_b3", (300, 0.904), 0.3, "in1k aa ap ns", (128, 495)),
        _row("b4", "tf_efficientnet_b4", (380, 0.922), 0.4, "in1k aa ap ns", (64, 242)),
        _row("b5", "tf_efficientnet_b5", (456, 0.934), 0.4, "in1k aa ra ap ns", (32, 111.4)),
        _row("b6", "tf_efficientnet_b6", (528, 0.942), 0.5, "aa ap ns", (16, 62.8)),
        _row("b7", "tf_efficientnet_b7", (600, 0.949), 0.5, "aa ra ap ns", (8, 37.2)),
    )
}


def variant(name: str) -> Variant:
    """The row of a variant. Raises RecipeError for an unknown name."""
    if name not in VARIANTS:
        raise RecipeError(f"variant {name!r} is unknown: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
