"""Options of releasing a run."""

from dataclasses import dataclass

from effnet_ray.schema import require


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """How a release decides, fitted on the eval images."""

    false_alarms: float = 0.05
    """Share of images like the eval images that a release may call unknown, above 0, below 1."""
    min_precision: float | None = None
    """With any number of classes per image: predict a class from the lowest probability with this
    precision on the eval images, 0 to 1. Default: from the one with the best F1."""

    def __post_init__(self) -> None:
        """Raise RecipeError if a value is out of range."""
        require(0 < self.false_alarms < 1, "false_alarms", self.false_alarms, "above 0, below 1")
        precision = self.min_precision
        require(precision is None or 0 <= precision <= 1, "min_precision", precision, "0 to 1")
