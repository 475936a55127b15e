"""What a network computed for the eval images, kept in the checkpoint after an evaluation.

Releases are calibrated on it (`publish.calibrate`) and take references from it
(`model.references`), without another evaluation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.model.network import Network
from effnet_ray.train.batch import Batch
from effnet_ray.train.collectives import gather_rows, group_size

MAX_IMAGES, MAX_LOGITS = 4000, 4_000_000
"""Images and logits to keep, of all workers: 16 MB of logits at most, and 10 MB of features of a
b0. Packing shuffles, so each worker's first images are a sample of the split."""
ID, FEATURES, LOGITS, LABEL, _WEIGHT = "id", "features", "logits", "label", "weight"

EvalOutputs = dict[str, Tensor]
"""Of readable images: `id` [n] int64, ascending; `features` [n, F] float16, rows of length 1;
`logits` [n, K] float32; `label` as in `Batch`."""


class OutputCollector:
    """Collects the outputs of a worker's first eval images, without asking the device for any."""

    def __init__(self, network: Network, device: torch.device, *, multilabel: bool) -> None:
        classes = network.num_classes
        self._rows_left = max(1, min(MAX_IMAGES, MAX_LOGITS // classes) // group_size())
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
        """Add features [B, F] and logits [B, K]; images beyond the limit are left out."""
        if batch.id is None or not self._rows_left:
            return
        columns = {
            ID: batch.id,
            FEATURES: F.normalize(features.float()).half(),
            LOGITS: logits.float(),
            LABEL: batch.label,
            _WEIGHT: batch.weight,
        }
        part = {name: column[: self._rows_left] for name, column in columns.items()}
        self._rows_left -= len(part[ID])
        self._parts.append(part)

    def over_workers(self) -> EvalOutputs:
        """The outputs of all workers, in the order of ids; a collective."""
        columns = {
            name: gather_rows(torch.cat([part[name] for part in self._parts]))
            for name in self._parts[0]
        }
        readable = columns.pop(_WEIGHT) > 0
        order = columns[ID][readable].argsort()
        return {name: column[readable][order] for name, column in columns.items()}
