"""Running out of memory splits the computation of a lane, with the same gradients."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.loop_worker import DIALS, FixedBatches, new_state, nothing, random_batch, settled
from support.plain_run import in_processes
from torch import Tensor, nn

from effnet_ray.errors import TrainingError
from effnet_ray.model.dropout import Drop
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train import checkpoint
from effnet_ray.train.events import EventChannel
from effnet_ray.train.loop import fit
from effnet_ray.train.oom import does_not_fit, split_until_it_fits, splits_after
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, accumulate_gradients

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("one_thread")]

SIX = {"batch_size": 6, "micro_batch": 6}


# --- the same step


def lane_of_six(recipe: Recipe, splits: int) -> tuple[list[Tensor], list[float], int]:
    """Gradients and sums of one lane, and its forward passes."""
    state, passes = new_state(recipe), list[int]()
    state.micro_batch_splits = splits
    made = PhaseTrainer(state, recipe, phases(recipe)[-1])
    state.network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    tally = accumulate_gradients(made, [random_batch(1, 6, 32, lane=1)], 3, torch.tensor([6.0]))
    found = [p.grad.clone() for p in state.network.parameters() if p.grad is not None]
    return found, tally.sums.tolist(), len(passes)


@pytest.mark.parametrize("splits", [2, 3, 6])
@pytest.mark.parametrize("dials", [{}, DIALS], ids=["plain", "every dial"])
def test_parts_of_a_lane_add_up_to_it(dials: dict[str, object], splits: int) -> None:
    """With dropout, drop path, mixing and erasing drawn for the whole lane."""
    recipe = settled(**SIX, **dials)
    whole, sums, once = lane_of_six(recipe, 1)
    parts, divided, passes = lane_of_six(recipe, splits)
    assert (once, passes) == (1, splits)
    assert divided == pytest.approx(sums, abs=1e-5)
    assert all((a - b).norm() <= 1e-5 * a.norm() for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_dropped_of_a_lane_does_not_depend_on_its_parts(whole: bool) -> None:
    drop, x = Drop(0.5, per_image=whole), torch.ones(6, 5, 1, 1)
    found = []
    for rows in (6, 3, 2, 1):
        torch.manual_seed(7)
        drop.begin_lane(6)
        # Between two parts other layers draw, too.
        found.append(torch.cat([drop(part) + 0 * torch.rand(1) for part in x.split(rows)]))
    assert all(torch.equal(other, found[0]) for other in found)
    assert set(found[0].unique().tolist()) == {0.0, 2.0}
    alike = (found[0] == found[0][:, :1]).all()
    assert bool(alike) == whole


def test_an_interrupted_lane_leaves_nothing_to_the_next() -> None:
    drop = Drop(0.5, per_image=True)
    drop.begin_lane(6)
    drop(torch.ones(2, 1, 1, 1))
    drop.begin_lane(3)
    assert drop(torch.ones(3, 1, 1, 1)).shape == (3, 1, 1, 1)


def test_a_divided_run_evaluates_every_image_once_and_no_more_at_a_time() -> None:
    recipe, seen = settled(batch_size=8, micro_batch=4), list[int]()
    whole, parts = new_state(recipe), new_state(recipe)
    parts.micro_batch_splits = 2
    parts.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    for state in (whole, parts):
        batches = FixedBatches(recipe)
        fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    assert max(seen) == 2
    assert parts.history[0].eval_images == 15
    assert parts.history[0].eval_loss == pytest.approx(whole.history[0].eval_loss, abs=1e-4)
    assert parts.history[0].train_loss == pytest.approx(whole.history[0].train_loss, abs=1e-4)


# --- how many splits


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


@pytest.mark.parametrize(("images", "splits"), [(6, 1), (5, 2), (3, 2), (2, 4), (1, 6)])
def test_a_lane_is_divided_until_it_fits(images: int, splits: int) -> None:
    """A CPU never raises the error, so a hook raises torch's own where a pass has more images:
    as near to a GPU as these machines come."""
    worker = worker_holding(images)
    split_until_it_fits(worker)
    assert worker.state.micro_batch_splits == splits


def test_parts_never_become_fewer() -> None:
    worker = worker_holding(6)
    worker.state.micro_batch_splits = 4
    split_until_it_fits(worker)
    assert worker.state.micro_batch_splits == 4


def test_trying_changes_nothing_but_the_parts() -> None:
    worker = worker_holding(6, batchnorm="train", image_size=64)
    untouched = new_state(worker.recipe)
    split_until_it_fits(worker)
    assert worker.state.micro_batch_splits == 1 and not worker.optimizer.state
    assert all(p.grad is None for p in worker.network.parameters())
    pairs = zip(worker.network.state_dict().values(), untouched.network.state_dict().values(),
                strict=True)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_image_that_does_not_fit_ends_the_run_in_a_sentence() -> None:
    with pytest.raises(
        TrainingError, match=r"^not even one image of 32 px fits .* train b0 \(flo"
    ):
        split_until_it_fits(worker_holding(0))


def test_where_batchnorm_learns_a_lane_is_not_divided() -> None:
    says = r"^a micro-batch of 6 images of 32 px does not fit .* BatchNorm.*lower --micro-batch"
    with pytest.raises(TrainingError, match=says):
        split_until_it_fits(worker_holding(3, batchnorm="train"))


def test_below_a_head_that_learns_alone_it_may_be() -> None:
    worker = worker_holding(3, batchnorm="train", weights="ns", unfreeze="head", head_cache=False)
    split_until_it_fits(worker)
    assert worker.state.micro_batch_splits == 2


def test_what_runs_out_later_is_divided_further_as_long_as_it_can_be() -> None:
    recipe = settled(**SIX)
    (phase,) = phases(recipe)
    assert [splits_after(n, recipe, phase) for n in (1, 2, 4, 6)] == [2, 4, 6, None]
    learning = replace(recipe, batchnorm="train")
    assert splits_after(1, learning, phase) is None
    assert "BatchNorm" in str(does_not_fit(learning, phase))


def test_a_run_goes_on_divided_where_memory_ran_out(tmp_path: Path) -> None:
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
    resumed, found = new_state(recipe), checkpoint.newest(str(tmp_path))
    assert found and found.step == 1
    found.load_into(resumed)
    holding(resumed, 3)
    resumed.micro_batch_splits = (
        splits_after(found.progress.micro_batch_splits, recipe, phases(recipe)[0]) or 0
    )
    fit(resumed, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    assert resumed.history[0].train_images == 9
    for a, b in zip(straight.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_parts_are_kept_in_a_checkpoint(tmp_path: Path) -> None:
    state, again = new_state(settled(**SIX)), new_state(settled(**SIX))
    state.micro_batch_splits = 4
    checkpoint.write(checkpoint.snapshot(state), str(tmp_path))
    found = checkpoint.newest(str(tmp_path))
    assert found
    found.load_into(again)
    assert again.micro_batch_splits == 4


def test_the_board_remembers_the_most_parts() -> None:
    board = EventChannel()
    assert board.required_splits() == 1
    for splits in (2, 4, 2):
        board.require_splits(splits)
    assert board.required_splits() == 4


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
        split_until_it_fits(worker)
        worker = None
        gc.collect()
        batches = FixedBatches(recipe, rank=rank, workers=2)
        fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    except TrainingError as error:
        said = str(error)
    found = [state.micro_batch_splits, [report.train_loss for report in state.history], said]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
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
    for splits, losses, said in on_two(tmp_path, 4, 1):
        assert (splits, said) == (4, "")
        assert losses == pytest.approx([state.history[0].train_loss], abs=1e-4)


def test_all_workers_end_where_one_cannot_hold_an_image(tmp_path: Path) -> None:
    for _, losses, said in on_two(tmp_path, 4, 0):
        assert losses == [] and said.startswith("not even one image of 32 px fits")
