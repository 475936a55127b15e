"""Evaluation of a release on a split, over any number of workers, each image once.

Ray Data tasks preprocess the images, actors that each hold the network score them, and this
process adds up the scores in the order of the split. Logits leave an actor only for multilabel
data.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Block
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.data.row_group_reads import RowGroupReads, one_ahead
from effnet_ray.errors import DatasetError, EvaluationError, ReleaseError
from effnet_ray.inference import eval_inputs, multiclass, multilabel
from effnet_ray.inference.eval_inputs import EvalInputs, ReadUnit
from effnet_ray.inference.metric_sums import ScoredImages
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.inference.scorer import Scorer
from effnet_ray.placement import Placement
from effnet_ray.recipe import MULTICLASS, MULTILABEL
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import gpus, session
from effnet_ray.runtime.inference_actors import (
    ActorPool,
    MachineShare,
    as_evaluation_error,
    batch_images,
    decode_rows,
    encode_row,
    execute,
)

TASK_NAMES = {MULTICLASS: "one class per image", MULTILABEL: "any number of classes per image"}

Metrics = MulticlassMetrics | MultilabelMetrics


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A release's metrics on a split of a data set."""

    release: LoadedRelease
    manifest: Manifest
    data: str
    """URI of the data set."""
    split: str
    metrics: Metrics

    @property
    def share_called_unknown(self) -> float | None:
        """Share of the readable images that the release calls unknown; None if it cannot tell."""
        references, scores = self.release.references, self.metrics.unknown_scores
        if references is None or not len(scores):
            return None
        return float((scores.astype(np.float64) > references.threshold).mean())


def evaluate(
    release: LoadedRelease,
    data: str,
    placement: Placement,
    *,
    split: str = "eval",
    limit: int | None = None,
    examples: int = 24,
    mistakes: int = 0,
    thumbnails: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    connect: Callable[[Placement], object] | None = None,
) -> Evaluation:
    """Evaluate a release on every image of a split, or on its first `limit` images.

    The metrics are the same to the last digit on any number of GPU workers, and of CPU workers
    with the same number of `cores`; otherwise the loss differs by float noise. Multilabel data
    takes 5 bytes of this process's memory for each image and class.
    `examples`: mistakes to keep, with `thumbnails` if requested; `mistakes`: of the most confident
    ones, if more. `on_progress`: called with
    (images done, all images). `connect`: joins or starts Ray, after all inputs were checked.
    Raises InputError before it asks the cluster for resources, EvaluationError if it fails later.
    """
    data = storage.absolute(data)
    inputs = open_inputs(release, data, split, thumbnails, limit)
    connect = connect or partial(session.connect, local=False, verbose=False)
    placement = gpus.with_default_gpus(placement, connect)
    connect(placement)
    request = session.request_resources(placement, [data, release.uri])
    new_metrics = MultilabelMetrics if inputs.multilabel else MulticlassMetrics
    metrics: Metrics = new_metrics(len(release.classes), examples, mistakes, release.calibration)
    if on_progress:
        on_progress(0, inputs.images)
    with as_evaluation_error("the evaluation"):
        for scored in unwrap_errors(_score(release, inputs, placement, request)):
            metrics.add(scored)
            if on_progress:
                on_progress(metrics.processed, inputs.images)
    check_metrics(release, metrics, inputs)
    return Evaluation(release, inputs.manifest, data, split, metrics)


def open_inputs(
    release: LoadedRelease, data: str, split: str, thumbnails: bool, limit: int | None = None
) -> EvalInputs:
    """The images of the split. Raises DatasetError if this release cannot be evaluated on them."""
    manifest = manifests.load(data).limited(limit)
    task = release.recipe.task or MULTICLASS
    if manifest.task != task:
        raise DatasetError(
            f"{release.reference} was trained with {TASK_NAMES[task]}, but {data} has "
            f"{TASK_NAMES[manifest.task]}: evaluate data of the release's task, or use a release "
            "trained on this data"
        )
    if not manifest.images.get(split):
        available = ", ".join(name for name, images in manifest.images.items() if images)
        raise DatasetError(f"{data} has no {split} images: choose --split from {available}")
    manifests.check_shards(manifest, data, split)
    return EvalInputs(
        manifest=manifest,
        data=manifests.folder(data),
        split=split,
        spec=release.spec,
        outputs=eval_inputs.match_classes(release.classes, manifest.classes, release.reference),
        thumbnails=thumbnails,
        limited=limit is not None,
    )


def check_metrics(release: LoadedRelease, metrics: Metrics, inputs: EvalInputs) -> None:
    """Check that every image was counted once and that the metrics are finite."""
    if metrics.processed != inputs.images:
        raise EvaluationError(
            f"{metrics.processed:,} {inputs.split} images were evaluated, but {inputs.data} has "
            f"{inputs.images:,}: the data changed during the evaluation; if it did not, report "
            "this as a bug"
        )
    if not metrics.images:
        raise DatasetError(
            f"none of the {inputs.images:,} {inputs.split} images of {inputs.data} can be read "
            f"({next(iter(metrics.unreadable.values()))[1]}): restore the data set from a copy, "
            "or pack it again"
        )
    if not math.isfinite(metrics.loss):
        raise ReleaseError(
            f"{release.reference} returns NaN or infinite logits for these images: use "
            "another version"
        )


def _score(
    release: LoadedRelease,
    inputs: EvalInputs,
    placement: Placement,
    request: session.ResourceRequest,
) -> Iterator[ScoredImages]:
    """Score the split in one Ray Data execution; the results in the order of the images."""
    groups = list(inputs.read_units(batch_images(release.recipe, inputs.spec.resolution)))
    actors = ActorPool.of(placement, request, len(groups))
    work = [{"units": json.dumps([asdict(unit) for unit in units])} for units in groups]

    def preprocess(batch: Block) -> Iterator[Block]:
        yield from preprocessed_rows(inputs, map(_decode_units, batch["units"].tolist()))

    same_data = release.provenance.get("fingerprint") == inputs.manifest.fingerprint
    arguments = (release.uri, release.sha256, actors.share, same_data)
    for block in execute(work, preprocess, ScoringActor, arguments, actors):
        yield from decode_scored(block)


def _decode_units(encoded: str) -> list[ReadUnit]:
    return [ReadUnit(**unit) for unit in json.loads(encoded)]


def preprocessed_rows(inputs: EvalInputs, groups: Iterable[Sequence[ReadUnit]]) -> Iterator[Block]:
    """One row for each unit of some row groups; the next one is read while one is decoded."""
    with RowGroupReads(inputs.manifest, inputs.data, limited=inputs.limited) as reads:
        started = ((units, reads.start(inputs.split, [units[0].group])) for units in groups)
        for units, reading in one_ahead(started):
            (group,) = reading.values()
            for views, metadata in eval_inputs.preprocess(inputs, units, group.result()):
                yield encode_row(metadata, views=views)


class ScoringActor:
    """Scores preprocessed images with a release's network."""

    def __init__(
        self, uri: str, sha256: str, share: MachineShare, same_data: bool = False
    ) -> None:
        """See `Scorer`. `same_data`: the images are of the data set that it was trained on."""
        self._same_data = same_data
        self._scorer = Scorer(uri, sha256, share)
        task = multilabel if self._scorer.multilabel else multiclass
        self._score_images, self._explained = task.score_images, task.explained_class

    def __call__(self, batch: Block) -> Iterator[Block]:
        """One row of scores for each row of views."""
        for metadata, arrays in decode_rows(batch):
            features, logits = self._scorer.features_and_logits(arrays["views"])
            scores = self._score_images(
                logits.cpu().numpy(), metadata["label"], self._scorer.release.calibration
            )
            image_ids = metadata["image"] if self._same_data else None
            unknown = self._scorer.unknown(features, image_ids)
            if unknown is not None:
                scores["unknown"] = unknown.double().numpy()
            self._keep_pictures_of_mistakes(metadata, arrays["views"], scores)
            yield encode_scored(metadata, scores)

    def _keep_pictures_of_mistakes(
        self, metadata: dict[str, Any], views: npt.NDArray[np.uint8], scores: ScoredImages
    ) -> None:
        """Add activation maps. Only mistakes are shown, so only they keep their pictures."""
        thumbnails = np.asarray(metadata["thumbnail"], object)
        mistakes = scores["wrong"] & (thumbnails != "")
        maps = np.full(len(mistakes), "", object)
        maps[mistakes] = self._scorer.maps(
            views[mistakes], self._explained(scores)[mistakes].tolist()
        )
        thumbnails[~mistakes] = ""
        metadata |= {"thumbnail": thumbnails.tolist(), "map": maps.tolist()}


def encode_scored(metadata: Mapping[str, Any], scores: ScoredImages) -> Block:
    """One row of scored images. Columns [n] become JSON; columns [n, K] stay arrays."""
    vectors = {name: column.tolist() for name, column in scores.items() if column.ndim == 1}
    matrices = {name: column for name, column in scores.items() if column.ndim > 1}
    texts = {name: column for name, column in metadata.items() if name not in matrices}
    return encode_row(texts | vectors, **matrices)


def decode_scored(block: Block) -> Iterator[ScoredImages]:
    """The scored images of each row that `encode_scored` made."""
    for metadata, matrices in decode_rows(block):
        yield {name: _as_column(values) for name, values in metadata.items()} | matrices


def _as_column(values: Sequence[Any]) -> npt.NDArray[Any]:
    return np.asarray(values, object if isinstance(values[0], str) else None)
