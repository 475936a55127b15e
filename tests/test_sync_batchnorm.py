"""BatchNorm over the whole batch (`--batchnorm sync`), as far as CPUs can show it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.loop_worker import FixedBatches, joined, new_state, nothing, settled
from torch import nn

from effnet_ray import Placement, Recipe, finetune
from effnet_ray.errors import RecipeError
from effnet_ray.model.batchnorm import batchnorms
from effnet_ray.phases import phases
from effnet_ray.sweep.tune import tune
from effnet_ray.train.loop import fit
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = settled(batchnorm="sync", micro_batch=8, image_size=64)
"""One lane, which one worker can normalise by itself."""


def trained(recipe: Recipe) -> TrainState:
    batches, state = FixedBatches(recipe, short=8), new_state(recipe)
    fit(state, recipe, batches.shape(), batches, on_step=nothing, on_epoch=nothing)
    return state


def test_its_layers_are_pytorchs_and_their_weights_have_the_same_names() -> None:
    ours, plain = new_state(RECIPE).network, new_state(replace(RECIPE, batchnorm="train")).network
    layers = batchnorms(ours)
    assert len(layers) == len(batchnorms(plain)) == 49
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
    pairs = zip(ours.state_dict().items(), plain.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_on_one_worker_it_is_training_on_the_whole_batch() -> None:
    synced, plain = (trained(replace(RECIPE, batchnorm=kind)) for kind in ("sync", "train"))
    pairs = zip(
        synced.network.state_dict().values(), plain.network.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_worker_without_images_takes_part_while_the_head_is_trained() -> None:
    """Or the others would wait for its gradients: the layers below do not train then."""
    recipe = replace(RECIPE, weights="ns", head_epochs=1, epochs=2, head_cache=False)
    trainer, passes = PhaseTrainer(new_state(recipe), recipe, phases(recipe)[0]), list[int]()
    trainer.network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    train_step(trainer, joined([]), 1, 1e-3)
    assert passes == [2]


@pytest.mark.parametrize(
    "placement",
    [Placement(workers="2"), Placement(workers="1", gpus_per_worker=1),
     Placement(workers="1:2", gpus_per_worker=1)],
)  # fmt: skip
def test_it_wants_a_gpu_for_each_micro_batch(
    digits: str, tmp_path: Path, placement: Placement
) -> None:
    recipe = Recipe(weights="none", batchnorm="sync", batch_size=8, micro_batch=4, image_size=32)
    with pytest.raises(RecipeError, match="--workers 2 --gpus-per-worker 1"):
        finetune(recipe, placement, digits, runs=str(tmp_path))
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("space", [{}, {"batchnorm": "choice:train,sync"}])
def test_a_sweep_does_not_try_it(digits: str, tmp_path: Path, space: dict[str, str]) -> None:
    recipe = Recipe(weights="none", batchnorm="train" if space else "sync")
    with pytest.raises(RecipeError, match="does not support batchnorm sync"):
        tune(recipe, Placement(), digits, variants=["b0"], trials=1, space=space,
             runs=str(tmp_path))  # fmt: skip


def test_it_is_not_compiled() -> None:
    with pytest.raises(RecipeError, match="compile is True: expected False when"):
        Recipe(batchnorm="sync", compile=True)
