"""The solved head: a converged linear probe, from which training goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from safetensors.torch import load, save_file
from sklearn.linear_model import LogisticRegression
from support.features import (
    cached,
    compute_features,
    head,
    probe_top1,
    solve_in_group,
    stop_in_group,
)  # fmt: skip
from support.plain_run import in_processes, plain_run
from support.runs import weights
from torch import Tensor

from effnet_ray import Placement, Recipe
from effnet_ray.data import feature_cache
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.errors import RecipeError, TrainingError
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release_format import layout
from effnet_ray.train import checkpoint
from effnet_ray.train.events import HeadSolved
from effnet_ray.train.head_features import HeadFeatures
from effnet_ray.train.head_solver import PENALTIES, solve_head
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.mixup import MixedImages
from effnet_ray.train.run_setup import RunSetup, set_up_run
from effnet_ray.train.state import SolvedHead, initial_network
from effnet_ray.train.worker_job import WorkerJob

Array = npt.NDArray[Any]
IMAGES = 300
PROBE = Recipe(
    weights="ns", image_size=32, epochs=3, batch_size=32, micro_batch=8, limit=IMAGES, flip=0.0
)

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def weights_mirror(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mirror with B0's weights, made up; their BatchNorms have seen noise, so features vary."""
    folder = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(0)
    made = timm.create_model("tf_efficientnet_b0").train()
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the statistics of all batches
    with torch.no_grad():
        made(torch.randn(64, 3, 32, 32))
    save_file(made.state_dict(), folder / "tf_efficientnet_b0.ns_jft_in1k.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def job(
    digits: str, weights_mirror: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., WorkerJob]:
    """A run of PROBE with some fields changed, whose features are computed."""
    runs = str(tmp_path_factory.mktemp("heads"))

    def make(**changed: Any) -> WorkerJob:
        recipe, placement = replace(PROBE, **changed), Placement(workers="1")
        setup = set_up_run(recipe, placement, digits, runs=runs, mirror=weights_mirror)
        assert isinstance(setup, RunSetup)
        compute_features(setup.job)
        return setup.job

    return make


def solved(job: WorkerJob) -> tuple[dict[str, Tensor], SolvedHead]:
    """The head, solved by one worker."""
    network = initial_network(job.run, job.weights_uri)
    result = solve_head(
        [network],
        HeadFeatures(job.dataset, 0, 1),
        TrainLoss.of(job.run.recipe, job.dataset.class_weights),
    )
    return head(network), result


def centre_and_scale(train: Array) -> tuple[Array, Array]:
    """What the solver subtracts from features and divides them by."""
    std = train.std(0)
    return train.mean(0), np.sqrt(std.clip(1e-3 * std.mean()) * std.mean())


def test_the_head_is_scikit_learns_logistic_regression(job: Callable[..., WorkerJob]) -> None:
    made = job(label_smoothing=0.0)
    result, how = solved(made)
    train, label = cached(made, "train")
    test, _ = cached(made, "eval")
    centre, scale = centre_and_scale(train)
    expected = LogisticRegression(C=1 / (how.penalty * IMAGES), tol=1e-8, max_iter=5000)
    expected.fit((train - centre) / scale, label)
    logits = torch.from_numpy(test).float() @ result["weight"].T + result["bias"]
    probabilities = expected.predict_proba((test - centre) / scale)
    assert np.allclose(logits.softmax(1).numpy(), probabilities, atol=5e-3)


@pytest.mark.parametrize(
    "changed",
    [{}, {"class_weights": "balanced"}, {"balance": 1.0}, {"task": "multilabel"}],
    ids=["smoothing", "class weights", "balance", "several labels"],
)
def test_the_solution_is_the_minimum_of_the_recipes_own_loss(
    job: Callable[..., WorkerJob], changed: dict[str, Any]
) -> None:
    made = job(**changed)
    result, how = solved(made)
    scale = torch.from_numpy(centre_and_scale(cached(made, "train")[0])[1])
    weight = (result["weight"].double() * scale).requires_grad_()
    bias = result["bias"].double().requires_grad_()
    loss, images = mean_loss(made, weight / scale, bias)
    if made.run.recipe.task == MULTILABEL:
        loss = loss * 10  # the solver adds classes up, where the recipe's loss is their mean
    objective = loss + how.penalty / 2 * (weight**2).sum()
    gradients = torch.autograd.grad(objective, [weight, bias])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3
    assert images == pytest.approx(IMAGES, rel=0.02)


def mean_loss(job: WorkerJob, weight: Tensor, bias: Tensor) -> tuple[Tensor, float]:
    """Mean loss of a head by the recipe, and how many images count in it."""
    train_loss = TrainLoss.of(job.run.recipe, job.dataset.class_weights)
    loss, images = torch.zeros((), dtype=torch.float64), 0.0
    for block in HeadFeatures(job.dataset, 0, 1):
        logits = block.feature.double() @ weight.T + bias
        losses = train_loss(logits, block.target, MixedImages(block.feature, block.weight))
        loss = loss + (losses * block.weight).sum()
        images += float(block.weight.sum())
    return loss / images, images


def test_the_head_does_not_depend_on_the_number_of_workers(
    job: Callable[..., WorkerJob], tmp_path: Path
) -> None:
    made = job()
    for workers in (1, 2, 3):
        in_processes(solve_in_group, made, workers, str(tmp_path), processes=workers)
    one, *others = (torch.load(path) for path in sorted(tmp_path.glob("*.pt")))
    assert len(others) == 5
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)


def test_a_stop_of_any_worker_stops_solving_on_all(
    job: Callable[..., WorkerJob], tmp_path: Path
) -> None:
    in_processes(stop_in_group, job(), 2, str(tmp_path), processes=2)
    assert sorted(path.name for path in tmp_path.glob("*.stopped")) == ["0.stopped", "1.stopped"]


def test_features_that_are_not_finite_are_said_to_be(
    job: Callable[..., WorkerJob], tmp_path: Path
) -> None:
    made = job()
    dataset = replace(made.dataset, features=str(tmp_path))
    rows = FeatureRows(
        np.full((IMAGES, 1280), np.inf, np.float16), np.arange(IMAGES) % 10,
        np.arange(IMAGES), [""] * IMAGES,
    )  # fmt: skip
    feature_cache.write(f"{dataset.features_uri('train', None)}/00000.parquet", [rows])
    network = initial_network(made.run, made.weights_uri)
    with pytest.raises(TrainingError, match=r"features .* are not finite: use --precision"):
        solve_head([network], HeadFeatures(dataset, 0, 1), TrainLoss.of(made.run.recipe, ()))


def test_a_default_run_is_at_least_as_good_as_a_linear_probe(
    digits: str, weights_mirror: str, tmp_path: Path, job: Callable[..., WorkerJob]
) -> None:
    """Minus one standard error; and whatever the epochs after the probe do."""
    probe = probe_top1(job())
    error = (probe * (1 - probe) / IMAGES) ** 0.5
    ruined = replace(PROBE, lr=0.1)
    run = plain_run(ruined, digits, str(tmp_path), "ruined", mirror=weights_mirror)
    tops = [report["eval_top1"] for report in run.reports]
    assert tops[0] >= probe - error
    assert min(tops) < tops[0] - error
    assert run.finished.eval_top1 >= tops[0]
    assert run.finished.resumed_from_step == 0


def test_a_solved_head_is_only_measured(
    digits: str, weights_mirror: str, tmp_path: Path, job: Callable[..., WorkerJob]
) -> None:
    recipe = replace(PROBE, epochs=1, head="solved", ema_decay=0.9)
    run = plain_run(recipe, digits, str(tmp_path), "measured", mirror=weights_mirror).finished
    expected, _ = solved(job())
    for name in (layout.WEIGHTS, checkpoint.AVERAGED):
        released = load((Path(run.checkpoint) / name).read_bytes())
        # The worker is another process, whose BLAS may round otherwise (seen on an AMD EPYC), and
        # the solver stops within its tolerance.
        for kind in ("weight", "bias"):
            torch.testing.assert_close(
                released[f"classifier.{kind}"], expected[kind], atol=1e-6, rtol=0.01
            )


def test_a_run_killed_while_its_solved_head_is_measured_resumes_to_the_bit(
    digits: str, weights_mirror: str, tmp_path: Path
) -> None:
    def run(name: str, kill: int | None = None) -> Any:
        recipe, runs = replace(PROBE, epochs=2, ema_decay=0.9), str(tmp_path)
        return plain_run(recipe, digits, runs, name, mirror=weights_mirror, kill_after_steps=kill)

    first = run("straight")
    (solved,) = [event for event in first.events if isinstance(event, HeadSolved)]
    assert solved.converged and solved.penalty in PENALTIES and solved.passes > 10
    run("killed", kill=7)  # `should_stop` is also asked before each pass of the solver
    run("killed", kill=solved.passes + 5)
    resumed = run("killed")
    assert 0 < resumed.finished.resumed_from_step < 6
    assert weights(resumed.finished) == weights(first.finished)
    assert not [event for event in resumed.events if isinstance(event, HeadSolved)]
    record = json.loads((Path(resumed.finished.checkpoint) / "checkpoint.json").read_bytes())
    expected = {"penalty": solved.penalty, "passes": solved.passes, "converged": True}
    assert record["solved_head"] == expected


@pytest.mark.parametrize(
    ("given", "head", "epochs"),
    [
        ({}, "solved", 1),
        ({"epochs": 1}, "trained", 0),
        ({"head_epochs": 1}, "trained", 1),
        ({"unfreeze": "head", "epochs": 3}, "solved", 1),
        ({"unfreeze": "head", "epochs": 10}, "solved", 1),
        ({"unfreeze": "head", "epochs": 3, "head": "trained"}, "trained", 3),
        ({"unfreeze": "head"}, "solved", 1),
        ({"unfreeze": "head", "lr": 0.1}, "trained", 10),
        ({"head_epochs": 3}, "trained", 3),
        ({"head_epochs": 0}, "trained", 0),
        ({"head_lr": 0.1}, "trained", 2),
        ({"head_views": 2}, "trained", 2),
        ({"head_cache": False}, "trained", 2),
        ({"head": "trained"}, "trained", 2),
        ({"weights": "mine@v1"}, "trained", 2),
        ({"weights": "none"}, "trained", 0),
    ],
    ids=str,
)
def test_the_head_of_a_pretrained_family_is_solved_unless_flags_train_it(
    given: dict[str, Any], head: str, epochs: int
) -> None:
    recipe = Recipe(**given).with_defaults
    assert (recipe.head, recipe.head_epochs) == (head, epochs)


def test_a_solved_head_alone_takes_one_epoch() -> None:
    assert Recipe(unfreeze="head").with_defaults.epochs == 1


@pytest.mark.parametrize(
    "given",
    [
        {"head_views": 2},
        {"head_cache": False},
        {"head_epochs": 2},
        {"head_epochs": 0},
        {"weights": "none"},
    ],
)
def test_what_a_solved_head_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="head"):
        Recipe(head="solved", **given)
