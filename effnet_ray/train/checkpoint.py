"""TrainState ↔ a folder in the run's storage. Safetensors and JSON; nothing is ever unpickled.

A checkpoint is complete or absent: checkpoint.json, with the SHA-256 of every file it names, is
written last. Resuming takes the newest one whose files match; a damaged one is said and skipped.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from effnet_ray import storage
from effnet_ray.errors import CheckpointError, OutageError, RecipeError, StorageError
from effnet_ray.model.optimizer import PART
from effnet_ray.phases import HEAD
from effnet_ray.schema import from_dict
from effnet_ray.train.epoch_report import EpochReport, best
from effnet_ray.train.loss_scale import LossScale
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.per_class import ClassMetrics, class_metrics
from effnet_ray.train.state import TrainState

RECORD = "checkpoint.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
AVERAGED = "averaged.safetensors"
STEP = "step"
GROUP = "group."
"""Before the number of a parameter group that counts its steps itself (lamb)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A TrainState at one step, copied to the CPU: training may go on while it is written."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """File name → tensor name → tensor; there after `wait`."""
    history: list[EpochReport]
    tally: list[float]
    skipped: int
    scale: LossScale
    pieces: int
    per_class: tuple[ClassMetrics, ...]
    device_s: float
    arrived: torch.cuda.Event | None
    """When the copies have come from a GPU."""

    def wait(self) -> None:
        """Until the copies are there; by whoever writes them, not by the training."""
        if self.arrived:
            self.arrived.synchronize()


def snapshot(state: TrainState) -> Snapshot:
    """Copy what must survive."""
    tally = state.tally.sums.tolist()
    tensors = {
        WEIGHTS: _copied(state.network.backbone.state_dict()),
        OPTIMIZER: _copied(_moments(state.optimizer)),
    }
    if state.averaged:
        tensors[AVERAGED] = _copied(state.averaged.backbone.state_dict())
    on_gpu = next(state.network.parameters()).is_cuda
    return Snapshot(
        step=state.step,
        tensors=tensors,
        history=list(state.history),
        tally=tally,
        skipped=state.skipped,
        scale=state.scale,
        pieces=state.pieces,
        per_class=state.per_class,
        device_s=state.device_s,
        arrived=torch.cuda.current_stream().record_event() if on_gpu else None,
    )


def _moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """All that an optimizer remembers, as `<number of the parameter>.<name>`."""
    state = optimizer.state_dict()
    found = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    for number, group in enumerate(state["param_groups"]):
        if STEP in group:
            found[f"{GROUP}{number}.{STEP}"] = group[STEP]
    return found


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU.

    From a GPU only begun, behind the work that it has, into pinned memory: then neither it nor
    Python waits for a thousand small copies one by one.
    """
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(
            tensor.detach(), non_blocking=True
        )
        for name, tensor in tensors.items()
    }


def folder(step: int) -> str:
    """Name of a step's checkpoint folder; sorts by step."""
    return f"step-{step:08d}"


def write(taken: Snapshot, checkpoints: str) -> str:
    """Write a snapshot below `checkpoints` and return its URI; the record comes last."""
    taken.wait()
    uri = storage.join(checkpoints, folder(taken.step))
    digests = {}
    for name, tensors in taken.tensors.items():
        data = save(tensors)
        digests[name] = hashlib.sha256(data).hexdigest()
        storage.write_bytes(storage.join(uri, name), data)
    record = {
        "step": taken.step,
        "files": digests,
        "history": [asdict(report) for report in taken.history],
        "tally": taken.tally,
        "skipped": taken.skipped,
        "scale": asdict(taken.scale),
        "pieces": taken.pieces,
        "per_class": [[one.support, one.predicted, one.right, one.ap] for one in taken.per_class],
        "device_s": taken.device_s,
    }
    content = json.dumps({**record, "sha256": _digest(record)}, indent=1)
    storage.write_bytes(storage.join(uri, RECORD), content.encode())
    return uri


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of the record's other fields: JSON has no checksum of its own."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its record, read and verified."""

    uri: str
    step: int
    history: list[EpochReport]
    tally: list[float]
    skipped: int
    scale: LossScale
    pieces: int
    per_class: tuple[ClassMetrics, ...]
    """Of the newest evaluation before it."""
    device_s: float
    """What it took to come here, in seconds of one device."""
    files: dict[str, str]
    """File name → SHA-256."""

    def read(self, name: str) -> bytes:
        """One of its files. Raises CheckpointError where the bytes are not the recorded ones.

        Raises StorageError where storage does not answer, which says nothing about the bytes.
        """
        try:
            data = storage.read_bytes(storage.join(self.uri, name))
        except OutageError:
            raise
        except StorageError as error:
            raise CheckpointError(f"{self.uri} is damaged: {error}") from error
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise CheckpointError(f"{self.uri} is damaged: {name} does not match its SHA-256")
        return data

    def load_into(self, state: TrainState) -> None:
        """Make `state` what it was. Raises CheckpointError where it does not fit or is damaged."""
        weights, optimizer = load(self.read(WEIGHTS)), load(self.read(OPTIMIZER))
        try:
            state.network.backbone.load_state_dict(weights)
            if state.averaged:
                state.averaged.backbone.load_state_dict(load(self.read(AVERAGED)))
            state.optimizer.load_state_dict(_optimizer_state(state, optimizer))
        except (RuntimeError, ValueError, LookupError) as error:
            raise CheckpointError(f"{self.uri} does not fit this recipe: {error}") from error
        state.step = self.step
        state.history, state.skipped = list(self.history), self.skipped
        state.scale, state.pieces = self.scale, self.pieces
        state.per_class, state.device_s = self.per_class, self.device_s
        state.tally = MetricSums(torch.tensor(self.tally, dtype=torch.float64))


def _optimizer_state(state: TrainState, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The state dict, every moment laid out in memory as its parameter is.

    Fused AdamW walks parameter and moments side by side in memory; a contiguous moment beside a
    `channels_last` parameter would silently update the wrong elements.
    """
    groups = state.optimizer.state_dict()["param_groups"]
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.removeprefix(GROUP).split(".", 1)
        if key.startswith(GROUP):
            groups[int(index)][name] = tensor
            continue
        parameter = parameters[int(index)]
        if tensor.dim():  # all but the step's counter
            if tensor.shape != parameter.shape:
                raise ValueError(f"{key} is {list(tensor.shape)}, not {list(parameter.shape)}")
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        values.setdefault(int(index), {})[name] = tensor
    parts = [group[PART] for group in state.optimizer.param_groups for _ in group["params"]]
    head = {index for index, part in enumerate(parts) if part == HEAD}
    if values and set(values) not in (head, set(range(len(parts)))):
        raise ValueError(f"moments of {len(values)} of {len(parts)} parameters")
    return {"state": values, "param_groups": groups}


def open_checkpoint(uri: str) -> Checkpoint:
    """Read a checkpoint's record. Raises CheckpointError where it is absent or unreadable."""
    try:
        record = json.loads(storage.read_bytes(storage.join(uri, RECORD)))
        if record.pop("sha256") != _digest(record):
            raise CheckpointError(f"{uri} is damaged: {RECORD} does not match its own SHA-256")
        return Checkpoint(
            uri=uri,
            step=record["step"],
            history=[from_dict(EpochReport, report) for report in record["history"]],
            tally=record["tally"],
            skipped=record["skipped"],
            scale=from_dict(LossScale, record.get("scale", {})),
            pieces=record.get("pieces", 1),
            per_class=class_metrics(record.get("per_class", [])),
            device_s=record.get("device_s", 0.0),
            files=record["files"],
        )
    except OutageError:
        raise
    except (
        StorageError,
        RecipeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise CheckpointError(f"{uri} is no complete checkpoint: {error}") from error


def complete(checkpoints: str) -> Iterator[Checkpoint]:
    """Complete and undamaged checkpoints below `checkpoints`, newest first.

    A folder without a record was never finished and is passed over; a damaged one is said.
    """
    for name in reversed(storage.folders(checkpoints)):
        uri = storage.join(checkpoints, name)
        if not storage.exists(storage.join(uri, RECORD)):
            continue
        try:
            checkpoint = open_checkpoint(uri)
            for file in checkpoint.files:
                checkpoint.read(file)
        except CheckpointError as error:
            logger.warning("skipping a checkpoint: %s", error)
            continue
        yield checkpoint


def newest(checkpoints: str) -> Checkpoint | None:
    """The newest complete and undamaged checkpoint, or None."""
    return next(complete(checkpoints), None)


class Writer:
    """Writes snapshots in the background, one at a time, and keeps the newest and the best."""

    def __init__(self, checkpoints: str, keep: int) -> None:
        self._checkpoints, self._keep = checkpoints, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Snapshot now, write later. Raises what the write before this one raised."""
        self.wait()
        self._pending = self._pool.submit(self._write, snapshot(state))

    def wait(self) -> None:
        """Until the last snapshot is written. Raises what its write raised."""
        if self._pending:
            self._pending.result()
            self._pending = None

    def _write(self, taken: Snapshot) -> None:
        taken.wait()
        weights = [*taken.tensors[WEIGHTS].values(), *taken.tensors.get(AVERAGED, {}).values()]
        if not all(bool(tensor.isfinite().all()) for tensor in weights):
            return  # the loop ends at its next loss; what resumes must start before
        write(taken, self._checkpoints)
        winner = best(taken.history)
        records = {
            name: storage.join(self._checkpoints, name, RECORD)
            for name in storage.folders(self._checkpoints)
            if name <= folder(taken.step)
        }
        finished = [name for name, record in records.items() if storage.exists(record)]
        kept = {*finished[-self._keep :], folder(winner.step) if winner else ""}
        for name in records.keys() - kept:
            # The record goes first: a half-deleted checkpoint must not look complete.
            storage.delete(records[name])
            storage.delete(storage.join(self._checkpoints, name))
