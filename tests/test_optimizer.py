"""The optimizer's groups, and the learning rate as a pure function of the step."""

import pytest
from torch import nn

from effnet_ray.model.network import Network, build
from effnet_ray.model.optimizer import learning_rate, optimizer, set_learning_rate
from effnet_ray.recipe import Recipe


def scratch(**given: object) -> Recipe:
    """A settled recipe that trains everything from the start."""
    recipe = Recipe(**({"weights": "none", "lr": 0.1} | given))  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


RECIPE = scratch(epochs=4, warmup_epochs=1.0, weight_decay=0.3)
STEPS = 10


def rates(recipe: Recipe, steps: int = STEPS) -> list[float]:
    return [learning_rate(recipe, step, steps) for step in range(recipe.epochs * steps)]


@pytest.fixture(scope="module", params=["train", "frozen"])
def network(request: pytest.FixtureRequest) -> Network:
    recipe = scratch(dropout=0.0, drop_path=0.0, batchnorm=request.param)
    return build(recipe, recipe.variant_spec.input_spec(), 3)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rates(RECIPE)[:STEPS] == pytest.approx([0.01 * (k + 1) for k in range(STEPS)])


def test_after_the_warm_up_the_rate_only_falls_and_ends_near_one_percent() -> None:
    after = rates(RECIPE)[STEPS:]
    assert after[0] == RECIPE.lr
    assert after == sorted(after, reverse=True)
    assert 0.01 * RECIPE.lr < after[-1] < 0.015 * RECIPE.lr


def test_half_way_down_the_cosine_is_the_mean_of_both_ends() -> None:
    recipe = scratch(epochs=2, warmup_epochs=0)
    assert learning_rate(recipe, STEPS, STEPS) == pytest.approx((0.1 + 0.001) / 2)


def test_the_rate_is_a_pure_function_of_the_step() -> None:
    backwards = [learning_rate(RECIPE, step, STEPS) for step in reversed(range(4 * STEPS))]
    assert backwards[::-1] == rates(RECIPE)


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert rates(scratch(warmup_epochs=0))[0] == 0.1


def test_a_warm_up_longer_than_the_run_takes_half_of_it() -> None:
    result = rates(scratch(epochs=2, warmup_epochs=50))
    assert result.index(max(result)) == STEPS - 1
    assert max(result) == pytest.approx(0.1)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_of_one_step_an_epoch_has_a_rate_for_each(epochs: int) -> None:
    recipe = scratch(epochs=epochs)
    assert all(0 < rate <= 0.1 for rate in rates(recipe, steps=1))


def test_norms_and_biases_have_no_weight_decay_and_all_other_weights_have(
    network: Network,
) -> None:
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer(network, RECIPE).param_groups
        for parameter in group["params"]
    }
    for layer in network.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            plain = name == "bias" or isinstance(layer, nn.BatchNorm2d)
            assert decay[id(parameter)] == (0.0 if plain else RECIPE.weight_decay)


def test_the_optimizer_holds_every_parameter_that_learns_once(network: Network) -> None:
    made = optimizer(network, RECIPE)
    held = [id(p) for group in made.param_groups for p in group["params"] if p.requires_grad]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_setting_the_rate_reaches_every_group(network: Network) -> None:
    made = optimizer(network, RECIPE)
    set_learning_rate(made, 0.025)
    assert {group["lr"] for group in made.param_groups} == {0.025}
