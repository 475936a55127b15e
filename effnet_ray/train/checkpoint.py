"""Writes and reads checkpoints: folders of the fields of `state.TrainState`.

Tensors are Safetensors files, all else is JSON; nothing is unpickled. A checkpoint is complete or
absent: checkpoint.json, with the SHA-256 of every other file, is written last. A run resumes from
the newest checkpoint whose files match; damaged ones are logged and skipped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.optim import Optimizer

from effnet_ray import safe_json, storage
from effnet_ray.errors import CheckpointError, OutageError, RecipeError, StorageError
from effnet_ray.model.optimizer import PART
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.storage.temporary import temporary_folder
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.state import Progress, TrainState

RECORD = "checkpoint.json"
OPTIMIZER = "optimizer.safetensors"
AVERAGED = "averaged.safetensors"
EVAL_OUTPUTS = "eval_outputs.safetensors"
"""`TrainState.eval_outputs`, in the checkpoint of an epoch that was evaluated."""
STEP = "step"
GROUP_PREFIX = "group."
"""Prefix of a parameter group's number, for groups that count their steps themselves (lamb)."""
MALFORMED = (StorageError, RecipeError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a missing or malformed record raises."""

logger = logging.getLogger(__name__)


def folder(step: int) -> str:
    """Name of a step's checkpoint folder; names sort by step."""
    return f"step-{step:08d}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a TrainState on the CPU, to be written while training continues."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    """File name → tensor name → tensor; valid after `wait`."""
    copy_done: torch.cuda.Event | None
    """Set when the copies from a GPU are complete."""

    def wait(self) -> None:
        """Wait until the copies are complete; called by the thread that writes them."""
        if self.copy_done:
            self.copy_done.synchronize()


def snapshot(state: TrainState) -> Snapshot:
    """Copy all that must survive a restart."""
    # First: it waits for the GPU, and would wait for the copies queued below, too.
    progress = state.copy_progress()
    tensors = {
        WEIGHTS: _to_cpu(state.network.backbone.state_dict()),
        OPTIMIZER: _to_cpu(_optimizer_tensors(state.optimizer)),
    }
    if state.averaged:
        tensors[AVERAGED] = _to_cpu(state.averaged.backbone.state_dict())
    if state.eval_outputs and state.history[-1].step == state.step:
        tensors[EVAL_OUTPUTS] = _to_cpu(state.eval_outputs)
    on_gpu = next(state.network.parameters()).is_cuda
    copy_done = torch.cuda.current_stream().record_event() if on_gpu else None
    return Snapshot(progress, tensors, copy_done)


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of an optimizer, as `<parameter number>.<name>`."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    for number, group in enumerate(state["param_groups"]):
        if STEP in group:
            tensors[f"{GROUP_PREFIX}{number}.{STEP}"] = group[STEP]
    return tensors


def _to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU.

    Copies from a GPU go to pinned memory and are only queued, behind the GPU's current work: so
    neither it nor Python waits for a thousand small copies one by one.
    """
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(
            tensor.detach(), non_blocking=True
        )
        for name, tensor in tensors.items()
    }


def write(snapshot: Snapshot, checkpoints: str) -> str:
    """Write a snapshot to its folder below `checkpoints`, the record last; return its URI."""
    snapshot.wait()
    uri = storage.join(checkpoints, folder(snapshot.progress.step))
    digests = {}
    for name, tensors in snapshot.tensors.items():
        digests[name] = _write_tensors(tensors, storage.join(uri, name))
    record = {"files": digests, **snapshot.progress.to_json()}
    content = json.dumps({**record, "sha256": _digest(record)}, indent=1)
    storage.write_bytes(storage.join(uri, RECORD), content.encode())
    return uri


def _write_tensors(tensors: dict[str, Tensor], uri: str) -> str:
    """Write a Safetensors file; return its SHA-256.

    By way of a local file: `safetensors.torch.save` would keep Python's lock for all of its time
    (0.7 s for 320 MB), in which the training loop could not go on.
    """
    with temporary_folder("checkpoint") as temporary:
        path = temporary / "tensors"
        save_file(tensors, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        storage.upload(path, uri)
    return digest


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of the record's other fields, since JSON has no checksum."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose record was read and verified."""

    uri: str
    progress: Progress
    files: dict[str, str]
    """File name → SHA-256."""

    @property
    def step(self) -> int:
        """Steps since the start of the run."""
        return self.progress.step

    @property
    def history(self) -> list[EpochReport]:
        """Reports of the epochs finished by then."""
        return self.progress.history

    def read(self, name: str) -> bytes:
        """Content of a file. Raises CheckpointError if it does not match its SHA-256.

        Raises OutageError if storage does not answer, which does not mean that it is damaged.
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
        """Restore `state`. Raises CheckpointError if the checkpoint does not fit or is damaged."""
        try:
            weights, optimizer = load(self.read(WEIGHTS)), load(self.read(OPTIMIZER))
            state.network.backbone.load_state_dict(weights)
            if state.averaged:
                state.averaged.backbone.load_state_dict(load(self.read(AVERAGED)))
            state.optimizer.load_state_dict(_optimizer_state(state, optimizer))
            outputs = EVAL_OUTPUTS in self.files
            state.eval_outputs = load(self.read(EVAL_OUTPUTS)) if outputs else {}
        except (SafetensorError, RuntimeError, ValueError, LookupError) as error:
            raise CheckpointError(
                f"{self.uri} does not fit this recipe ({error}): resume with the version of "
                "effnet_ray that wrote it, or choose another --name"
            ) from error
        state.restore_progress(self.progress)


def _optimizer_state(state: TrainState, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The optimizer's state dict, each moment in its parameter's memory layout.

    Fused AdamW walks through the memory of parameter and moments side by side; a contiguous moment
    of a `channels_last` parameter would silently update the wrong elements.
    """
    groups = state.optimizer.state_dict()["param_groups"]
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.removeprefix(GROUP_PREFIX).split(".", 1)
        if key.startswith(GROUP_PREFIX):
            groups[int(index)][name] = tensor
            continue
        parameter = parameters[int(index)]
        if tensor.dim():  # everything but a step counter
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"{key} has shape {list(tensor.shape)}, expected {list(parameter.shape)}"
                )
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        values.setdefault(int(index), {})[name] = tensor
    _check_complete(state.optimizer, set(values))
    return {"state": values, "param_groups": groups}


def _check_complete(optimizer: Optimizer, restored: set[int]) -> None:
    """Raises ValueError unless the moments are those of no, the head's or all parameters."""
    parts = [group[PART] for group in optimizer.param_groups for _ in group["params"]]
    head = {index for index, part in enumerate(parts) if part == max(parts)}
    if restored and restored not in (head, set(range(len(parts)))):
        raise ValueError(f"it has optimizer state for {len(restored)} of {len(parts)} parameters")


def open_checkpoint(uri: str) -> Checkpoint:
    """Read a checkpoint's record. Raises CheckpointError if it is missing or damaged."""
    try:
        record = safe_json.parse(storage.read_bytes(storage.join(uri, RECORD)))
        if record.pop("sha256") != _digest(record):
            raise CheckpointError(f"{uri} is damaged: {RECORD} does not match its own SHA-256")
        return Checkpoint(uri, Progress.from_json(record), record["files"])
    except OutageError:
        raise
    except MALFORMED as error:
        raise CheckpointError(f"{uri} is not a complete checkpoint: {error}") from error


def _log_damaged(reason: str) -> None:
    logger.warning("skipped a checkpoint: %s", reason)


def complete(
    checkpoints: str, on_damaged: Callable[[str], None] = _log_damaged
) -> Iterator[Checkpoint]:
    """Complete and undamaged checkpoints below `checkpoints`, newest first.

    Folders without a record are unfinished and are skipped. Damaged ones are skipped, too;
    `on_damaged` is called with the reason.
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
            on_damaged(str(error))
            continue
        yield checkpoint


def newest(
    checkpoints: str, on_damaged: Callable[[str], None] = _log_damaged
) -> Checkpoint | None:
    """The newest complete and undamaged checkpoint, or None; `on_damaged` as in `complete`."""
    return next(complete(checkpoints, on_damaged), None)
