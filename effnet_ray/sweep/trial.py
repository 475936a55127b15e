"""What Ray Tune runs for a trial: a driver that fine-tunes as every other does, and reports."""

from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from effnet_ray import storage
from effnet_ray.errors import EffnetRayError
from effnet_ray.recipe import Placement
from effnet_ray.sweep import record
from effnet_ray.sweep.book import FAILURE
from effnet_ray.sweep.record import Sweep
from effnet_ray.train.finetune import finetune


@dataclass(frozen=True, slots=True)
class Driver:
    """All that a trial's driver is told beside its settings."""

    sweep: Sweep
    uri: str
    """The sweep's folder."""
    placements: dict[str, Placement]
    """Variant → where its trials run."""
    mirror: str | None

    def run(self, config: dict[str, Any]) -> None:
        """Fine-tune. The workers report every epoch; what cannot go on says why, and ends."""
        number, variant = config["number"], config["variant"]
        try:
            finetune(
                self.sweep.trial_recipe(variant, config["settings"]),
                self.placements[variant],
                self.sweep.data,
                runs=storage.join(self.uri, record.RUNS),
                name=f"{self.sweep.name}-{number:03d}-{variant}",
                mirror=self.mirror,
                callbacks=[TuneReportCallback()],
            )
        except EffnetRayError as error:
            tune.report({FAILURE: str(error)})
