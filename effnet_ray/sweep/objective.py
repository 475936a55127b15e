"""The objective of a sweep: which of the models it finds is the best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effnet_ray.errors import RecipeError

if TYPE_CHECKING:
    from effnet_ray.model.profile import Cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Which of the models found is the best."""

    objective: str = "accuracy"
    """accuracy: the highest eval top-1; accuracy-under: the highest within the limits below;
    cheapest: the fewest multiply-adds within some points of the highest."""
    max_params: float | None = None
    """accuracy-under: most parameters, millions."""
    max_latency_ms: float | None = None
    """accuracy-under: most milliseconds for one image, as measured here."""
    max_cost: float | None = None
    """accuracy-under: most multiply-adds for one image, billions."""
    within_points: float = 1.0
    """cheapest: points of eval top-1 that it may be worse than the best."""

    def __post_init__(self) -> None:
        limits = [self.max_params, self.max_latency_ms, self.max_cost]
        given = [limit for limit in limits if limit is not None]
        if self.objective not in ("accuracy", "accuracy-under", "cheapest"):
            raise RecipeError(
                f"objective {self.objective!r} is unknown: choose accuracy, accuracy-under or "
                "cheapest"
            )
        if bool(given) != (self.objective == "accuracy-under"):
            raise RecipeError(
                "--objective accuracy-under and its limits belong together: give "
                "--max-params, --max-latency-ms or --max-cost with it, and only with it"
            )
        if any(limit <= 0 for limit in given) or self.within_points < 0:
            raise RecipeError("limits of the objective must lie above 0, --within-points too")

    def allows(self, cost: "Cost") -> bool:
        """Whether a model that costs so much may be chosen."""
        return (
            cost.params_m <= (self.max_params or cost.params_m)
            and cost.latency_ms <= (self.max_latency_ms or cost.latency_ms)
            and cost.gmacs <= (self.max_cost or cost.gmacs)
        )

    def check(self, costs: "Mapping[Any, Cost]") -> None:
        """Raises RecipeError where no model of the sweep could be chosen."""
        if not any(self.allows(cost) for cost in costs.values()):
            least = min(costs.values(), key=lambda cost: cost.gmacs)
            raise RecipeError(
                "no variant of this sweep stays within the limits: the cheapest has "
                f"{least.params_m:.1f} M parameters, {least.gmacs:.2f} G multiply-adds and takes "
                f"{least.latency_ms:.1f} ms: raise the limit, or list smaller --variants or "
                "--image-size"
            )
