"""AutoAugment, RandAugment and TrivialAugment are torchvision's, drawn per image."""

from collections import Counter
from io import BytesIO
from random import Random

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import (
    AutoAugment,
    RandAugment,
    TrivialAugmentWide,
    _apply_op,
)

from effnet_ray.data.augment import AUTO, DRAWN, OPERATIONS, augmented, steps
from effnet_ray.data.views import train_view
from effnet_ray.recipe import Recipe
from effnet_ray.variants import variant

SIZE = 96
FILL = (124, 116, 104)
PHOTOGRAPH = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((SIZE, SIZE)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("share", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_an_operation_is_torchvisions(name: str, share: float) -> None:
    ranges = {"Translate": 40.0, "Rotate": 135.0, "Posterize": 8.0, "Solarize": 255.0}
    most = next((most for start, most in ranges.items() if name.startswith(start)), 0.99)
    amount = abs(share * most) if name in ("Posterize", "Solarize") else share * most
    amount = max(1.0, amount) if name == "Posterize" else amount
    image = Image.fromarray(PHOTOGRAPH)
    theirs = _apply_op(image, name, amount, InterpolationMode.BILINEAR, list(FILL))
    ours = np.asarray(OPERATIONS[name](image, amount, FILL)).astype(int)
    off = np.abs(ours - np.asarray(theirs))
    if name.startswith("Shear"):  # its angle goes there and back through the tangent
        assert off.mean() < 0.01
    else:
        assert off.max() == 0


def test_auto_augments_table_is_torchvisions() -> None:
    theirs = AutoAugment().policies
    ours = [tuple((n, p, m) for n, p, m in pair) for pair in AUTO]
    assert [tuple((n, p, m or 0) for n, p, m in pair) for pair in theirs] == ours


@pytest.mark.parametrize(
    ("policy", "kind"), [("rand", RandAugment), ("trivial", TrivialAugmentWide)]
)
def test_what_is_drawn_from_is_torchvisions(policy: str, kind: type) -> None:
    """Operations, and the reach of each."""
    theirs = kind()
    space = theirs._augmentation_space(31, (SIZE, SIZE)) if policy == "rand" else (
        theirs._augmentation_space(31))  # fmt: skip
    assert set(space) == set(DRAWN)
    widest = "rand-m30-n1" if policy == "rand" else policy
    seen: dict[str, set[float]] = {}
    for seed in range(6000):
        for name, amount in steps(widest, Random(seed), SIZE):
            seen.setdefault(name, set()).add(amount)
    for name, (magnitudes, signed) in space.items():
        if magnitudes.ndim:
            ends = {float(magnitudes.min()), float(magnitudes.max())}
            reach = max(ends) if signed else min(ends)
            result = max(map(abs, seen[name])) if signed else min(seen[name])
            assert result == pytest.approx(reach, rel=1e-4)
            assert not signed or min(seen[name]) == pytest.approx(-reach, rel=1e-4)


def test_operations_are_equally_likely_and_as_many_as_asked() -> None:
    drawn = [steps("rand-m9-n3", Random(seed), SIZE) for seed in range(3000)]
    assert all(len(each) == 3 for each in drawn)
    counts = Counter(name for each in drawn for name, _ in each)
    assert set(counts) == set(DRAWN)
    expected = 9000 / len(DRAWN)
    assert all(0.8 * expected < count < 1.2 * expected for count in counts.values())


def test_a_magnitude_is_a_share_of_30() -> None:
    for seed in range(300):
        for name, amount in steps("rand-m15-n1", Random(seed), SIZE):
            if name == "Rotate":
                assert abs(amount) == 15


@pytest.mark.parametrize("policy", ["auto", "trivial", "rand", "rand-m30-n9"])
def test_a_view_stays_a_view_and_follows_from_its_own_draws(policy: str) -> None:
    first = [augmented(PHOTOGRAPH, policy, Random(seed), FILL) for seed in range(40)]
    again = [augmented(PHOTOGRAPH, policy, Random(seed), FILL) for seed in range(40)]
    assert all(view.shape == PHOTOGRAPH.shape and view.dtype == np.uint8 for view in first)
    assert all(view.flags.c_contiguous for view in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    changed = sum(not np.array_equal(view, PHOTOGRAPH) for view in first)
    assert changed > 20


def test_the_recipes_policy_acts_on_training_views() -> None:
    sink, spec = BytesIO(), variant("b0").input_spec("ns")
    Image.fromarray(load_sample_image("china.jpg")).save(sink, "JPEG")
    plain, acted = (
        [train_view(sink.getvalue(), spec, Recipe(aa=aa), Random(seed)) for seed in range(6)]
        for aa in ("none", "rand")
    )
    assert any(not np.array_equal(a, b) for a, b in zip(plain, acted, strict=True))
