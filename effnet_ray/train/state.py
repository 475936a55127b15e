"""All that a checkpoint records of a run.

A new field of `Progress` is a field of checkpoint.json and a name in `NEW`; if JSON cannot hold
it, it needs a row of `ENCODERS` and one of `DECODERS`.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from effnet_ray import storage
from effnet_ray.model import network as networks, optimizer as optimizers
from effnet_ray.model.network import Network
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.schema import from_dict
from effnet_ray.storage.temporary import temporary_folder
from effnet_ray.train.class_metrics import ClassMetrics, class_metrics
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.eval_outputs import EvalOutputs
from effnet_ray.train.loss_scale import LossScale
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.run_record import Run


@dataclass(frozen=True, slots=True)
class SolvedHead:
    """How a run's head was solved."""

    penalty: float
    """The chosen L2 penalty."""
    passes: int
    """Passes over the features: evaluations of the objective."""
    converged: bool
    """Whether the optimizer met its tolerance."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """What checkpoint.json records: a TrainState without its tensors."""

    step: int = 0
    """Steps since the start of the run."""
    history: list[EpochReport] = field(default_factory=list)
    """Reports of the finished epochs."""
    train_sums: MetricSums = field(default_factory=MetricSums.zero)
    """Sums over the current epoch's train images, of all workers."""
    per_class: tuple[ClassMetrics, ...] = ()
    """Metrics of each class in the newest evaluation, for the better of the evaluated weights."""
    device_s: float = 0.0
    """Number of workers times the seconds that they were held, up to the newest checkpoint."""
    skipped: Tensor = field(default_factory=lambda: torch.tensor(0))
    """[] int64: steps skipped in a row just before this one; without those that lowered the loss
    scale."""
    scale: LossScale = field(default_factory=LossScale.of)
    """Loss scale of float16 training."""
    solved_head: SolvedHead | None = None
    """None before the head is solved, and for one that is trained."""

    def copy_progress(self) -> "Progress":
        """A copy on the CPU that later steps do not change."""
        values = {item.name: getattr(self, item.name) for item in fields(Progress)}
        return replace(
            Progress(**values),
            history=list(self.history),
            train_sums=MetricSums(self.train_sums.sums.cpu()),
            skipped=self.skipped.cpu(),
            scale=self.scale.to(torch.device("cpu")),
        )

    def restore_progress(self, progress: "Progress") -> None:
        """Continue from `progress`."""
        copied = progress.copy_progress()
        for item in fields(Progress):
            setattr(self, item.name, getattr(copied, item.name))

    def to_json(self) -> dict[str, Any]:
        """Its form in checkpoint.json."""
        return {
            KEYS.get(item.name, item.name): ENCODERS.get(item.name, _unchanged)(
                getattr(self, item.name)
            )
            for item in fields(Progress)
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Progress":
        """The opposite of `to_json`. Raises LookupError, TypeError or RecipeError if malformed.

        A field of `NEW` that is missing, in an older checkpoint, has its default.
        """
        values = {}
        for item in fields(Progress):
            key = KEYS.get(item.name, item.name)
            if key in record or item.name not in NEW:
                values[item.name] = DECODERS.get(item.name, _unchanged)(record[key])
        return Progress(**values)


KEYS = {"train_sums": "tally"}
"""The fields whose key in checkpoint.json is not their name, as existing checkpoints have it."""
NEW = {"solved_head"}
"""Fields that existing checkpoints may lack: add a new field here, and give it a default."""


def _unchanged(value: Any) -> Any:
    return value


ENCODERS: Mapping[str, Callable[[Any], Any]] = {
    "history": lambda history: [asdict(report) for report in history],
    "train_sums": lambda sums: sums.sums.tolist(),
    "per_class": lambda per_class: [metrics.to_row() for metrics in per_class],
    "skipped": int,
    "scale": LossScale.to_json,
    "solved_head": lambda head: head and asdict(head),
}
"""How fields that JSON cannot hold are written; `DECODERS` read them back."""
DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "history": lambda history: [from_dict(EpochReport, report) for report in history],
    "train_sums": MetricSums.from_list,
    "per_class": class_metrics,
    "skipped": torch.tensor,
    "scale": LossScale.from_json,
    "solved_head": lambda head: head and from_dict(SolvedHead, head),
}


@dataclass(slots=True)
class TrainState(Progress):
    """All state that survives a restart; `checkpoint` writes and reads it."""

    network: Network
    optimizer: Optimizer
    averaged: Network | None = None
    """Moving average of the network's weights (EMA), if the recipe has one."""
    pass_size: int = 0
    """Maximum number of images that are computed at once; 0: a micro-batch."""
    images: int = 0
    """Images of the current epoch's steps, of all workers: equal to that of `train_sums`, but
    known without asking the device. So is `quarantined`."""
    quarantined: int = 0
    eval_outputs: EvalOutputs = field(default_factory=dict)
    """Those of the epoch that has just been evaluated; empty if it was not."""

    def to_device(self) -> None:
        """Move all that a step changes to the device of the network, and read what it counted."""
        device = next(self.network.parameters()).device
        self.images, self.quarantined = self.train_sums.images, self.train_sums.quarantined
        self.train_sums = MetricSums(self.train_sums.sums.to(device))
        self.skipped, self.scale = self.skipped.to(device), self.scale.to(device)

    @property
    def networks(self) -> list[Network]:
        """The networks that an epoch's evaluation compares."""
        return [self.network, *([self.averaged] if self.averaged else [])]


def initial_network(run: Run, weights_uri: str | None) -> Network:
    """The network that a run starts from, with a new head, on the CPU.

    `weights_uri` is the pretrained file in the run's storage, None to start from scratch.
    """
    with temporary_folder("weights") as folder:
        file = folder / WEIGHTS
        if weights_uri:
            storage.download(weights_uri, file)
        return networks.build(
            run.recipe,
            run.spec,
            len(run.classes),
            weights_file=str(file) if weights_uri else None,
            weights_classes=run.weights_head,
        )


def initial_state(run: Run, weights_uri: str | None, device: torch.device) -> TrainState:
    """The state before the first step of a run, with an empty optimizer."""
    network = initial_network(run, weights_uri).to(device)
    averaged = copy.deepcopy(network) if run.recipe.ema_decay else None
    return TrainState(network, optimizers.optimizer(network, run.recipe), averaged)
