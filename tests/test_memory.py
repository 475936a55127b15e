"""However many images are computed at once, the gradients are the same; as many as fit are."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.loop_worker import (
    DIALS,
    FixedBatches,
    joined,
    new_state,
    nothing,
    random_batch,
    settled,
)
from support.plain_run import in_processes
from torch import Tensor, nn

from effnet_ray.errors import TrainingError
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train import checkpoint
from effnet_ray.train.evaluation import evaluate
from effnet_ray.train.events import EventChannel
from effnet_ray.train.failures import require_smaller_passes
from effnet_ray.train.loop import fit
from effnet_ray.train.memory import is_out_of_memory
from effnet_ray.train.oom import does_not_fit, find_pass_size, smaller_pass
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, accumulate_gradients

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("one_thread")]

SIX = {"batch_size": 6, "micro_batch": 6}


# --- the same step


def gradients(recipe: Recipe, pass_size: int) -> tuple[list[Tensor], list[float], list[int]]:
    """Gradients and sums of lanes of four, four and one image, and the sizes of the passes."""
    state, passes = new_state(recipe), list[int]()
    state.pass_size = pass_size
    trainer = PhaseTrainer(state, recipe, phases(recipe)[-1])
    state.network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    lanes = joined([random_batch(n, rows, 32, n) for n, rows in enumerate((4, 4, 1))])
    sums = accumulate_gradients(trainer, lanes, 3, lanes.readable)
    result = [p.grad.clone() for p in state.network.parameters() if p.grad is not None]
    return result, sums.sums.tolist(), passes


@pytest.mark.parametrize(
    ("pass_size", "passes"),
    [(9, [9]), (8, [8, 1]), (6, [6, 3]), (3, [3, 3, 3]), (1, [1] * 9), (64, [9])],
)
@pytest.mark.parametrize("dials", [{}, DIALS], ids=["plain", "every dial"])
def test_a_step_is_the_same_however_many_images_are_computed_at_once(
    dials: dict[str, object], pass_size: int, passes: list[int]
) -> None:
    """Several lanes or parts of one: dropout, drop path, mixing and erasing are each lane's."""
    recipe = settled(batch_size=12, micro_batch=4, **dials)
    lanes, sums, by_lane = gradients(recipe, 0)
    others, other_sums, result = gradients(recipe, pass_size)
    assert (by_lane, result) == ([4, 4, 1], passes)
    assert other_sums == pytest.approx(sums, abs=1e-5)
    assert all((a - b).norm() <= 1e-5 * a.norm() for a, b in zip(lanes, others, strict=True))


def test_where_batchnorm_learns_a_pass_is_a_lane() -> None:
    recipe = settled(batch_size=12, micro_batch=4, batchnorm="train", image_size=64)
    assert gradients(recipe, 64)[2] == gradients(recipe, 2)[2] == [4, 4, 1]


def test_a_run_with_small_passes_ends_as_the_run_by_lanes() -> None:
    recipe = settled(batch_size=8, micro_batch=4, opt="sgd", lr=1e-3)
    lanes, parts, together = (new_state(recipe) for _ in range(3))
    parts.pass_size, together.pass_size = 2, 8
    for state in (lanes, parts, together):
        batches = FixedBatches(recipe)
        fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    for state in (parts, together):
        assert state.history[0].eval_images == 15
        assert state.history[0].eval_loss == pytest.approx(lanes.history[0].eval_loss, abs=1e-4)
        assert state.history[0].train_loss == pytest.approx(lanes.history[0].train_loss, abs=1e-4)


def test_an_evaluation_that_does_not_fit_is_computed_in_parts() -> None:
    """And costs training nothing."""
    recipe, whole, small = settled(), new_state(settled()), new_state(settled())
    batches, seen = FixedBatches(recipe), list[int]()
    expected = evaluate([whole.network], batches.eval())[0]
    stem = small.network.backbone.conv_stem
    stem.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    holding(small, 1)
    result = evaluate([small.network], batches.eval())[0]
    assert result.sums.images == 15 and small.pass_size == 0
    assert torch.allclose(result.sums.sums, expected.sums.sums, atol=1e-5)
    assert seen == [3, 2] + [1] * 15


# --- how many images at once


def holding(state: TrainState, images: int) -> None:
    """Let no pass over more images fit."""

    def refuse(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > images:
            raise torch.OutOfMemoryError(f"{len(given[0])} images")

    state.network.backbone.conv_head.register_forward_pre_hook(refuse)


def worker_holding(images: int, **dials: object) -> PhaseTrainer:
    recipe = settled(**(SIX | dials))
    state = new_state(recipe)
    holding(state, images)
    return PhaseTrainer(state, recipe, phases(recipe)[0])


@pytest.mark.parametrize(
    ("images", "size"), [(64, 12), (12, 12), (11, 6), (6, 6), (5, 3), (2, 2), (1, 1)]
)
def test_as_many_images_are_computed_at_once_as_fit(images: int, size: int) -> None:
    """Both lanes of this worker, one, or a part of one.

    A CPU never raises the error, so a hook raises torch's own where a pass has more images: as
    near to a GPU as these machines come.
    """
    worker = worker_holding(images, batch_size=12)
    find_pass_size(worker)
    assert worker.state.pass_size == size


def test_compiled_steps_compute_a_micro_batch_at_once() -> None:
    """The size that they are compiled for."""
    worker = worker_holding(64, batch_size=12, compile=True, unfreeze="head", weights="ns",
                            head_cache=False)  # fmt: skip
    find_pass_size(worker)
    assert worker.state.pass_size == 6


def test_a_trial_augments_as_many_images_as_a_step() -> None:
    worker, augmented = worker_holding(2, batch_size=12, mixup=0.2), list[int]()
    augment = worker.augment
    worker.augment = lambda draws, batch: (  # type: ignore[method-assign]
        augmented.append(len(batch.label)) or augment(draws, batch)  # type: ignore[func-returns-value]
    )
    find_pass_size(worker)
    assert worker.state.pass_size == 2 and set(augmented) == {12}


def test_what_cudnn_reports_without_room_is_too_little_memory() -> None:
    said = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
    errors = [torch.OutOfMemoryError("CUDA"), RuntimeError(said), RuntimeError("shapes differ")]
    assert [is_out_of_memory(error) for error in errors] == [True, True, False]


def test_where_batchnorm_learns_a_limit_does_not_divide_a_lane() -> None:
    worker = worker_holding(64, batchnorm="train", image_size=64)
    worker.state.pass_size = 2
    find_pass_size(worker)
    assert worker.state.pass_size == 6


def test_a_limit_is_not_exceeded() -> None:
    worker = worker_holding(6)
    worker.state.pass_size = 4
    find_pass_size(worker)
    assert worker.state.pass_size == 4


def test_trying_changes_nothing_but_the_size() -> None:
    worker = worker_holding(6, batchnorm="train", image_size=64, batch_size=12)
    untouched = new_state(worker.recipe)
    find_pass_size(worker)
    assert worker.state.pass_size == 6 and not worker.optimizer.state
    assert all(p.grad is None for p in worker.network.parameters())
    pairs = zip(worker.network.state_dict().values(), untouched.network.state_dict().values(),
                strict=True)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_image_that_does_not_fit_ends_the_run_in_a_sentence() -> None:
    with pytest.raises(
        TrainingError, match=r"^not even one image of 32 px fits .* train b0 \(flo"
    ):
        find_pass_size(worker_holding(0))


def test_where_batchnorm_learns_a_lane_is_not_divided() -> None:
    says = r"^a micro-batch of 6 images of 32 px does not fit .* BatchNorm.*lower --micro-batch"
    with pytest.raises(TrainingError, match=says):
        find_pass_size(worker_holding(3, batchnorm="train"))


def test_below_a_head_that_learns_alone_it_may_be() -> None:
    worker = worker_holding(3, batchnorm="train", weights="ns", unfreeze="head", head_cache=False)
    find_pass_size(worker)
    assert worker.state.pass_size == 3


def test_what_runs_out_later_is_halved_as_long_as_it_can_be() -> None:
    recipe = settled(**SIX)
    (phase,) = phases(recipe)
    assert [smaller_pass(n, recipe, phase) for n in (6, 3, 2, 1)] == [3, 2, 1, None]
    learning = replace(recipe, batchnorm="train")
    assert smaller_pass(6, learning, phase) is None
    assert "BatchNorm" in str(does_not_fit(learning, phase))


def test_a_run_goes_on_in_smaller_passes_where_memory_ran_out(tmp_path: Path) -> None:
    """From its newest checkpoint, and ends as the run that had enough."""
    recipe = settled(batch_size=4, micro_batch=4, opt="sgd", lr=1e-3)
    straight, small = new_state(recipe), new_state(recipe)
    batches = FixedBatches(recipe, steps=3)

    def shrink(state: TrainState) -> None:
        checkpoint.write(checkpoint.snapshot(state), str(tmp_path))
        holding(state, 3)

    fit(straight, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    with pytest.raises(torch.OutOfMemoryError):
        fit(small, recipe, batches.shape(), batches, on_step=shrink, on_epoch=nothing)
    resumed, result, channel = new_state(recipe), checkpoint.newest(str(tmp_path)), EventChannel()
    assert result and result.step == 1
    result.load_into(resumed)
    holding(resumed, 3)
    require_smaller_passes(channel, small, recipe, 3)
    resumed.pass_size = channel.pass_limit()
    fit(resumed, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    assert resumed.history[0].train_images == 9
    for a, b in zip(straight.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_channel_remembers_the_lowest_limit() -> None:
    channel = EventChannel()
    assert channel.pass_limit() == 0
    for images in (8, 4, 6):
        channel.limit_passes(images)
    assert channel.pass_limit() == 4


# --- on several workers


def two_workers(rank: int, folder: str, images: tuple[int, int]) -> None:
    """One of two processes, of which each holds so many images at once; then a run."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    recipe = settled(batch_size=8, micro_batch=4)
    state, said = new_state(recipe), ""
    holding(state, images[rank])
    try:
        worker: PhaseTrainer | None = PhaseTrainer(state, recipe, phases(recipe)[0])
        assert worker
        find_pass_size(worker)
        worker = None
        gc.collect()
        batches = FixedBatches(recipe, rank=rank, workers=2)
        fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    except TrainingError as error:
        said = str(error)
    result = [state.pass_size, [report.train_loss for report in state.history], said]
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def on_two(folder: Path, *images: int) -> Iterator[tuple[int, list[float], str]]:
    in_processes(two_workers, str(folder), images, processes=2)
    for rank in range(2):
        yield json.loads((folder / f"{rank}.json").read_text())


def test_all_workers_divide_as_the_smallest_must(tmp_path: Path) -> None:
    recipe = settled(batch_size=8, micro_batch=4)
    state, batches = new_state(recipe), FixedBatches(recipe)
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    for size, losses, said in on_two(tmp_path, 4, 1):
        assert (size, said) == (1, "")
        assert losses == pytest.approx([state.history[0].train_loss], abs=1e-4)


def test_all_workers_end_where_one_cannot_hold_an_image(tmp_path: Path) -> None:
    for _, losses, said in on_two(tmp_path, 4, 0):
        assert losses == [] and said.startswith("not even one image of 32 px fits")
