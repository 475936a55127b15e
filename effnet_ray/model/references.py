"""How unlike a release's images a picture is: its distance to the nearest of them.

The score adds two distances, each 1 minus the cosine of features: to the nearest *reference*, an
eval image of the run, and to the nearest mean of a class. It is about 0 for a reference, and 4 at
most. Of the scores that need no pass over the train images, this one told the images of one set
best from those of another, on the mean of 18 pairs. The first distance alone (Sun et al. 2022,
arXiv 2204.06507) failed with a network trained from scratch, where the second one did not
(`benchmarks/results/unknown.md`).
"""

from dataclasses import dataclass
from typing import Self

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES, ID, MEANS = "features", "id", "means"
"""Tensors of the file: the fields of `References`."""
FOLDS = 5
"""Parts of the eval images; each is compared with the class means of the others."""
MIN_REFERENCES, MAX_REFERENCES = 20, 2000
"""With fewer eval images a release has no references; 2,000 are 5 MB with the 1,280 features of a
b0. Chosen, not measured."""


@dataclass(frozen=True, slots=True)
class References:
    """The images that a release compares pictures with."""

    features: Tensor
    """[N, F] float16, rows of length 1."""
    id: Tensor
    """[N] int64: ids in the data set of the run."""
    means: Tensor
    """[M, F] float16: means of the classes that have eval images, rows of length 1."""
    threshold: float
    """The score from which a picture is called unknown."""

    @classmethod
    def fit(
        cls, features: Tensor, image: Tensor, label: Tensor, false_alarms: float
    ) -> Self | None:
        """References among eval images with features [n, F] and ids [n]; None if they are too few.

        Labels are [n], or [n, K] of 0 and 1. Each image is compared with the others, as a new
        picture of the same kind would be, unless no other image has its class. The threshold is
        the score that only a share of them exceeds, the `false_alarms`, above 0 and below 1.
        """
        label = F.one_hot(label) if label.ndim == 1 else label
        comparable = ((label > 0) & (label.sum(0) > 1)).any(1) | (label.sum(1) == 0)
        if int(comparable.sum()) < MIN_REFERENCES or not features.isfinite().all():
            return None
        fold = torch.arange(len(features)) % FOLDS
        scores = torch.empty(len(features))
        # Evenly spaced, since ids may be in the order of classes.
        chosen = torch.linspace(0, len(features) - 1, min(len(features), MAX_REFERENCES)).long()
        references = features[chosen], image[chosen]
        for number in range(FOLDS):
            inside = fold == number
            means = class_means(features[~inside], label[~inside])
            others = cls(*references, means, 0.0)
            scores[inside] = others.scores(features[inside], image_ids=image[inside])
        threshold = float(torch.quantile(scores[comparable].double(), 1 - false_alarms))
        return cls(*references, class_means(features, label), threshold)

    @classmethod
    def from_bytes(cls, content: bytes, threshold: float, features: int) -> Self:
        """The references in a Safetensors file, of images with so many features.

        Raises ValueError or LookupError if they are none, SafetensorError if the file is damaged.
        """
        tensors = safetensors.torch.load(content)
        rows, ids, means = tensors[FEATURES], tensors[ID], tensors[MEANS]
        valid = ids.dtype == torch.int64 and ids.shape == rows.shape[:1] and len(ids) > 1
        for matrix in (rows, means):
            valid &= matrix.dtype == torch.float16 and matrix.ndim == 2 and len(matrix) > 0
            valid = valid and matrix.shape[1] == features and bool(matrix.isfinite().all())
        if not valid:
            raise ValueError(f"the references are not images with {features} features each")
        return cls(rows, ids, means, threshold)

    def to_bytes(self) -> bytes:
        """Their Safetensors file."""
        tensors = {
            name: tensor.contiguous()
            for name, tensor in ((FEATURES, self.features), (ID, self.id), (MEANS, self.means))
        }
        content: bytes = safetensors.torch.save(tensors)
        return content

    def to(self, device: torch.device) -> Self:
        """The references on a device."""
        features, image, means = (t.to(device) for t in (self.features, self.id, self.means))
        return type(self)(features, image, means, self.threshold)

    def scores(self, features: Tensor, image_ids: Tensor | None = None) -> Tensor:
        """The scores [B] of images with features [B, F], float32.

        `image_ids` [B]: their ids, if they are images of the run's data set. No image is its own
        nearest reference.
        """
        rows = F.normalize(features.float())
        similarity = rows @ self.features.float().T
        if image_ids is not None:
            similarity = similarity.masked_fill(image_ids[:, None] == self.id, -1.0)
        return 2 - similarity.amax(1) - (rows @ self.means.float().T).amax(1)


def class_means(features: Tensor, label: Tensor) -> Tensor:
    """The mean of each class that has images, [M, F] float16 of length 1.

    Features are [n, F], labels [n, K] of 0 and 1. Without any label: the mean of all.
    """
    shares = label.T[label.sum(0) > 0].float()
    if not len(shares):
        shares = torch.ones(1, len(features))
    return F.normalize(shares @ features.float()).half()
