"""Evaluating a release on a split, over any number of workers, each image once.

Ray Data tasks make the views, actors that each hold the network judge them, and this process
adds up what they say of each image, in the plan's order. Logits leave an actor only where images
may have several classes.
"""

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Block
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.ray_executor import unwrap_errors
from effnet_ray.errors import DatasetError, EvaluationError, ReleaseError
from effnet_ray.inference import eval_inputs, multiclass as figures, multilabel
from effnet_ray.inference.eval_inputs import EvalInputs, ReadUnit
from effnet_ray.inference.metric_sums import EvalMetrics, ScoredImages
from effnet_ray.inference.multiclass import MulticlassMetrics
from effnet_ray.inference.multilabel import MultilabelMetrics
from effnet_ray.inference.scorer import Scorer
from effnet_ray.placement import Placement
from effnet_ray.recipe import MULTICLASS, MULTILABEL
from effnet_ray.release.load import LoadedRelease
from effnet_ray.runtime import session
from effnet_ray.runtime.inference_actors import (
    ActorPool,
    MachineShare,
    as_evaluation_error,
    as_single_row,
    batch_images,
    execute,
)

IMAGES = {MULTICLASS: "one class each", MULTILABEL: "any number of classes"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of it."""

    release: LoadedRelease
    manifest: Manifest
    data: str
    """URI of the data set."""
    split: str
    metrics: MulticlassMetrics | MultilabelMetrics


def evaluate(
    release: LoadedRelease,
    data: str,
    placement: Placement,
    *,
    split: str = "eval",
    limit: int | None = None,
    examples: int = 24,
    thumbnails: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, images: None,
    connect: Callable[[Placement], object] = lambda p: session.connect(
        p, local=False, verbose=False
    ),
) -> Evaluation:
    """Judge every image of the split, or its first `limit`, once, on any number of workers.

    The figures do not depend on that: they are equal to the last digit on GPUs, and on CPUs with
    as many `cores` each; else but for float noise in the loss. Where images may have several
    classes, this process holds 5 bytes for each image and class.
    `examples` mistakes are kept for looking at, with `thumbnails` if wanted; `on_progress` is
    called with (images done, all images); `connect` joins or starts Ray once everything else is
    in order.
    Raises InputError before anything is leased, EvaluationError where it fails later.
    """
    data = storage.absolute(data)
    images = _split(release, data, split, thumbnails, limit)
    connect(placement)
    lease = session.request_resources(placement, [data, release.uri])
    kind = MultilabelMetrics if images.several else MulticlassMetrics
    found: MulticlassMetrics | MultilabelMetrics = kind(len(release.classes), examples)
    on_progress(0, images.images)
    with as_evaluation_error("the evaluation"):
        for judged in unwrap_errors(_judged(release, images, placement, lease)):
            found.add(judged)
            on_progress(found.processed, images.images)
    _reconcile(release, found, images)
    return Evaluation(release, images.manifest, data, split, found)


def _split(
    release: LoadedRelease, data: str, name: str, thumbnails: bool, limit: int | None = None
) -> EvalInputs:
    """The images to be judged. Raises DatasetError where they cannot be, by this release."""
    manifest = manifests.load(data).limited(limit)
    task = release.recipe.task or MULTICLASS
    if manifest.task != task:
        raise DatasetError(
            f"{release.reference} knows images of {IMAGES[task]}, {data} has images of "
            f"{IMAGES[manifest.task]}: choose data of its kind, or a release trained on these"
        )
    if not manifest.images.get(name):
        have = ", ".join(split for split, images in manifest.images.items() if images)
        raise DatasetError(f"{data} has no {name} images: choose --split of {have}")
    manifests.check_shards(manifest, data, name)
    numbers = eval_inputs.labels(release.classes, manifest.classes, release.reference)
    where = manifests.folder(data)
    return EvalInputs(manifest, where, name, release.spec, numbers, thumbnails, limit is not None)


def _reconcile(release: LoadedRelease, found: EvalMetrics, split: EvalInputs) -> None:
    """Every image was counted once, and said something."""
    if found.processed != split.images:
        raise EvaluationError(
            f"{found.processed:,} {split.name} images were judged, {split.data} has "
            f"{split.images:,}: the data changed meanwhile, or this is a defect worth reporting"
        )
    if not found.images:
        raise DatasetError(
            f"none of the {split.images:,} {split.name} images of {split.data} can be read "
            f"({next(iter(found.unreadable.values()))[1]}): restore them or pack again"
        )
    if not math.isfinite(found.loss):
        raise ReleaseError(
            f"{release.reference} says nothing finite of these images: use another version"
        )


def _judged(
    release: LoadedRelease, split: EvalInputs, placement: Placement, lease: session.ResourceRequest
) -> Iterator[ScoredImages]:
    """One Ray Data execution over the split; what is said of its images, in order."""
    groups = list(split.pieces(batch_images(release.recipe, split.spec.resolution)))
    actors = ActorPool.of(placement, lease, len(groups))
    described = [{"pieces": json.dumps([asdict(p) for p in pieces])} for pieces in groups]

    def views(batch: Block) -> Iterator[Block]:
        for pieces in batch["pieces"].tolist():
            yield from _rows(split, [ReadUnit(**piece) for piece in json.loads(pieces)])

    told = (release.uri, release.sha256, actors.share)
    blocks = execute(described, views, ScoringActor, told, actors)
    for block in blocks:
        for said in block["judged"].tolist():
            yield read(said)


def _rows(split: EvalInputs, pieces: Sequence[ReadUnit]) -> Iterator[Block]:
    """A piece as one row, whatever its size."""
    for views, about in eval_inputs.preprocess(split, pieces):
        yield {"image": as_single_row(views), "about": np.asarray([json.dumps(about)], object)}


class ScoringActor:
    """An actor with the network."""

    def __init__(self, release: str, sha256: str, share: MachineShare) -> None:
        """As of `Scorer`."""
        self._sight = Scorer(release, sha256, share)
        self._judge = multilabel.score_images if self._sight.several else figures.score_images

    def __call__(self, batch: Block) -> Iterator[Block]:
        """What is said of every piece: JSON, which keeps every digit of a float64."""
        for image, about in zip(batch["image"], batch["about"], strict=True):
            _, logits = self._sight.features_and_logits(image)
            told = json.loads(about)
            found = self._judge(logits.cpu().numpy(), told["label"])
            said = told | {name: _plain(column) for name, column in found.items()}
            for slot, wrong in enumerate(said["wrong"]):
                said["thumbnail"][slot] *= wrong  # of right ones nobody wants to see one
            yield {"judged": np.asarray([json.dumps(said)], object)}


def read(said: str) -> ScoredImages:
    """What a `ScoringActor` has said of a piece, as arrays."""
    return {name: _column(name, told) for name, told in json.loads(said).items()}


def _plain(column: npt.NDArray[Any]) -> Any:
    """A column for JSON: a list, or where there is a value for every class, their bytes."""
    if column.ndim == 1:
        return column.tolist()
    data = base64.b64encode(column.tobytes()).decode()
    return {"kind": column.dtype.str, "shape": column.shape, "bytes": data}


def _column(name: str, told: Any) -> npt.NDArray[Any]:
    if not isinstance(told, dict):
        return np.asarray(told, KINDS.get(name, np.float64))
    values = np.frombuffer(base64.b64decode(told["bytes"]), told["kind"])
    return values.reshape(told["shape"])


KINDS = {
    "label": np.int64, "predicted": np.int64, "rank": np.int64, "image": np.int64,
    "wrong": np.bool_, "path": object, "bad": object, "thumbnail": object,
}  # fmt: skip
