"""What a worker trains, and its rank among the workers."""

from dataclasses import dataclass

import torch

from effnet_ray import storage
from effnet_ray.data.chunks import Dataset
from effnet_ray.placement import Placement
from effnet_ray.train import run_record


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What the workers of a run train."""

    run: run_record.Run
    run_uri: str
    dataset: Dataset
    placement: Placement
    weights_uri: str | None
    """The pretrained file in the run's storage; None when training from scratch."""
    teacher_uri: str | None = None
    """The teacher's weights in the run's storage; None without a teacher."""

    @property
    def checkpoints_uri(self) -> str:
        """The folder of the run's checkpoints."""
        return storage.join(self.run_uri, run_record.CHECKPOINTS)

    @property
    def audit_uri(self) -> str:
        """The folder of the run's audit."""
        return storage.join(self.run_uri, run_record.AUDIT)

    @property
    def quarantine_uri(self) -> str:
        """The folder of the run's quarantine."""
        return storage.join(self.run_uri, run_record.QUARANTINE)


@dataclass(frozen=True, slots=True)
class WorkerRank:
    """A worker's rank in its group, and its device."""

    rank: int
    workers: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this worker writes the group's checkpoints and events."""
        return self.rank == 0
