"""The network normalises images itself; its BatchNorm depends on lanes, not on workers."""

import copy

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.testing import assert_close

from effnet_ray.model.batchnorm import RunningStatistics, batchnorms
from effnet_ray.model.network import Network, build, train_mode
from effnet_ray.phases import STEM
from effnet_ray.recipe import Recipe
from effnet_ray.variants import InputSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5


def settled(**given: object) -> Recipe:
    """A b0 from scratch on 32 px images, without random draws."""
    values = {"weights": "none", "image_size": 32, "batch_size": 8, "micro_batch": 4} | given
    recipe = Recipe(**({"dropout": 0.0, "drop_path": 0.0} | values))  # type: ignore[arg-type]
    return recipe.resolved(recipe.variant_spec.input_spec(), workers=1, on_gpu=False)


def fresh(recipe: Recipe) -> Network:
    return build(recipe, recipe.variant_spec.input_spec(), CLASSES)


def photographs(count: int, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)


def statistics(network: Network) -> list[Tensor]:
    return [b for n, b in network.named_buffers() if n.endswith(("running_mean", "running_var"))]


def snapshot(network: Network) -> list[Tensor]:
    return [buffer.clone() for buffer in statistics(network)]


@pytest.mark.parametrize("family", ["ns", "ap"])
def test_logits_are_those_of_timms_network_on_images_normalised_by_hand(family: str) -> None:
    recipe = settled()
    spec: InputSpec = recipe.variant_spec.input_spec(family)
    network = build(recipe, spec, CLASSES).eval()
    images = photographs(3, seed=1)
    mean, std = (torch.tensor(triple).view(1, 3, 1, 1) for triple in (spec.mean, spec.std))
    with torch.no_grad():
        expected = network.backbone((images.float() / 255 - mean) / std)
        assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["b0", "lite0", "v2_b0"])
def test_logits_are_those_that_timm_gives_an_image_prepared_by_its_own_transform(
    variant: str,
) -> None:
    """Of the same weights, in timm's own network."""
    recipe = settled(variant=variant)
    network = fresh(recipe).eval()
    theirs = timm.create_model(recipe.variant_spec.architecture, num_classes=CLASSES).eval()
    theirs.load_state_dict(network.backbone.state_dict())
    cfg = timm.get_pretrained_cfg(recipe.variant_spec.weights_tag("in1k")).to_dict()
    config = resolve_data_config(pretrained_cfg=cfg | {"input_size": (3, 32, 32), "crop_pct": 1.0})
    transform = create_transform(**config)
    images = photographs(3, seed=6)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    with torch.no_grad():
        expected = theirs(torch.stack([transform(picture) for picture in pictures]))
        assert expected.std() > 0
        assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_the_two_families_of_means_do_not_see_the_same_image() -> None:
    recipe = settled()
    images = photographs(2, seed=2)
    with torch.no_grad():
        ns, ap = (
            build(recipe, recipe.variant_spec.input_spec(family), CLASSES).eval()(images)
            for family in ("ns", "ap")
        )
    assert not torch.allclose(ns, ap)


def test_what_the_network_records_of_itself_is_timms_state_and_nothing_else() -> None:
    network = fresh(settled())
    assert set(network.state_dict()) == {f"backbone.{n}" for n in network.backbone.state_dict()}


@pytest.mark.parametrize("variant", ["b0", "lite0", "v2_b0"])
def test_frozen_batchnorm_neither_learns_nor_moves(variant: str) -> None:
    recipe = settled(variant=variant, batchnorm="frozen")
    network = fresh(recipe)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = snapshot(network)
    train_mode(network, recipe, STEM)
    network(photographs(4, seed=3)).square().sum().backward()
    assert layers
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))
    assert network.training and not any(layer.training for layer in layers)


@pytest.mark.parametrize("variant", ["b0", "lite0", "v2_b0"])
def test_training_batchnorm_learns_and_moves(variant: str) -> None:
    recipe = settled(variant=variant, batchnorm="train")
    network = fresh(recipe)
    before = snapshot(network)
    train_mode(network, recipe, STEM)
    network(photographs(4, seed=3)).square().sum().backward()
    assert all(p.requires_grad for p in network.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


def lane_statistics(network: Network, images: Tensor) -> list[Tensor]:
    """A lane's own statistics: what a momentum of 1 leaves in the buffers."""
    alone = copy.deepcopy(network).train()
    for layer in alone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        alone(images)
    return statistics(alone)


def run_lanes(network: Network, lanes: list[Tensor]) -> RunningStatistics:
    """A worker's part of a step, up to the sum over workers."""
    running = RunningStatistics(batchnorms(network))
    running.begin_step()
    with torch.no_grad():
        for lane in lanes:
            network.train()(lane)
            running.end_lane(len(lane))
    return running


def same(flat: Tensor) -> Tensor:
    return flat


def test_running_statistics_take_one_step_to_the_image_weighted_mean_of_the_lanes() -> None:
    network = fresh(settled(batchnorm="train"))
    lanes = [photographs(6, seed=4), photographs(2, seed=5)]
    old, (first, second) = snapshot(network), [lane_statistics(network, lane) for lane in lanes]
    run_lanes(network, lanes).end_step(same)
    momentum = next(m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert momentum
    for was, a, b, result in zip(old, first, second, statistics(network), strict=True):
        mean = (6 * a + 2 * b) / 8
        assert_close(result, was * (1 - momentum) + momentum * mean, rtol=1e-4, atol=1e-5)


def test_running_statistics_are_the_same_however_many_workers_shared_the_lanes() -> None:
    start = fresh(settled(batchnorm="train"))
    lanes = [photographs(6, seed=4), photographs(2, seed=5)]
    alone, left, right, idle = (copy.deepcopy(start) for _ in range(4))
    run_lanes(alone, lanes).end_step(same)

    shares: list[Tensor] = []
    parts = [
        (network, run_lanes(network, mine))
        for network, mine in ((left, lanes[:1]), (right, lanes[1:]), (idle, []))
    ]
    for _, part in parts:
        part.end_step(lambda flat: shares.append(flat.clone()) or flat)  # type: ignore[func-returns-value]
    for network, part in parts:
        part.end_step(lambda _: torch.stack(shares).sum(0))
        for one, many in zip(statistics(alone), statistics(network), strict=True):
            assert_close(many, one, rtol=1e-5, atol=1e-6)


def test_a_step_of_two_lanes_is_counted_once() -> None:
    network = fresh(settled(batchnorm="train"))
    running, counters = (
        RunningStatistics(batchnorms(network)),
        network.backbone.bn1.num_batches_tracked,
    )
    for _ in range(3):
        running.begin_step()
        for seed in (4, 5):
            network.train()(photographs(2, seed))
            running.end_lane(2)
        running.end_step(same)
    assert int(counters) == 3


def test_a_step_without_images_leaves_the_statistics_alone() -> None:
    network = fresh(settled(batchnorm="train"))
    before = snapshot(network)
    run_lanes(network, []).end_step(same)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


def test_the_same_seed_builds_the_same_head_and_another_seed_another() -> None:
    first, again, other = (
        fresh(settled(seed=seed)).backbone.get_classifier().weight for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
