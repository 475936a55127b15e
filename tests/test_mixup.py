"""Mixup, CutMix and erasing: the partner, the share, and the area of a lane's images."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.loop_worker import new_state, settled
from torch import Tensor
from torch.testing import assert_close

from effnet_ray.data.stream import Lane
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.draws import Draws
from effnet_ray.train.mixup import MixedImages

MEAN, STD = torch.full((1, 3, 1, 1), 100.0), torch.full((1, 3, 1, 1), 50.0)
COUNT, SIZE = 64, 32
PLAIN = Recipe(weights="none")


@pytest.fixture(scope="module")
def network() -> Network:
    return new_state(settled(dropout=0.0, drop_path=0.0)).network


@pytest.fixture
def shown(network: Network) -> Callable[..., tuple[Tensor, MixedImages]]:
    """Images of one value each, 0 to 252, and what the dials make of them."""

    def images(
        weight: Tensor | None = None, seed: int = 0, lanes: tuple[int, ...] = (COUNT,),
        **dials: float,
    ) -> tuple[Tensor, MixedImages]:  # fmt: skip
        values = (torch.arange(COUNT) * 4).to(torch.uint8)
        image = values.view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()
        recipe = replace(PLAIN, seed=seed, **dials)  # type: ignore[arg-type]
        weight = torch.ones(COUNT) if weight is None else weight
        places = tuple(Lane(index, rows) for index, rows in enumerate(lanes))
        return image.float(), mixed(network, recipe, image, torch.arange(COUNT), weight, places)

    return images


def mixed(
    network: Network,
    recipe: Recipe,
    image: Tensor,
    label: Tensor,
    weight: Tensor,
    lanes: tuple[Lane, ...],
) -> MixedImages:
    batch = Batch(image, label, weight, lanes, int(weight.sum()))
    return Draws.of(network, recipe, batch, 0, mixes=True).augment(recipe, batch, MEAN, STD)


Shown = Callable[..., tuple[Tensor, MixedImages]]


def test_with_every_dial_off_images_are_what_they_were(shown: Shown) -> None:
    image, result = shown()
    assert result.image.dtype == torch.uint8 and result.mixed_in is None
    assert torch.equal(result.image.float(), image)


def test_mixup_blends_each_image_with_the_one_as_far_from_the_other_end(shown: Shown) -> None:
    image, result = shown(mixup=0.4)
    share = result.label_share.view(-1, 1, 1, 1)
    assert_close(result.image, share * image + (1 - share) * image.flip(0))
    assert result.mixed_in is not None and torch.equal(
        result.mixed_in.label, torch.arange(COUNT).flip(0)
    )
    assert (
        result.label_share.min() >= 0
        and result.label_share.max() <= 1
        and len(result.label_share.unique()) > 10
    )


def test_mixups_shares_are_a_beta_distribution(shown: Shown) -> None:
    shares = torch.cat([shown(seed=seed, mixup=0.4)[1].label_share for seed in range(30)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_cutmix_pastes_a_box_and_its_share_is_what_is_left_outside(shown: Shown) -> None:
    image, result = shown(cutmix=1.0)
    own = result.image == image
    assert bool((own | (result.image == image.flip(0))).all())
    assert_close(result.label_share, own.float().mean((1, 2, 3)))
    for kept in own[:, 0]:
        rows, columns = (~kept).any(1), (~kept).any(0)
        assert int((~kept).sum()) == int(rows.sum() * columns.sum())  # one box
    assert 0 < result.label_share.min() < result.label_share.max() <= 1


def test_with_both_about_half_of_the_images_have_a_box(shown: Shown) -> None:
    pasted = blended = 0
    for seed in range(10):
        image, result = shown(seed=seed, mixup=1.0, cutmix=1.0)
        whole = (result.image == image) | (result.image == image.flip(0))
        pasted += int(whole.all((1, 2, 3)).sum())
        blended += int((~whole.all((1, 2, 3))).sum())
    assert 0.4 < pasted / (pasted + blended) < 0.6


@pytest.mark.parametrize("dial", ["mixup", "cutmix"])
def test_an_image_that_could_not_be_read_is_mixed_with_none(shown: Shown, dial: str) -> None:
    weight = torch.ones(COUNT)
    weight[3] = 0
    image, result = shown(weight, **{dial: 1.0})
    for alone in (3, COUNT - 1 - 3):
        assert torch.equal(result.image[alone], image[alone]) and result.label_share[alone] == 1


def test_an_images_partner_is_in_its_own_lane(shown: Shown) -> None:
    _, result = shown(lanes=(10, 0, 54), mixup=0.4)
    assert result.mixed_in is not None
    assert result.mixed_in.label.tolist() == [*range(9, -1, -1), *range(63, 9, -1)]


def test_a_lane_is_mixed_as_it_is_alone(shown: Shown, network: Network) -> None:
    """Whichever other lanes the worker has."""
    dials = {"mixup": 0.5, "cutmix": 0.5, "reprob": 0.5}
    image, together = shown(lanes=(24, 40), **dials)
    recipe = replace(PLAIN, **dials)  # type: ignore[arg-type]
    rest = slice(24, None)
    label, lanes = torch.arange(24, COUNT), (Lane(1, 40),)
    alone = mixed(network, recipe, image[rest], label, torch.ones(40), lanes)
    assert torch.equal(together.image[rest], alone.image)
    assert torch.equal(together.label_share[rest], alone.label_share)


def test_a_lone_image_is_mixed_with_itself(network: Network) -> None:
    image = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    recipe = replace(PLAIN, mixup=1.0, cutmix=1.0)
    result = mixed(network, recipe, image, torch.tensor([2]), torch.ones(1), (Lane(0, 1),))
    assert_close(result.image, image.float())
    assert result.mixed_in is not None and result.mixed_in.label.tolist() == [2]


def test_erasing_fills_a_box_of_some_images_with_noise(shown: Shown) -> None:
    image, result = shown(reprob=0.5)
    changed = (result.image != image).any(1)  # [B, R, R]
    erased = changed.any((1, 2))
    assert 0.3 < erased.float().mean() < 0.7
    for kept, box in zip(~erased, changed, strict=True):
        rows, columns = box.any(1), box.any(0)
        assert int(box.sum()) == int(rows.sum() * columns.sum())
        assert kept or 0.005 < box.float().mean() < 0.4  # 0.02 to 0.33, in whole pixels
    noise = result.image[changed[:, None].expand_as(image)]
    assert noise.mean() == pytest.approx(100, abs=3) and noise.std() == pytest.approx(50, abs=3)


def test_what_is_drawn_depends_on_torchs_seed_alone(shown: Shown) -> None:
    dials = {"mixup": 0.5, "cutmix": 0.5, "reprob": 0.5}
    first, again, other = (shown(seed=seed, **dials)[1] for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and torch.equal(
        first.label_share, again.label_share
    )
    assert not torch.equal(first.image, other.image)
