"""The objective of a sweep: how its best model is chosen. No torch, no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effnet_ray.errors import RecipeError

if TYPE_CHECKING:
    from effnet_ray.model.profile import Cost


OBJECTIVES = ("accuracy", "accuracy-under", "cheapest")
"""See `Objective.objective`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """How the best model of a sweep is chosen."""

    objective: str = field(default="accuracy", metadata={"choices": OBJECTIVES})
    """accuracy: the highest eval top-1; accuracy-under: the highest eval top-1 within the --max-*
    limits; cheapest: the fewest multiply-adds within --within-points of the best eval top-1."""
    max_params: float | None = None
    """Size limit for accuracy-under: parameters, in millions."""
    max_latency_ms: float | None = None
    """Latency limit for accuracy-under: ms for one image, as measured by the sweep."""
    max_cost: float | None = None
    """Compute limit for accuracy-under: multiply-adds per image, in billions (GMACs)."""
    within_points: float = 1.0
    """For cheapest: maximum drop in eval top-1 from the best model, in percentage points."""

    def __post_init__(self) -> None:
        limits = [self.max_params, self.max_latency_ms, self.max_cost]
        set_limits = [limit for limit in limits if limit is not None]
        if self.objective not in OBJECTIVES:
            raise RecipeError(
                f"objective {self.objective!r} is unknown: choose accuracy, accuracy-under or "
                "cheapest"
            )
        if self.objective == "accuracy-under" and not set_limits:
            raise RecipeError(
                "--objective accuracy-under needs at least one of --max-params, --max-latency-ms "
                "and --max-cost"
            )
        if set_limits and self.objective != "accuracy-under":
            raise RecipeError(
                f"--max-params, --max-latency-ms and --max-cost do not apply to --objective "
                f"{self.objective}: pass --objective accuracy-under"
            )
        if any(limit <= 0 for limit in set_limits) or self.within_points < 0:
            raise RecipeError(
                "expected --max-params, --max-latency-ms and --max-cost above 0, and "
                "--within-points 0 or more"
            )

    def allows(self, cost: "Cost") -> bool:
        """Whether a model of this cost is within the limits."""
        return (
            cost.params_m <= (self.max_params or cost.params_m)
            and cost.latency_ms <= (self.max_latency_ms or cost.latency_ms)
            and cost.gmacs <= (self.max_cost or cost.gmacs)
        )

    def check(self, costs: "Mapping[Any, Cost]") -> None:
        """Raises RecipeError if no variant of the sweep is within the limits."""
        if not any(self.allows(cost) for cost in costs.values()):
            least = min(costs.values(), key=lambda cost: cost.gmacs)
            raise RecipeError(
                "no variant of this sweep is within the limits: the cheapest has "
                f"{least.params_m:.1f} M parameters, {least.gmacs:.2f} G multiply-adds and takes "
                f"{least.latency_ms:.1f} ms: raise the limit, or choose smaller --variants or a "
                "smaller --image-size"
            )
