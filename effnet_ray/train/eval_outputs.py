"""What a network computed for the eval images, kept in the checkpoint after an evaluation.

Releases are calibrated on it (`publish.calibrate`), without another evaluation.
"""

import torch
from torch import Tensor

from effnet_ray.train.batch import Batch
from effnet_ray.train.collectives import gather_rows, group_size

MAX_LOGITS = 4_000_000
"""Logits to keep, of all workers: 16 MB, such as 4,000 images of 1,000 classes. Packing shuffles,
so each worker's first images are a sample of the split."""
ID, LOGITS, LABEL, _WEIGHT = "id", "logits", "label", "weight"

EvalOutputs = dict[str, Tensor]
"""`id` [n] int64, ascending, `logits` [n, K] float32 and `label`, as in `Batch`, of readable
images."""


class OutputCollector:
    """Collects the outputs of a worker's first eval images, without asking the device for any."""

    def __init__(self, classes: int, device: torch.device, *, multilabel: bool) -> None:
        self._rows_left = max(1, MAX_LOGITS // classes // group_size())
        label = torch.empty(0, classes, dtype=torch.uint8, device=device)
        # A worker without images takes part in the collective with empty tensors.
        self._parts = [
            {
                ID: torch.empty(0, dtype=torch.int64, device=device),
                LOGITS: torch.empty(0, classes, device=device),
                LABEL: label if multilabel else label[:, 0].long(),
                _WEIGHT: torch.empty(0, device=device),
            }
        ]

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add logits [B, K]; images beyond the limit are left out."""
        if batch.id is None or not self._rows_left:
            return
        columns = {
            ID: batch.id, LOGITS: logits.float(), LABEL: batch.label, _WEIGHT: batch.weight
        }  # fmt: skip
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
