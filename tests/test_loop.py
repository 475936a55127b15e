"""The loop: the same recipe takes the same steps on any number of workers."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.loop_worker import (
    STEPS,
    WORLDS,
    FixedBatches,
    new_state,
    nothing,
    random_batch,
    scenarios,
    settled,
    train,
    worker,
)
from support.plain_run import in_processes
from torch import Tensor

from effnet_ray.errors import BadImagesError, NonFiniteError, TrainingError
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.draws import lane_seed
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.evaluation import evaluate
from effnet_ray.train.loop import fit
from effnet_ray.train.loss_scale import LossScale
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, accumulate_gradients

Found = dict[tuple[str, int], dict[str, Any]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one and three worker processes found in every scenario."""
    folder = tmp_path_factory.mktemp("worlds")
    in_processes(worker, str(folder), processes=max(WORLDS))
    return {
        (name, workers): json.loads((folder / f"{name}-{workers}.json").read_text())
        for name in scenarios()
        for workers in WORLDS
    }


# --- placement is not a hyper-parameter


@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("scenario", scenarios())
def test_every_steps_loss_is_the_same_on_any_number_of_workers(
    worlds: Found, scenario: str, workers: int
) -> None:
    """Three workers share 4 lanes unevenly ("frozen"), and 2 lanes leave one idle ("train")."""
    one, many = (torch.tensor(worlds[scenario, w]["sums"]) for w in (1, workers))
    assert len(one) == STEPS * scenarios()[scenario].epochs
    assert torch.equal(one[:, 3:], many[:, 3:])
    assert torch.allclose(many[:, 0] / many[:, 3], one[:, 0] / one[:, 3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("scenario", scenarios())
def test_the_first_gradients_are_as_long_on_any_number_of_workers(
    worlds: Found, scenario: str, workers: int
) -> None:
    """Losses cannot tell: AdamW takes the same steps from gradients of any common scale."""
    one, many = (torch.tensor(worlds[scenario, w]["gradients"][0]) for w in (1, workers))
    assert one.max() > 0
    assert torch.allclose(many, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("workers", WORLDS[1:])
def test_running_statistics_are_the_same_on_any_number_of_workers(
    worlds: Found, workers: int
) -> None:
    one, many = (torch.tensor(worlds["train", w]["statistics"]) for w in (1, workers))
    assert len(one) == STEPS
    assert torch.allclose(many[0], one[0], rtol=1e-5, atol=1e-6)  # before any weight moved
    assert torch.allclose(many, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("scenario", scenarios())
def test_an_evaluation_counts_every_image_once_on_any_number_of_workers(
    worlds: Found, scenario: str, workers: int
) -> None:
    one, many = (worlds[scenario, w]["eval"] for w in (1, workers))
    assert many[1:] == one[1:]
    assert many[0] == pytest.approx(one[0], rel=1e-6)


@pytest.mark.parametrize("scenario", scenarios())
def test_every_number_of_workers_ends_with_a_report_an_epoch(worlds: Found, scenario: str) -> None:
    epochs = scenarios()[scenario].epochs
    assert [worlds[scenario, workers]["reports"] for workers in WORLDS] == [epochs] * len(WORLDS)


# --- steps and epochs


class Ear:
    """Hears what the loop says."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[EpochReport] = []

    def step(self, state: TrainState) -> None:
        """A step was taken."""
        self.steps.append(state.step)

    def epoch(self, report: EpochReport, state: TrainState) -> None:
        """An epoch has ended."""
        assert state.history[-1] == report
        self.epochs.append(report)


def run(recipe: Recipe, state: TrainState, batches: FixedBatches, ear: Ear) -> None:
    shape = batches.shape()
    fit(state, recipe, shape, batches, on_step=ear.step, on_epoch=ear.epoch)


@pytest.mark.quick
def test_fit_takes_the_planned_steps_and_reports_once_an_epoch() -> None:
    recipe, ear = settled(epochs=2), Ear()
    state = new_state(recipe)
    run(recipe, state, FixedBatches(recipe), ear)
    assert ear.steps == [1, 2, 3, 4]
    assert [(e.epoch, e.step) for e in ear.epochs] == [(0, 2), (1, 4)]
    assert [e.train_images for e in ear.epochs] == [13, 13]
    assert [e.eval_images for e in ear.epochs] == [15, 15]
    assert state.train_sums.images == 0


def test_a_run_that_has_ended_takes_no_step() -> None:
    recipe, ear = settled(), Ear()
    state = new_state(recipe)
    state.step = STEPS
    run(recipe, state, FixedBatches(recipe), ear)
    assert (ear.steps, ear.epochs) == ([], [])


def test_warming_up_changes_nothing() -> None:
    recipe = settled(batchnorm="train")
    state, untouched = new_state(recipe), new_state(recipe)
    PhaseTrainer(state, recipe, phases(recipe)[0]).warm_up()
    pairs = zip(
        state.network.state_dict().values(), untouched.network.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not state.optimizer.state
    assert all(p.grad is None for p in state.network.parameters())


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_a_lane_of_one_image_at_32_px_works(batchnorm: str) -> None:
    recipe, ear = settled(batchnorm=batchnorm, batch_size=2, micro_batch=1), Ear()
    run(recipe, new_state(recipe), FixedBatches(recipe), ear)
    assert ear.steps == [1, 2]


@pytest.mark.parametrize("size", [33, 64])
def test_a_lane_of_one_larger_image_works_too(size: int) -> None:
    recipe = settled(batchnorm="train", batch_size=1, micro_batch=1, image_size=size)
    ear = Ear()
    run(recipe, new_state(recipe), FixedBatches(recipe, steps=1), ear)
    assert ear.steps == [1]


def test_an_empty_lane_adds_nothing_to_a_step() -> None:
    recipe = settled(batchnorm="train")
    with_it, without = new_state(recipe), new_state(recipe)
    run(recipe, with_it, FixedBatches(recipe, steps=1, short=0), Ear())
    lone = replace(recipe, batch_size=4)
    run(lone, without, FixedBatches(lone, steps=1, short=4), Ear())
    pairs = zip(with_it.network.parameters(), without.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains(precision: str) -> None:
    recipe, ear = settled(precision=precision), Ear()
    run(recipe, new_state(recipe), FixedBatches(recipe, steps=1), ear)
    assert ear.epochs[0].train_loss > 0


def test_a_network_learns_what_it_is_shown_again_and_again() -> None:
    recipe, ear = settled(epochs=8, lr=3e-3, batchnorm="train", drop_path=0.0, dropout=0.0), Ear()
    run(recipe, new_state(recipe), FixedBatches(recipe), ear)
    assert ear.epochs[-1].train_loss < 0.5 * ear.epochs[0].train_loss


# --- what ends a run


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step() -> None:
    recipe = settled(max_skips=0)
    state = new_state(recipe)

    def poison(state: TrainState) -> None:
        with torch.no_grad():
            state.network.backbone.get_classifier().bias.fill_(float("nan"))

    batches = FixedBatches(recipe)
    with pytest.raises(NonFiniteError, match=r"not finite at step 1 .*lower --lr"):
        fit(state, recipe, batches.shape(), batches, on_step=poison, on_epoch=nothing)
    assert int(state.skipped) == 1


def spoiling(state: TrainState, *steps: int) -> None:
    """Make the head's gradient infinite in these steps."""
    bias = state.network.backbone.get_classifier().bias
    calls = itertools.count(-1)  # the first is the warm-up's

    def spoil(gradient: Tensor) -> Tensor:
        return gradient / (0 if next(calls) in steps else 1)

    bias.register_hook(spoil)


def spoiled(recipe: Recipe, *steps: int, factor: float = 256.0) -> TrainState:
    state, batches = new_state(recipe), FixedBatches(recipe, steps=4)
    state.scale = LossScale.of(factor)
    spoiling(state, *steps)
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    return state


ONE_LANE = {"batch_size": 4, "micro_batch": 4}


def test_a_gradient_that_is_not_finite_ends_the_run_at_its_step() -> None:
    with pytest.raises(NonFiniteError, match="not finite at step 2 "):
        spoiled(settled(max_skips=0, **ONE_LANE), 2)


@pytest.mark.quick
def test_a_few_steps_are_skipped_and_the_rest_are_taken() -> None:
    state = spoiled(settled(max_skips=2, **ONE_LANE), 0, 1, 3)
    assert (state.step, state.history[0].skipped, state.skipped) == (4, 3, 1)
    assert state.history[0].train_images == 13 and state.history[0].quarantined < 13
    assert math.isfinite(state.history[0].train_loss)


def test_too_many_skipped_in_a_row_end_the_run() -> None:
    with pytest.raises(NonFiniteError, match="at step 3, after 2 skipped steps"):
        spoiled(settled(max_skips=2, **ONE_LANE), 1, 2, 3)


FLOAT16 = {"precision": "float16", **ONE_LANE}


def test_in_float16_the_loss_scale_falls_before_a_step_counts_as_skipped() -> None:
    state = spoiled(settled(max_skips=0, **FLOAT16), 0, 1, 3)
    assert (state.step, state.skipped, state.scale) == (4, 0, LossScale.of(256 / 8))
    assert (state.history[0].skipped, state.history[0].train_images) == (3, 13)


def test_at_the_loss_scales_floor_skipped_steps_count() -> None:
    with pytest.raises(NonFiniteError, match=r"at step 3, after 1 skipped step .*float16"):
        spoiled(settled(max_skips=1, **FLOAT16), 1, 2, 3, factor=2.0)
    state = spoiled(settled(max_skips=2, **FLOAT16), 1, 2, 3, factor=2.0)
    assert (state.skipped, state.scale.factor) == (2, 1.0)


def test_a_run_that_is_stopped_after_too_many_skipped_steps_fails() -> None:
    """Or it would save a state that a resumed run goes on from."""
    recipe = settled(max_skips=0, **ONE_LANE)
    state, batches = new_state(recipe), FixedBatches(recipe, steps=4)
    spoiling(state, 1)
    stops = iter([False, False, True])
    with pytest.raises(NonFiniteError, match="at step 1 "):
        fit(
            state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing,
            should_stop=lambda: next(stops),
        )  # fmt: skip


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb"])
def test_a_step_that_is_skipped_after_others_changes_nothing_either(opt: str) -> None:
    """Nor moments and averages, which are not zero by then."""
    recipe = settled(opt=opt, ema_decay=0.9, clip_grad=1.0, **ONE_LANE)
    state, batches = new_state(recipe), FixedBatches(recipe, steps=3)
    spoiling(state, 2)
    values: list[list[Tensor]] = []

    def record(state: TrainState) -> None:
        moments = [v for row in state.optimizer.state.values() for v in row.values()]
        networks = [v for network in state.networks for v in network.state_dict().values()]
        values.append([value.clone() for value in (*moments, *networks)])

    fit(state, recipe, batches.shape(), batches, on_step=record, on_epoch=nothing)
    assert all(torch.equal(a, b) for a, b in zip(values[1], values[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))


def _moved(state: TrainState) -> bool:
    """Whether the optimizer has any moment or step."""
    moments = [value for values in state.optimizer.state.values() for value in values.values()]
    return any(bool(moment.any()) for moment in moments)


@pytest.mark.parametrize(("batchnorm", "precision"), [("train", "float16"), ("frozen", "float32")])
def test_a_skipped_step_changes_nothing(batchnorm: str, precision: str) -> None:
    recipe = settled(batchnorm=batchnorm, ema_decay=0.9, precision=precision, **ONE_LANE)
    state, untouched = spoiled(recipe, 0, 1, 2), new_state(recipe)
    spoiled_again = spoiled(replace(recipe, max_skips=9), 0, 1, 2, 3)
    assert _moved(state) and not _moved(spoiled_again)
    for network in spoiled_again.networks:
        pairs = zip(
            network.state_dict().values(), untouched.network.state_dict().values(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("change", [-1, 1])
def test_images_that_are_not_the_planned_number_end_the_run(split: str, change: int) -> None:
    recipe = settled()
    batches = FixedBatches(recipe, steps=1)
    right = batches.shape()
    wrong = replace(right, **{f"{split}_images": getattr(right, f"{split}_images") + change})
    with pytest.raises(TrainingError, match=rf"epoch 1 used \d+ {split} images, but \d+ were"):
        fit(new_state(recipe), recipe, wrong, batches, on_step=nothing, on_epoch=nothing)


def test_batches_that_end_early_end_the_run() -> None:
    recipe = settled()
    batches = FixedBatches(recipe, steps=1)
    shape = FixedBatches(recipe, steps=2).shape()
    with pytest.raises(TrainingError, match="epoch 1 used"):
        fit(new_state(recipe), recipe, shape, batches, on_step=nothing, on_epoch=nothing)


# --- random draws


def draws(kind: str, step: int, lane: int, seed: int = 0, before: int = 0) -> list[float]:
    """The last layer's gradient after one lane: it tells what was dropped."""
    recipe = settled(seed=seed, **({"dropout": 0.0, "drop_path": 0.0} | {kind: 0.5}))
    state = new_state(replace(recipe, seed=0))
    torch.manual_seed(before)
    made = PhaseTrainer(state, recipe, phases(recipe)[0])
    state.network.train()
    accumulate_gradients(made, random_batch(1, 2, 32, lane), step, 2)
    result: list[float] = state.network.backbone.get_classifier().weight.grad.flatten().tolist()
    return result


@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_what_is_dropped_depends_on_seed_step_and_lane_and_on_nothing_else(kind: str) -> None:
    first = draws(kind, step=1, lane=1)
    assert draws(kind, step=1, lane=1, before=99) == first
    others = [
        draws(kind, step=2, lane=1),
        draws(kind, step=1, lane=2),
        draws(kind, step=1, lane=1, seed=1),
    ]
    assert all(other != first for other in others)


def test_no_two_lanes_of_a_run_share_a_seed() -> None:
    grid = [(s, t, k) for s in range(3) for t in range(200) for k in range(-1, 30)]
    assert len({lane_seed(*place) for place in grid}) == len(grid)
    assert all(0 <= lane_seed(*place) < 2**63 for place in grid)


def test_the_same_run_twice_is_bit_equal() -> None:
    recipe = scenarios()["frozen"]
    assert train(recipe, seen=1) == train(recipe, seen=1)


def test_an_evaluation_leaves_the_network_as_it_was() -> None:
    recipe = settled(batchnorm="train")
    network, untouched = new_state(recipe).network, new_state(recipe).network
    (result,) = evaluate([network], FixedBatches(recipe).eval())
    pairs = zip(network.state_dict().values(), untouched.state_dict().values(), strict=True)
    assert result.sums.images == 15
    assert all(torch.equal(a, b) for a, b in pairs)


# --- bad images


@dataclass(frozen=True, slots=True)
class WithBad(FixedBatches):
    """The same plan, of whose images the first ones cannot be read."""

    bad: tuple[int, ...] = ()
    """Per step, how many of the first lane."""
    bad_eval: int = 0

    def _lane(self, step: int, lane: int) -> Batch:
        batch = FixedBatches._lane(self, step, lane)
        weight = torch.ones(len(batch.label))
        weight[: self.bad[step] if lane == 0 else 0] = 0
        return replace(batch, weight=weight, readable=int(weight.sum()))

    def eval(self) -> Iterator[Batch]:
        """The first batch has bad images, the others have none."""
        for number, batch in enumerate(FixedBatches.eval(self)):
            weight = torch.ones(len(batch.label))
            weight[: self.bad_eval if number == 0 else 0] = 0
            yield replace(batch, weight=weight)


def steps_until_stopped(
    fraction: float, bad: tuple[int, ...] = (0, 0), bad_eval: int = 0, max_uses: int = 1
) -> tuple[int, str]:
    """Steps taken by a run of 13 train and 15 eval images, and why it stopped."""
    recipe = settled(batch_size=8, micro_batch=4)
    batches = WithBad(recipe, bad=bad, bad_eval=bad_eval)
    sizes = replace(batches.shape(), max_uses=max_uses, max_bad_fraction=fraction)
    state = new_state(recipe)
    try:
        fit(state, recipe, sizes, batches, on_step=nothing, on_epoch=nothing)
    except BadImagesError as error:
        return state.step, str(error)
    return state.step, ""


def test_a_run_stops_at_the_step_at_which_too_many_images_are_bad() -> None:
    message = "3 of 13 train images cannot be read, more than --max-bad-fraction 0.2 allows"
    assert steps_until_stopped(0.2, bad=(3, 0)) == (1, message)
    assert steps_until_stopped(0.2, bad=(2, 0)) == (2, "")
    assert steps_until_stopped(0.2, bad=(2, 1)) == (2, message)


def test_one_bad_image_is_allowed_in_a_set_of_any_size_unless_none_is() -> None:
    assert steps_until_stopped(0.01, bad=(1, 0)) == (2, "")
    assert steps_until_stopped(0.01, bad=(1, 1))[1]
    assert steps_until_stopped(0, bad=(1, 0))[0] == 1
    assert steps_until_stopped(1, bad=(4, 4)) == (2, "")


def test_one_bad_image_is_allowed_however_often_an_epoch_uses_it() -> None:
    assert steps_until_stopped(0.01, bad=(2, 1), max_uses=3) == (2, "")
    assert steps_until_stopped(0.01, bad=(2, 2), max_uses=3)[1]
    assert steps_until_stopped(0, bad=(1, 0), max_uses=3)[0] == 1
    assert steps_until_stopped(0.01, bad_eval=2, max_uses=3)[1]


def test_eval_images_are_counted_by_themselves() -> None:
    assert steps_until_stopped(0.01, bad=(1, 0), bad_eval=1) == (2, "")
    assert "2 of 15 eval images" in steps_until_stopped(0.01, bad_eval=2)[1]
