"""Evaluating a release on a split, over any number of workers, each image once.

Ray Data tasks make the views, actors that each hold the network judge them, and this process
adds up what they say of each image, in the plan's order. Logits never leave an actor.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from effnet_ray import storage
from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Block
from effnet_ray.data.ingest import plainly
from effnet_ray.data.manifest import Manifest
from effnet_ray.errors import DatasetError, EvaluationError, ReleaseError
from effnet_ray.placement import Placement
from effnet_ray.tasks import MULTILABEL
from effnet_ray.train import session
from effnet_ray.train.actors import Actors, Share, batch_images, execute, failing, one
from effnet_ray.use import shown
from effnet_ray.use.figures import Figures, Judged, judge
from effnet_ray.use.opened import Opened
from effnet_ray.use.shown import Piece, Split
from effnet_ray.use.sight import Sight


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of it."""

    release: Opened
    manifest: Manifest
    data: str
    """URI of the data set."""
    split: str
    figures: Figures


def evaluate(
    release: Opened,
    data: str,
    placement: Placement,
    *,
    split: str = "eval",
    limit: int | None = None,
    examples: int = 24,
    thumbnails: bool = False,
    tell: Callable[[int, int], None] = lambda done, images: None,
    connect: Callable[[Placement], object] = lambda p: session.connect(
        p, local=False, verbose=False
    ),
) -> Evaluation:
    """Judge every image of the split, or its first `limit`, once, on any number of workers.

    The figures do not depend on that: they are equal to the last digit on GPUs, and on CPUs with
    as many `cores` each; else but for float noise in the loss.
    `examples` mistakes are kept for looking at, with `thumbnails` if wanted; `tell` hears how many
    images are done, of how many; `connect` joins or starts Ray once everything else is in order.
    Raises InputError before anything is leased, EvaluationError where it fails later.
    """
    data = storage.absolute(data)
    images = _split(release, data, split, thumbnails, limit)
    connect(placement)
    lease = session.lease(placement, [data, release.uri])
    figures = Figures(len(release.classes), examples)
    with failing("the evaluation"):
        for judged in plainly(_judged(release, images, placement, lease)):
            figures.add(judged)
            tell(figures.seen, images.images)
    _reconcile(release, figures, images)
    return Evaluation(release, images.manifest, data, split, figures)


def _split(
    release: Opened, data: str, name: str, thumbnails: bool, limit: int | None = None
) -> Split:
    """The images to be judged. Raises DatasetError where they cannot be, by this release."""
    manifest = manifests.load(data).limited(limit)
    if MULTILABEL in (manifest.task, release.recipe.task):
        raise DatasetError(
            f"{release.reference} and {data} are not both of images with one class each, which "
            "alone are judged here: the mean average precision of a run is in its metrics.json"
        )
    manifests.check(manifest, data)
    if not manifest.images.get(name):
        have = ", ".join(split for split, images in manifest.images.items() if images)
        raise DatasetError(f"{data} has no {name} images: choose --split of {have}")
    numbers = shown.labels(release.classes, manifest.classes, release.reference)
    where = manifests.folder(data)
    return Split(manifest, where, name, release.spec, numbers, thumbnails, limit is not None)


def _reconcile(release: Opened, figures: Figures, split: Split) -> None:
    """Every image was counted once, and said something."""
    if figures.seen != split.images:
        raise EvaluationError(
            f"{figures.seen:,} {split.name} images were judged, {split.data} has "
            f"{split.images:,}: the data changed meanwhile, or this is a defect worth reporting"
        )
    if not figures.images:
        raise DatasetError(
            f"none of the {split.images:,} {split.name} images of {split.data} can be read "
            f"({next(iter(figures.bad.values()))[1]}): restore them or pack again"
        )
    if not math.isfinite(figures.loss):
        raise ReleaseError(
            f"{release.reference} says nothing finite of these images: use another version"
        )


def _judged(
    release: Opened, split: Split, placement: Placement, lease: session.Lease
) -> Iterator[Judged]:
    """One Ray Data execution over the split; what is said of its images, in order."""
    groups = list(split.pieces(batch_images(release.recipe, split.spec.resolution)))
    actors = Actors.of(placement, lease, len(groups))
    described = [{"pieces": json.dumps([asdict(p) for p in pieces])} for pieces in groups]

    def views(batch: Block) -> Iterator[Block]:
        for pieces in batch["pieces"].tolist():
            yield from _rows(split, [Piece(**piece) for piece in json.loads(pieces)])

    told = (release.uri, release.sha256, actors.share)
    blocks = execute(described, views, Judge, told, actors)
    for block in blocks:
        for said in block["judged"].tolist():
            yield read(said)


def _rows(split: Split, pieces: Sequence[Piece]) -> Iterator[Block]:
    """A piece as one row, whatever its size."""
    for views, about in shown.show(split, pieces):
        yield {"image": one(views), "about": np.asarray([json.dumps(about)], object)}


class Judge:
    """An actor with the network."""

    def __init__(self, release: str, sha256: str, share: Share) -> None:
        """As of `Sight`."""
        self._sight = Sight(release, sha256, share)

    def __call__(self, batch: Block) -> Iterator[Block]:
        """What is said of every piece: JSON, which keeps every digit of a float64."""
        for image, about in zip(batch["image"], batch["about"], strict=True):
            _, logits = self._sight.features_and_logits(image)
            told = json.loads(about)
            found = judge(logits.cpu().numpy(), np.asarray(told["label"], np.int64))
            said = told | {name: column.tolist() for name, column in found.items()}
            for slot, rank in enumerate(said["rank"]):
                said["thumbnail"][slot] *= rank > 0  # of right ones nobody wants to see one
            yield {"judged": np.asarray([json.dumps(said)], object)}


def read(said: str) -> Judged:
    """What a `Judge` has said of a piece, as arrays."""
    return {name: np.asarray(column, KINDS.get(name, np.float64))
            for name, column in json.loads(said).items()}  # fmt: skip


KINDS = {
    "label": np.int64, "predicted": np.int64, "rank": np.int64, "image": np.int64,
    "path": object, "bad": object, "thumbnail": object,
}  # fmt: skip
