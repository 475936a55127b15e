"""What a network computed for the eval images, kept in the checkpoint after an evaluation.

Releases are calibrated on it (`publish.calibrate`) and take references from it
(`model.references`), without another evaluation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.model.network import Network
from effnet_ray.train.batch import Batch
from effnet_ray.train.collectives import gather_rows

MAX_IMAGES, MAX_LOGITS = 4000, 4_000_000
"""Images and logits to keep: about 16 MB of logits at most, and 10 MB of features of a b0."""
GOLDEN, HIGH_BITS, BITS = 0x9E3779B97F4A7C15 - 2**64, 33, 31
"""Fibonacci hashing of ids (Knuth, The Art of Computer Programming 3, section 6.4)."""
ID, FEATURES, LOGITS, LABEL, _WEIGHT = "id", "features", "logits", "label", "weight"

EvalOutputs = dict[str, Tensor]
"""Of readable images: `id` [n] int64, ascending; `features` [n, F] float16, rows of length 1;
`logits` [n, K] float32; `label` as in `Batch`."""


def in_sample(image: Tensor, share: float) -> Tensor:
    """Whether each id [n] is in a sample of about this share of all ids."""
    places: Tensor = (image * GOLDEN >> HIGH_BITS) & (2**BITS - 1)  # wraps around, as it should
    kept: Tensor = places < int(share * 2**BITS)
    return kept


class OutputCollector:
    """Collects the outputs of a worker's eval images, or of a sample that their ids decide: so it
    is the same on any number of workers."""

    def __init__(
        self, network: Network, device: torch.device, images: int, *, multilabel: bool
    ) -> None:
        """`images`: how many the eval split has."""
        classes = network.num_classes
        self._share = min(MAX_IMAGES, MAX_LOGITS // classes) / max(1, images)
        label = torch.empty(0, classes, dtype=torch.uint8, device=device)
        # A worker without images takes part in the collective with empty tensors.
        self._parts = [
            {
                ID: torch.empty(0, dtype=torch.int64, device=device),
                FEATURES: torch.empty(0, network.num_features, dtype=torch.float16, device=device),
                LOGITS: torch.empty(0, classes, device=device),
                LABEL: label if multilabel else label[:, 0].long(),
                _WEIGHT: torch.empty(0, device=device),
            }
        ]

    def add(self, features: Tensor, logits: Tensor, batch: Batch) -> None:
        """Add features [B, F] and logits [B, K]."""
        if batch.id is None:
            return
        columns = {
            ID: batch.id,
            FEATURES: F.normalize(features.float()).half(),
            LOGITS: logits.float(),
            LABEL: batch.label,
            _WEIGHT: batch.weight,
        }
        if self._share < 1:
            kept = in_sample(batch.id, self._share)
            columns = {name: column[kept] for name, column in columns.items()}
        self._parts.append(columns)

    def over_workers(self) -> EvalOutputs:
        """The outputs of all workers, in the order of ids; a collective."""
        columns = {
            name: gather_rows(torch.cat([part[name] for part in self._parts]))
            for name in self._parts[0]
        }
        readable = columns.pop(_WEIGHT) > 0
        order = columns[ID][readable].argsort()
        return {name: column[readable][order] for name, column in columns.items()}
