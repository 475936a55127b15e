"""Checkpoints are complete or absent, and resuming equals never stopping."""

import copy
import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.loop_worker import DIALS, FixedBatches, joined, new_state, random_batch, settled
from torch import Tensor

from effnet_ray import storage
from effnet_ray.errors import CheckpointError
from effnet_ray.phases import phases
from effnet_ray.recipe import OPTIMIZERS, Recipe
from effnet_ray.release_format import layout
from effnet_ray.train import checkpoint
from effnet_ray.train.checkpoint_writer import CheckpointWriter
from effnet_ray.train.class_metrics import class_metrics
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.loop import fit
from effnet_ray.train.loss_scale import LossScale
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.state import SolvedHead, TrainState
from effnet_ray.train.step import PhaseTrainer, train_step
from effnet_ray.variants import CHANNELS_LAST, LAYOUTS

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = settled(batchnorm="train")
REPORT = EpochReport(
    epoch=0, step=1, train_loss=1.5, train_top1=0.1, train_images=8, eval_loss=1 / 3,
    eval_top1=0.7, eval_top5=0.9, eval_images=5, quarantined=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> TrainState:
    """A state after one step, with a past. Read only: copy it with `at`."""
    state = new_state(RECIPE)
    batch = joined([random_batch(lane, 4, 32, lane) for lane in range(2)])
    worker = PhaseTrainer(state, RECIPE, phases(RECIPE)[0])
    state.train_sums = train_step(worker, batch, batch.readable, 1e-3)
    state.step, state.history = 7, [REPORT]
    return state


def at(state: TrainState, step: int, *tops: float) -> TrainState:
    """The state at another step, its epochs ended with these eval top-1 at steps 1, 2, …"""
    history = [replace(REPORT, epoch=n, step=n + 1, eval_top1=top) for n, top in enumerate(tops)]
    return TrainState(
        state.network,
        state.optimizer,
        step=step,
        train_sums=state.train_sums,
        history=history,
    )


def tensors(state: TrainState) -> dict[str, Tensor]:
    """All of a state's tensors, by name."""
    result = dict(state.network.state_dict())
    if state.averaged:
        result |= {f"averaged.{n}": t for n, t in state.averaged.state_dict().items()}
    for number, group in enumerate(state.optimizer.param_groups):
        if "step" in group:
            result[f"group {number}"] = group["step"]
    for index, values in state.optimizer.state_dict()["state"].items():
        result |= {f"{index}.{name}": value for name, value in values.items()}
    return result


def same(a: TrainState, b: TrainState) -> bool:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def write(state: TrainState, folder: Path) -> Path:
    return Path(checkpoint.write(checkpoint.snapshot(state), str(folder)))


def flip(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- there and back


def test_what_is_written_comes_back_bit_for_bit(trained: TrainState, tmp_path: Path) -> None:
    write(trained, tmp_path)
    result, state = checkpoint.newest(str(tmp_path)), new_state(replace(RECIPE, seed=5))
    assert result and not same(state, TrainState(trained.network, state.optimizer))
    result.load_into(state)
    assert same(state, trained)
    assert (state.step, state.history) == (7, [REPORT])
    assert torch.equal(state.train_sums.sums, trained.train_sums.sums)


@pytest.mark.quick
def test_nothing_of_a_runs_progress_is_lost(trained: TrainState, tmp_path: Path) -> None:
    state = at(trained, 3, 0.5)
    state.per_class, state.scale = class_metrics([[4, 5, 3, None]]), LossScale.of(512.0, 7)
    state.device_s, state.skipped = 2.5, torch.tensor(2)
    state.solved_head = SolvedHead(0.03, 95, True)
    write(state, tmp_path)
    result, fresh = checkpoint.newest(str(tmp_path)), new_state(RECIPE)
    unchanged = fresh.to_json()
    assert result
    result.load_into(fresh)
    assert fresh.to_json() == state.to_json()
    assert [name for name in unchanged if unchanged[name] == state.to_json()[name]] == []


def test_a_snapshot_is_a_copy(trained: TrainState, tmp_path: Path) -> None:
    state = new_state(RECIPE)
    kept = copy.deepcopy(state.network.backbone.state_dict())
    taken = checkpoint.snapshot(state)
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(taken.tensors[layout.WEIGHTS][name], kept[name]) for name in kept)


def test_its_files_are_safetensors_and_json_only(trained: TrainState, tmp_path: Path) -> None:
    uri = write(trained, tmp_path)
    assert uri.name == "step-00000007"
    names = {checkpoint.RECORD, layout.WEIGHTS, checkpoint.OPTIMIZER}
    assert {path.name for path in uri.iterdir()} == names
    assert json.loads((uri / checkpoint.RECORD).read_text())["step"] == 7
    for name in (layout.WEIGHTS, checkpoint.OPTIMIZER):
        with safe_open(str(uri / name), framework="pt") as file:
            assert list(file.keys())


def test_another_networks_checkpoint_is_refused(trained: TrainState, tmp_path: Path) -> None:
    write(trained, tmp_path)
    result = checkpoint.newest(str(tmp_path))
    frozen = new_state(replace(RECIPE, batchnorm="frozen"))  # an optimizer of fewer parameters
    frozen.network.backbone.reset_classifier(9)
    assert result
    with pytest.raises(CheckpointError, match="does not fit this recipe"):
        result.load_into(frozen)


@pytest.mark.parametrize("change", ["shape", "index", "missing"])
def test_moments_that_do_not_fit_are_refused(
    trained: TrainState, tmp_path: Path, change: str
) -> None:
    taken = checkpoint.snapshot(trained)
    moments = taken.tensors[checkpoint.OPTIMIZER]
    if change == "shape":
        moments["0.exp_avg"] = moments["0.exp_avg"][:1]
    elif change == "index":
        moments["9999.exp_avg"] = moments["0.exp_avg"].clone()
    else:
        for name in [name for name in moments if name.startswith("0.")]:
            del moments[name]
    result = checkpoint.open_checkpoint(checkpoint.write(taken, str(tmp_path)))
    with pytest.raises(CheckpointError, match="does not fit this recipe"):
        result.load_into(new_state(RECIPE))


# --- resuming equals never stopping


def trained_to_the_end(
    recipe: Recipe, state: TrainState, folder: Path, saved: Collection[int] = ()
) -> None:
    """Train; save a checkpoint after each of the `saved` steps."""
    batches = FixedBatches(recipe, steps=3)

    def save(state: TrainState) -> None:
        if state.step in saved:
            write(state, folder)

    def on_step(state: TrainState) -> None:
        if state.step % 3:  # after an epoch's last step, its evaluation comes first
            save(state)

    def on_epoch(report: EpochReport, state: TrainState) -> None:
        save(state)

    fit(state, recipe, batches.shape(), batches, on_step=on_step, on_epoch=on_epoch)


TOO_HIGH = 2.0**19
"""A loss scale at which float16's gradients overflow."""


def assert_resuming_equals_never_stopping(
    recipe: Recipe, folder: Path, *kills: int, factor: float = 1.0
) -> TrainState:
    """Resume from the checkpoint of each step of `kills`; the state at the end."""
    straight = new_state(recipe)
    straight.scale = LossScale.of(factor)
    trained_to_the_end(recipe, straight, folder, kills)
    for kill in kills:
        resumed = new_state(recipe)
        checkpoint.open_checkpoint(str(folder / checkpoint.folder(kill))).load_into(resumed)
        assert resumed.step == kill
        trained_to_the_end(recipe, resumed, folder)
        assert resumed.step == straight.step == 3 * recipe.epochs
        assert same(resumed, straight)
        assert resumed.history == straight.history
        assert resumed.scale == straight.scale
    return straight


def cases() -> Iterator[Any]:
    """Each value of each option once; the other combinations are long."""
    for batchnorm, memory in itertools.product(("train", "frozen"), LAYOUTS):
        short = (batchnorm == "train") == (memory == CHANNELS_LAST)
        yield pytest.param(batchnorm, memory, marks=[] if short else pytest.mark.long)


@pytest.mark.parametrize(("batchnorm", "layout"), list(cases()))
def test_resuming_equals_never_stopping(tmp_path: Path, batchnorm: str, layout: str) -> None:
    recipe = settled(epochs=2, batchnorm=batchnorm, layout=layout)
    assert_resuming_equals_never_stopping(recipe, tmp_path, 1, 4)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_compiled_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    recipe = settled(epochs=2, batchnorm="train", compile=True)
    assert_resuming_equals_never_stopping(recipe, tmp_path, 1, 4)


def test_resuming_equals_never_stopping_with_every_dial_on(tmp_path: Path) -> None:
    """In the head's phase, between the two, and in the second."""
    recipe = settled(epochs=2, batchnorm="train", **(DIALS | {"head_epochs": 1}))
    assert_resuming_equals_never_stopping(recipe, tmp_path, 1, 3, 4)


def test_resuming_equals_never_stopping_across_an_epoch_without_evaluation(
    tmp_path: Path,
) -> None:
    """In it, at its end, and in the next."""
    ended = assert_resuming_equals_never_stopping(
        settled(epochs=2, eval_every=2, ema_decay=0.9), tmp_path, 2, 3, 5
    )
    assert [report.eval_images for report in ended.history] == [0, 15]


def test_resuming_equals_never_stopping_in_float16(tmp_path: Path) -> None:
    """The loss scale falls in the first steps, which float16 cannot hold, and counts the rest."""
    recipe = settled(epochs=2, precision="float16")
    ended = assert_resuming_equals_never_stopping(recipe, tmp_path, 4, factor=TOO_HIGH)
    assert 0 < ended.scale.good == 6 - ended.history[0].skipped < 6


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_optimizer_is_resumed_to_the_bit(tmp_path: Path, opt: str) -> None:
    recipe = settled(epochs=2, weights="ns", unfreeze="stage:7", head_epochs=1, opt=opt)
    assert_resuming_equals_never_stopping(recipe, tmp_path, 4)


# --- complete or absent


def test_a_checkpoints_record_is_written_once_and_last(
    trained: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, write_bytes, upload = list[str](), storage.write_bytes, storage.upload

    def record_write(uri: str, data: bytes) -> None:
        order.append(Path(uri).name)
        write_bytes(uri, data)

    def record_upload(path: Path, uri: str) -> None:
        order.append(Path(uri).name)
        upload(path, uri)

    monkeypatch.setattr(storage, "write_bytes", record_write)
    monkeypatch.setattr(storage, "upload", record_upload)
    uri = write(trained, tmp_path)
    assert sorted(order) == sorted(path.name for path in uri.iterdir())
    assert order[-1] == checkpoint.RECORD


def test_a_checkpoint_without_its_record_is_not_seen(trained: TrainState, tmp_path: Path) -> None:
    write(at(trained, 1), tmp_path)
    (write(at(trained, 2), tmp_path) / checkpoint.RECORD).unlink()
    result = checkpoint.newest(str(tmp_path))
    assert result and result.step == 1


def test_where_nothing_is_there_is_no_newest(tmp_path: Path) -> None:
    assert checkpoint.newest(str(tmp_path / "absent")) is None


NAMES = (layout.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.RECORD)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_said_and_the_one_before_is_used(
    trained: TrainState, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(at(trained, 1), tmp_path)
    uri = write(at(trained, 2), tmp_path)
    position = (uri / name).read_bytes().find(b'"step": 2') + 8 if name.endswith("json") else -5
    flip(uri / name, position)
    result = checkpoint.newest(str(tmp_path))
    assert result and result.step == 1 and result.uri.endswith("step-00000001")
    assert str(uri) in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_file_is_said_and_the_one_before_is_used(
    trained: TrainState, tmp_path: Path, name: str
) -> None:
    write(at(trained, 1), tmp_path)
    file = write(at(trained, 2), tmp_path) / name
    file.write_bytes(file.read_bytes()[:-30])
    result = checkpoint.newest(str(tmp_path))
    assert result and result.step == 1


def test_a_missing_file_is_said_and_the_one_before_is_used(
    trained: TrainState, tmp_path: Path
) -> None:
    write(at(trained, 1), tmp_path)
    (write(at(trained, 2), tmp_path) / checkpoint.OPTIMIZER).unlink()
    result = checkpoint.newest(str(tmp_path))
    assert result and result.step == 1


def test_damage_after_it_was_found_is_refused(trained: TrainState, tmp_path: Path) -> None:
    uri = write(trained, tmp_path)
    result = checkpoint.open_checkpoint(str(uri))
    flip(uri / layout.WEIGHTS)
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        result.load_into(new_state(RECIPE))


def test_a_changed_figure_in_the_record_is_not_believed(
    trained: TrainState, tmp_path: Path
) -> None:
    record = write(at(trained, 1, 0.7), tmp_path) / checkpoint.RECORD
    record.write_text(record.read_text().replace('"eval_top1": 0.7', '"eval_top1": 0.9'))
    assert checkpoint.newest(str(tmp_path)) is None


# --- the writer


def test_the_writer_keeps_the_newest_and_the_best(trained: TrainState, tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=2, max_skips=2)
    tops = [0.5, 0.9, 0.6, 0.7, 0.8]
    for step in range(1, 6):
        writer.save(at(trained, step, *tops[:step]))
    writer.wait()
    assert [c.step for c in checkpoint.complete(str(tmp_path))] == [5, 4, 2]


def test_the_writer_does_not_count_what_was_never_finished(
    trained: TrainState, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        write(at(trained, step), tmp_path)
    (tmp_path / "step-00000003" / checkpoint.RECORD).unlink()
    writer = CheckpointWriter(str(tmp_path), keep=2, max_skips=2)
    writer.save(at(trained, 4))
    writer.wait()
    assert [c.step for c in checkpoint.complete(str(tmp_path))] == [4, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_writer_without_epochs_keeps_the_newest(trained: TrainState, tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), keep=1, max_skips=2)
    for step in (1, 2, 3):
        writer.save(at(trained, step))
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_the_writer_passes_over_weights_that_are_not_finite(
    trained: TrainState, tmp_path: Path
) -> None:
    writer, state = (
        CheckpointWriter(str(tmp_path), keep=2, max_skips=2),
        at(copy.deepcopy(trained), 2),
    )
    writer.save(at(trained, 1))
    with torch.no_grad():
        next(state.network.backbone.parameters()).fill_(torch.inf)
    writer.save(state)
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_writer_passes_over_a_state_that_the_loop_will_refuse(
    trained: TrainState, tmp_path: Path
) -> None:
    """With more skipped steps in a row than are allowed: the loop learns of them a step later."""
    writer, state = CheckpointWriter(str(tmp_path), keep=2, max_skips=2), at(trained, 2)
    for skipped in (2, 3):
        state.skipped, state.step = torch.tensor(skipped), skipped
        writer.save(state)
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_the_writer_says_what_went_wrong(trained: TrainState, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = CheckpointWriter(str(tmp_path / "file"), keep=1, max_skips=2)
    writer.save(trained)
    with pytest.raises(Exception, match="file"):
        writer.wait()


def test_the_tally_of_a_new_state_is_zero() -> None:
    assert torch.equal(new_state(RECIPE).train_sums.sums, MetricSums.zero().sums)
