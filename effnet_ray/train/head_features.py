"""The cached features of the train images, shared among the workers that solve the head."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray import storage
from effnet_ray.data import feature_cache
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.class_balance import class_uses
from effnet_ray.recipe import MULTILABEL
from effnet_ray.train.batch import Target

BLOCK_GROUPS = 32
"""Row groups of the feature cache that are computed at once: 2,048 images, 10 MB of a B0's
features. Chosen, not measured."""
HELD_OUT = 5
"""Every fifth train image is held out while the L2 penalty is chosen: the share of five-fold
validation."""
KEEP_BYTES = 4 * 1024**3
"""A worker keeps its share of the features in memory up to this size, as they are stored
(float16): 1.6 million images of a B0. A larger share is read from storage in every pass."""


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """The features of some images of a shard, on the worker's device."""

    feature: Tensor
    """[n, F], as they are stored: float16."""
    label: Tensor
    """[n] int64; or [n, K] uint8 of 0 and 1 with several labels per image."""
    teacher: Tensor | None
    """[n, K] float16, as in `batch.Target`."""
    weight: Tensor
    """[n] float32: mean uses of the image in an epoch; 0 for a quarantined image."""
    held_out: bool
    """Whether these images are held out while the penalty is chosen."""

    @property
    def target(self) -> Target:
        """What the head is fitted to."""
        return Target(self.label, self.teacher)


class HeadFeatures:
    """This worker's share of the train split's eval views, as blocks.

    The blocks are the same for any number of workers. Every fifth image in file order is held out:
    packing shuffles images, and where it does not (`pack --in-place`) this still takes about a
    fifth of each class.
    """

    def __init__(
        self,
        dataset: Dataset,
        rank: int,
        workers: int,
        device: torch.device | None = None,
        *,
        block_groups: int = BLOCK_GROUPS,
    ) -> None:
        """`device`: where the features are kept, and the objective is computed."""
        self.device = device or torch.device("cpu")
        self._dataset = dataset
        self._uri = dataset.features_uri("train", None)
        size = block_groups * feature_cache.ROW_GROUP_ROWS
        starts = dataset.manifest.index("train").first_images
        self._places = [
            (shard, first, min(first + size, count), int(starts[shard]))
            for shard, count in enumerate(np.diff(starts).tolist())
            for first in range(0, count, size)
        ][rank::workers]
        self._kept: list[FeatureBlock] | None = None

    def __iter__(self) -> Iterator[FeatureBlock]:
        return iter(self._kept) if self._kept is not None else self._read_all()

    def _read_all(self) -> Iterator[FeatureBlock]:
        kept, size = list[FeatureBlock](), 0
        for block in (block for place in self._places for block in self._read(*place)):
            size += block.feature.nbytes + (0 if block.teacher is None else block.teacher.nbytes)
            if size <= KEEP_BYTES:
                kept.append(block)
            else:
                kept.clear()
            yield block
        if size <= KEEP_BYTES:
            self._kept = kept

    def _read(self, shard: int, first: int, end: int, start: int) -> Iterator[FeatureBlock]:
        """Rows `first` to `end` of a shard, whose first image is number `start` of the split."""
        parts = _read_rows(self._uri, shard, first, end)
        teacher = None
        if self._dataset.teacher:
            taught = _read_rows(self._dataset.teacher, shard, first, end)
            teacher = torch.from_numpy(np.concatenate([part.feature for part in taught]))
        feature = torch.from_numpy(np.concatenate([part.feature for part in parts]))
        label = torch.from_numpy(np.concatenate([part.label for part in parts]))
        if self._dataset.recipe.task == MULTILABEL and label.ndim == 1:
            label = F.one_hot(label, len(self._dataset.manifest.classes)).to(torch.uint8)
        readable = torch.tensor([not bad for part in parts for bad in part.bad])
        weight = readable.float() * self._uses(label)
        held_out = torch.arange(start + first, start + end) % HELD_OUT == HELD_OUT - 1
        for rows, held in ((~held_out, False), (held_out, True)):
            yield FeatureBlock(
                feature=feature[rows].to(self.device),
                label=label[rows].to(self.device),
                teacher=None if teacher is None else teacher[rows].to(self.device),
                weight=weight[rows].to(self.device),
                held_out=held,
            )

    def _uses(self, label: Tensor) -> Tensor | float:
        """Mean uses of each image in an epoch: 1 without class-balanced sampling."""
        labels, balance = self._dataset.labels, self._dataset.recipe.balance
        if labels is None or not balance:
            return 1.0
        uses = class_uses(labels.counts, balance) / labels.counts.clip(min=1)
        return torch.from_numpy(uses).float()[label]


def _read_rows(uri: str, shard: int, first: int, end: int) -> list[feature_cache.FeatureRows]:
    """The row groups with rows `first` to `end` of a shard, in a folder of the cache."""
    file, step = storage.join(uri, feature_cache.file_name(shard)), feature_cache.ROW_GROUP_ROWS
    return [feature_cache.read(file, group) for group in range(first // step, -(-end // step))]
