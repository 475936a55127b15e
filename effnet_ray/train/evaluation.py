"""Evaluation of networks on all workers, and the epoch's report made from it."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.train.average_precision import mean_average_precision
from effnet_ray.train.batch import Batch
from effnet_ray.train.class_metrics import ClassMetrics
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.eval_outputs import EvalOutputs, OutputCollector
from effnet_ray.train.memory import is_out_of_memory
from effnet_ray.train.metric_definitions import (
    EVAL_LOSS,
    EVAL_MAP,
    EVAL_METRICS,
    EVAL_TOP1,
    HIT_METRICS,
    Score,
)
from effnet_ray.train.metrics import ClassCounts, MetricSums, ScoreCollector

EVAL_PIXELS = 256 * 224**2
"""Pixels of an evaluation batch on a GPU: 256 images of 224 px, 35 of 600 px. Not measured."""


def eval_batch(recipe: Recipe, device: torch.device) -> int:
    """Maximum number of images in an evaluation batch; on a CPU a micro-batch."""
    micro_batch = recipe.micro_batch or 1
    if device.type == "cpu":
        return micro_batch
    return max(micro_batch, EVAL_PIXELS // (recipe.image_size or 224) ** 2)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Metrics of one network over the eval images of all workers."""

    sums: MetricSums
    mean_ap: float | None = None
    """Mean average precision; only with several labels per image."""
    per_class: tuple[ClassMetrics, ...] = ()
    outputs: EvalOutputs = field(default_factory=dict)
    """What the network computed for a sample of the images."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The values of `EVAL_METRICS`, by their keys."""
        shares = {metric.key: self.sums.share(metric) for metric in HIT_METRICS}
        return {EVAL_LOSS.key: self.sums.loss, EVAL_MAP.key: self.mean_ap, **shares}

    @property
    def sort_key(self) -> tuple[float, float]:
        """Sorts the better result first: by mean average precision or top-1, then by loss.

        A NaN loss counts as infinite.
        """
        score = Score.of(self.metrics)
        assert score is not None
        return -score.value, math.inf if math.isnan(self.sums.loss) else self.sums.loss


def best_result(results: Sequence[EvalResult]) -> EvalResult:
    """The result whose weights a release gets; the first of equal ones."""
    return min(results, key=lambda result: result.sort_key)


@torch.no_grad()
def evaluate(
    networks: Sequence[Network],
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    images: int = 0,
    multilabel: bool = False,
) -> list[EvalResult]:
    """Evaluate each network on the batches of all workers; a collective, called by each worker.

    `images`: how many all workers have. A batch that does not fit into memory is computed in
    parts.
    """
    running = [RunningEvaluation(network, images, multilabel=multilabel) for network in networks]
    for batch in batches:
        for evaluation in running:
            with autocast():
                features, logits = evaluation.compute(batch.image)
            evaluation.add(features, logits, batch)
    return [evaluation.over_workers() for evaluation in running]


class RunningEvaluation:
    """The metrics of one network, batch by batch."""

    def __init__(self, network: Network, images: int, *, multilabel: bool) -> None:
        self.network = network.eval()
        device = next(network.parameters()).device
        self._sums = MetricSums.zero(device)
        self._classes = ClassCounts(network.num_classes, device)
        self._scores = ScoreCollector(network.num_classes, device) if multilabel else None
        self._outputs = OutputCollector(network, device, images, multilabel=multilabel)
        self._max_rows: int | None = None

    def compute(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of some images, of which fewer fit at once than were tried."""
        while True:
            rows = self._max_rows or max(1, len(image))
            try:
                parts = map(self.network.features_and_logits, torch.split(image, rows))
                features, logits = zip(*parts, strict=True)
                return torch.cat(features), torch.cat(logits)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise TrainingError(
                        f"not even one image of {image.shape[-1]} px fits into memory to evaluate "
                        "it: lower --image-size, or choose a smaller --variant"
                    ) from None
            self._max_rows = -(-min(rows, len(image)) // 2)  # the error's tensors are free now
            torch.cuda.empty_cache()

    def add(self, features: Tensor, logits: Tensor, batch: Batch) -> None:
        """Add the network's features and logits of one batch."""
        self._sums += MetricSums.of(logits, batch.label, batch.weight)
        self._classes.add(logits, batch.label, batch.weight)
        self._outputs.add(features, logits, batch)
        if self._scores:
            self._scores.add(logits, batch.label, batch.weight)

    def over_workers(self) -> EvalResult:
        """The result over all workers; a collective, which every worker calls."""
        sums, per_class = self._sums.over_workers(), self._classes.over_workers()
        outputs = self._outputs.over_workers()
        if not self._scores:
            return EvalResult(sums, None, per_class, outputs)
        precisions = self._scores.over_workers()
        per_class = tuple(
            replace(metrics, ap=ap) for metrics, ap in zip(per_class, precisions, strict=True)
        )
        return EvalResult(sums, mean_average_precision(precisions), per_class, outputs)


def epoch_report(epoch: int, step: int, train: MetricSums, *results: EvalResult) -> EpochReport:
    """The report of an epoch from its sums over all workers.

    `results` are those of the network and of its average, if there is one; the report has the
    better one's metrics. Without results, its eval metrics are None.
    """
    chosen = best_result(results) if results else None
    sums = chosen.sums if chosen else None
    return EpochReport(
        epoch=epoch,
        step=step,
        train_loss=train.loss,
        train_top1=train.share(EVAL_TOP1),
        train_images=train.images,
        **(chosen.metrics if chosen else {m.key: None for m in EVAL_METRICS}),
        eval_images=sums.images if sums else 0,
        quarantined=train.quarantined + (sums.quarantined if sums else 0),
        skipped=train.skipped_steps,
        averaged=chosen is not None and chosen is not results[0],
    )
