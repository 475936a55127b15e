"""Every training option of a Recipe has the effect that it is there for."""

import copy
import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.finished_runs import report
from support.loop_worker import (
    CLASSES,
    FixedBatches,
    new_state,
    nothing,
    random_batch,
    settled,
    train,
)
from support.plain_run import in_processes
from torch import Tensor
from torch.nn import functional as F

from effnet_ray.model.ema import MovingAverage
from effnet_ray.model.optimizer import learning_rate, set_learning_rate
from effnet_ray.phases import part_of, phase_at, phases
from effnet_ray.recipe import OPTIMIZERS, Recipe
from effnet_ray.train.draws import Draws
from effnet_ray.train.epoch_report import best, ended_early
from effnet_ray.train.evaluation import EvalResult, epoch_report
from effnet_ray.train.loop import fit
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.loss_scale import GROWTH_INTERVAL, INITIAL, LossScale
from effnet_ray.train.metrics import MetricSums
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, accumulate_gradients

pytestmark = pytest.mark.usefixtures("one_thread")


def pretrained(**given: object) -> Recipe:
    return settled(**({"weights": "ns", "epochs": 2} | given))


def trained(recipe: Recipe) -> TrainState:
    batches, state = FixedBatches(recipe), new_state(recipe)
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    return state


def changed(recipe: Recipe) -> set[int]:
    """The parts of which a run of this recipe changed something, statistics included."""
    before, after = new_state(recipe).network.backbone, trained(recipe).network.backbone
    pairs = zip(before.state_dict().items(), after.state_dict().values(), strict=True)
    stages = recipe.variant_spec.stages
    return {part_of(name, stages) for (name, was), now in pairs if not torch.equal(was, now)}


# --- phases


@pytest.mark.parametrize(
    ("dials", "parts"),
    [
        ({"unfreeze": "head"}, {9}),
        ({"unfreeze": "stage:7"}, {7, 8, 9}),
        ({"unfreeze": "stage:7", "batchnorm": "train"}, {7, 8, 9}),
        ({"unfreeze": "all"}, set(range(10))),
        ({"head_epochs": 2}, {9}),
        ({"head_epochs": 2, "batchnorm": "train"}, {9}),
        ({"variant": "lite0", "weights": "in1k", "unfreeze": "stage:7"}, {7, 8, 9}),
        ({"variant": "v2_b0", "weights": "in1k", "unfreeze": "stage:5"}, {5, 6, 7, 8}),
        ({"variant": "v2_b0", "weights": "in1k", "batchnorm": "train"}, set(range(9))),
    ],
)
def test_only_what_is_unfrozen_changes(dials: dict[str, object], parts: set[int]) -> None:
    assert changed(pretrained(**dials)) == parts


def test_the_backbone_waits_for_the_heads_epochs() -> None:
    recipe = pretrained(head_epochs=1)
    states: list[dict[str, Tensor]] = [copy.deepcopy(new_state(recipe).network.state_dict())]
    fit(
        new_state(recipe), recipe, FixedBatches(recipe).shape(), FixedBatches(recipe),
        on_step=nothing,
        on_epoch=lambda _, state: states.append(copy.deepcopy(state.network.state_dict())),
    )  # fmt: skip
    stem, head = "backbone.conv_stem.weight", "backbone.classifier.weight"
    first, second, third = states
    assert torch.equal(first[stem], second[stem]) and not torch.equal(second[stem], third[stem])
    assert not torch.equal(first[head], second[head])


# --- the optimizer


def test_opt_chooses_timms_optimizer() -> None:
    kinds = {opt: type(new_state(settled(opt=opt)).optimizer).__name__ for opt in OPTIMIZERS}
    assert kinds == {
        "adamw": "AdamW", "nadamw": "NAdamW", "lamb": "Lamb", "lion": "Lion", "sgd": "SGD",
        "momentum": "SGD", "rmsproptf": "RMSpropTF",
    }  # fmt: skip
    nesterov = [new_state(settled(opt=opt)).optimizer.defaults["nesterov"]
                for opt in ("sgd", "momentum")]  # fmt: skip
    assert nesterov == [True, False]


@pytest.mark.parametrize("opt", ["sgd", "momentum", "rmsproptf"])
def test_momentum_is_the_optimizers(opt: str) -> None:
    groups = new_state(settled(opt=opt, momentum=0.7)).optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.7}


def test_layer_decay_gives_each_part_its_rate() -> None:
    state = new_state(pretrained(layer_decay=0.5))
    set_learning_rate(state.optimizer, 0.8)
    names = {id(p): name for name, p in state.network.backbone.named_parameters()}
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            part = part_of(names[id(parameter)], 7)
            assert group["lr"] == pytest.approx(0.8 * 0.5 ** (9 - part))


def test_lamb_clips_where_the_recipe_says_and_counts_only_steps_it_took() -> None:
    recipe = pretrained(opt="lamb", epochs=3, head_epochs=2)
    state = trained(recipe)
    assert {group["max_grad_norm"] for group in state.optimizer.param_groups} == {None}
    steps = {group["part"]: float(group["step"]) for group in state.optimizer.param_groups}
    assert steps[9] == 3 * 2 and {steps[part] for part in range(9)} == {2}


def test_each_phase_warms_up_to_its_own_rate() -> None:
    recipe = pretrained(epochs=4, head_epochs=2, head_lr=0.9, lr=0.3, warmup_epochs=0.5)
    rates = [learning_rate(recipe, step, 10) for step in range(40)]
    assert rates.index(max(rates[:20])) == 4 and max(rates[:20]) == pytest.approx(0.9)
    assert rates.index(max(rates[20:])) == 24 and max(rates[20:]) == pytest.approx(0.3)
    assert rates[19] < 0.02 and rates[39] < 0.01


def test_a_constant_rate_stays_at_its_peak() -> None:
    recipe = pretrained(head_epochs=1, head_lr=0.9, lr=0.3, warmup_epochs=0.2, sched="constant")
    rates = [learning_rate(recipe, step, 10) for step in range(20)]
    assert rates == pytest.approx([0.45, *[0.9] * 9, 0.15, *[0.3] * 9])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clip_grad_bounds_the_gradient_and_leaves_short_ones_alone(precision: str) -> None:
    """In float16 too: its gradients are clipped without the loss scale."""

    def longest(clip: float) -> float:
        recipe, norms = settled(clip_grad=clip, precision=precision), list[float]()
        state = new_state(recipe)

        def measure(*_: object) -> None:
            gradients = [p.grad for g in state.optimizer.param_groups for p in g["params"]]
            norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

        state.optimizer.register_step_pre_hook(measure)
        batches = FixedBatches(recipe)
        fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
        return max(norms)

    free = longest(0)
    assert 0.5 < free < 1
    assert longest(0.5) == pytest.approx(0.5, rel=1e-3)
    assert longest(10 * free) == pytest.approx(free)


# --- precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_convolutions_are_computed_in_the_recipes_precision(precision: str) -> None:
    recipe, kinds = settled(precision=precision), set[str]()
    state, batches = new_state(recipe), FixedBatches(recipe)
    state.network.backbone.conv_head.register_forward_hook(
        lambda _, __, found: kinds.add(str(found.dtype))
    )
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    assert kinds == {f"torch.{precision}"}
    assert {p.dtype for p in state.network.parameters()} == {torch.float32}


def first_gradient(precision: str, factor: float, count: int) -> Tensor:
    """The stem's gradient of a loss divided by `count`, at a loss scale."""
    recipe = settled(precision=precision, dropout=0.0, drop_path=0.0)
    state = new_state(recipe)
    state.scale = LossScale.of(factor)
    worker = PhaseTrainer(state, recipe, phases(recipe)[0])
    accumulate_gradients(worker, random_batch(1, 4, 32), 0, count)
    worker.unscaled_gradients()
    found: Tensor = state.network.backbone.conv_stem.weight.grad
    return found


def test_the_loss_scale_keeps_float16s_small_gradients() -> None:
    """Most are nothing without it, and what they should be with it."""
    exact = first_gradient("float32", 1.0, count=10_000)
    scaled, plain = (first_gradient("float16", factor, count=10_000) for factor in (INITIAL, 1.0))
    assert (exact - scaled).norm() < 0.05 * exact.norm()
    assert (exact - plain).norm() > 0.3 * exact.norm()


def test_the_loss_scale_halves_at_once_and_doubles_in_time() -> None:
    finite, overflow = torch.tensor([True, False])
    scale = LossScale.of(8.0, GROWTH_INTERVAL - 2)
    assert scale.after(finite) == LossScale.of(8.0, GROWTH_INTERVAL - 1)
    assert scale.after(finite).after(finite) == LossScale.of(16.0, 0)
    assert scale.after(overflow) == LossScale.of(4.0, 0)
    floor = LossScale.of(1.0, 0)
    assert LossScale.of(2.0).can_decrease and not floor.can_decrease
    assert floor.after(overflow) == floor


def test_in_float16_finite_steps_count_towards_a_higher_loss_scale() -> None:
    recipe, state = settled(precision="float16"), new_state(settled())
    state.scale, batches = LossScale.of(64.0, GROWTH_INTERVAL - 1), FixedBatches(recipe)
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    assert state.scale == LossScale.of(128.0, 1)


# --- averaging


def test_the_average_follows_the_weights_with_a_decay_that_warms_up() -> None:
    recipe = settled(ema_decay=0.2)
    state = new_state(recipe)
    name = "backbone.conv_stem.weight"
    expected, seen = state.network.state_dict()[name].clone(), list[Tensor]()
    batches = FixedBatches(recipe)
    fit(
        state, recipe, batches.shape(), batches, on_epoch=nothing,
        on_step=lambda state: seen.append(state.network.state_dict()[name].clone()),
    )  # fmt: skip
    for decay, weights in zip((1 / 10, 2 / 11), seen, strict=True):  # below 0.2, still rising
        expected = decay * expected + (1 - decay) * weights
    assert state.averaged is not None
    assert torch.allclose(state.averaged.state_dict()[name], expected, atol=1e-7)
    assert not torch.allclose(expected, seen[-1], atol=1e-7)


def test_late_in_a_run_the_average_has_the_recipes_decay() -> None:
    recipe = settled(ema_decay=0.9)
    first, second = new_state(recipe).network, new_state(replace(recipe, seed=1)).network
    name = "backbone.conv_stem.weight"
    was, now = first.state_dict()[name].clone(), second.state_dict()[name]
    MovingAverage(first, second, 0.9).update(10_000, torch.tensor(True))
    assert torch.allclose(first.state_dict()[name], 0.9 * was + 0.1 * now, atol=1e-7)


def judged(loss: float, top1: float) -> EvalResult:
    sums = torch.tensor([10 * loss, 10 * top1, 10, 10, 10, 0, 0], dtype=torch.float64)
    return EvalResult(MetricSums(sums))


@pytest.mark.parametrize(
    ("averaged", "wins"),
    [((1.0, 0.6), True), ((1.0, 0.4), False), ((0.9, 0.5), True), ((1.0, 0.5), False),
     ((float("nan"), 0.5), False)],
)  # fmt: skip
def test_an_epoch_is_judged_by_the_better_of_weights_and_average(
    averaged: tuple[float, float], wins: bool
) -> None:
    report = epoch_report(0, 1, judged(2, 0.1).sums, judged(1.0, 0.5), judged(*averaged))
    assert report.averaged == wins
    assert report.eval_top1 == (averaged[1] if wins else 0.5)


# --- what is shown


@pytest.mark.parametrize("dial", ["mixup", "cutmix", "reprob"])
def test_mixing_and_erasing_change_what_a_run_learns(dial: str) -> None:
    off = {"dropout": 0.0, "drop_path": 0.0}  # else their draws would differ
    plain, dialled = settled(**off), settled(**off, **{dial: 1.0})
    states = [trained(recipe).network.state_dict() for recipe in (plain, dialled)]
    assert not torch.equal(*(state["backbone.classifier.weight"] for state in states))


def test_label_smoothing_raises_the_loss_that_is_learned_and_not_the_one_that_is_told() -> None:
    plain, smoothed = (trained(settled(label_smoothing=s, lr=1e-9)) for s in (0.0, 0.5))
    assert plain.history[0].train_loss == pytest.approx(smoothed.history[0].train_loss, rel=1e-3)
    moved = [s.optimizer.state_dict()["state"][0]["exp_avg"] for s in (plain, smoothed)]
    assert not torch.allclose(*moved)


# --- classes of different sizes

WEIGHTS = (0.25, 1.0, 3.0, 0.5)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 1.0, "cutmix": 1.0}])
def test_class_weights_multiply_the_loss_of_each_image_or_of_its_part(
    mixing: dict[str, object],
) -> None:
    """The gradient is that of the weighted loss computed by hand, over the count of images."""
    recipe = settled(dropout=0.0, drop_path=0.0, batch_size=4, **mixing)
    lane = FixedBatches(recipe, steps=2)._lane(0, 0)
    weighted, by_hand, plain = (
        PhaseTrainer(new_state(recipe), recipe, phase_at(recipe, 0), TrainLoss.of(recipe, weights))
        for weights in (WEIGHTS, (), ())
    )
    tally = accumulate_gradients(weighted, lane, 5, 4)
    assert torch.equal(tally.sums, accumulate_gradients(plain, lane, 5, 4).sums)

    draws = Draws.of(by_hand.network, recipe, lane, 5, mixes=True)
    shown = draws.augment(recipe, lane, *by_hand.network.noise)
    output = -by_hand.network(shown.image).log_softmax(1)
    smooth = 0.9 * F.one_hot(torch.arange(CLASSES)) + 0.1 / CLASSES
    target = torch.tensor(WEIGHTS)[:, None] * smooth  # of each label
    own, other = (
        target[lane.label],
        target[lane.label if shown.mixed_in is None else shown.mixed_in.label],
    )
    share = (shown.label_share if mixing else torch.ones(4))[:, None]
    (((share * own + (1 - share) * other) * output).sum(1) * lane.weight).sum().div(4).backward()

    found, expected, unweighted = (
        torch.cat([p.grad.flatten() for p in worker.trainable if p.grad is not None])
        for worker in (weighted, by_hand, plain)
    )
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found, unweighted, rtol=0.1)


def test_class_weights_reach_every_step_of_a_run() -> None:
    kinds = ("none", "sqrt", "balanced")
    states = [trained(settled(class_weights=kind)).network.state_dict() for kind in kinds]
    none, sqrt, balanced = (state["backbone.classifier.weight"] for state in states)
    assert not torch.equal(none, sqrt) and not torch.equal(sqrt, balanced)


# --- the end


def test_patience_ends_a_run_that_gets_no_better() -> None:
    recipe = settled(epochs=9, patience=2, lr=1e-12, dropout=0.0, drop_path=0.0)
    state = trained(recipe)
    winner = best(state.history)
    assert winner is not None and len(state.history) == winner.epoch + 3 < 9
    assert trained(replace(recipe, patience=0, epochs=4)).step == 8


def test_eval_every_leaves_evaluations_out_and_changes_nothing_else() -> None:
    recipe = settled(epochs=3)
    always, seldom = trained(recipe), trained(replace(recipe, eval_every=2))
    assert [r.eval_images for r in always.history] == [15, 15, 15]
    assert [r.eval_images for r in seldom.history] == [0, 15, 15]
    none = replace(
        always.history[0], eval_loss=None, eval_top1=None, eval_top5=None, eval_images=0,
        quarantined=seldom.history[0].quarantined,
    )  # fmt: skip
    assert seldom.history == [none, *always.history[1:]]
    assert seldom.history[0].quarantined < always.history[0].quarantined


def test_patience_counts_evaluations() -> None:
    recipe = settled(epochs=9, eval_every=2, patience=2)
    tops = [None, 0.5, None, 0.4, None, 0.3]
    reports = [report(n, top) for n, top in enumerate(tops)]
    winner = best(reports)
    assert winner is not None and winner.epoch == 1
    assert [ended_early(reports[: n + 1], recipe) for n in range(6)] == [False] * 5 + [True]


def test_patience_waits_for_the_last_phase() -> None:
    recipe = pretrained(epochs=9, head_epochs=4, patience=2)
    tops = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    ended = [
        ended_early([report(n, top) for n, top in enumerate(tops[: count + 1])], recipe)
        for count in range(7)
    ]
    assert ended == [False] * 5 + [True, True]  # epochs 4 and 5 are the last phase's
    assert not ended_early([], recipe)


# --- sums of gradients


def norms_of_two_workers(rank: int, folder: str) -> None:
    """One of two workers, which train the same recipe with both kinds of sums."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    recipe = settled(micro_batch=2, opt="sgd", lr=1e-3)
    for kind in ("float32", "bfloat16"):
        found = train(replace(recipe, gradients=kind), rank, 2)
        Path(folder, f"{kind}-{rank}.json").write_text(json.dumps(found["gradients"]))
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_summed_in_bfloat16_are_nearly_those_in_float32(tmp_path: Path) -> None:
    """And the same on both workers."""
    in_processes(norms_of_two_workers, str(tmp_path), processes=2)
    exact, short, other = (
        torch.tensor(json.loads((tmp_path / name).read_text()))
        for name in ("float32-0.json", "bfloat16-0.json", "bfloat16-1.json")
    )
    assert torch.allclose(short, exact, rtol=0.01) and not torch.equal(short, exact)
    assert torch.equal(short, other)
