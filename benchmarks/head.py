"""Seconds to solve a head, beside scikit-learn's logistic regression.

    python benchmarks/head.py [--sizes 1000x10 5000x100 20000x1000]

Features are of a B0's width: classes are Gaussian clouds that overlap, of correlated features.
Both start from zero; the solver also chooses its penalty, scikit-learn gets the chosen one.
Contestants take turns; prints the median of three and their ratio.
"""

import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from effnet_ray import Recipe
from effnet_ray.model.network import Network, build
from effnet_ray.train.head_features import FeatureBlock
from effnet_ray.train.head_solver import solve_head
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.state import SolvedHead

WIDTH, BLOCK, HELD_OUT, ROUNDS = 1280, 2048, 5, 3


@dataclass(frozen=True)
class Options:
    """What to solve."""

    sizes: tuple[str, ...] = ("1000x10", "5000x100", "20000x1000")
    """Images x classes."""


@dataclass(frozen=True)
class MadeFeatures:
    """Features in the form of `HeadFeatures`."""

    feature: torch.Tensor
    label: torch.Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __iter__(self) -> Iterator[FeatureBlock]:
        weight = torch.ones(len(self.label))
        held_out = torch.arange(len(self.label)) % HELD_OUT == HELD_OUT - 1
        for first in range(0, len(self.label), BLOCK):
            block = slice(first, first + BLOCK)
            for rows, held in ((~held_out[block], False), (held_out[block], True)):
                columns = (self.feature[block][rows], self.label[block][rows], weight[block][rows])
                yield FeatureBlock(*columns, held)


def made(images: int, classes: int) -> MadeFeatures:
    """Random features, never below 0 as those of a network."""
    draws = torch.Generator().manual_seed(0)
    label = torch.arange(images) % classes
    mixed = torch.randn(WIDTH, WIDTH, generator=draws) / WIDTH**0.5
    centre = torch.randn(classes, WIDTH, generator=draws)
    feature = (centre[label] + torch.randn(images, WIDTH, generator=draws)) @ mixed
    return MadeFeatures(feature.relu().half(), label)


def ours(features: MadeFeatures, network: Network) -> SolvedHead:
    """Solve with effnet_ray."""
    loss = TrainLoss(smoothing=0.0, class_weights=None)
    head = solve_head([network], features, loss)  # type: ignore[arg-type]
    assert head is not None
    return head


def scikit_learns(features: MadeFeatures, penalty: float) -> None:
    """Solve with scikit-learn, standardised, on as many threads as torch has."""
    feature = features.feature.float().numpy()
    feature = (feature - feature.mean(0)) / feature.std(0)
    with threadpool_limits(torch.get_num_threads()):
        model = LogisticRegression(C=1 / penalty / len(feature), max_iter=300)
        model.fit(feature, features.label.numpy())


def main(options: Options) -> None:
    """Print a line for each size."""
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for size in options.sizes:
        images, classes = map(int, size.split("x"))
        features, seconds = made(images, classes), (list[float](), list[float]())
        recipe = Recipe(weights="none")
        network = build(recipe, recipe.variant_spec.input_spec(), classes)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            head = ours(features, network)
            middle = time.perf_counter()
            scikit_learns(features, head.penalty)
            for times, value in zip(
                seconds, (middle - start, time.perf_counter() - middle), strict=True
            ):
                times.append(value)
        one, other = map(statistics.median, seconds)
        print(
            f"{images} images x {classes} classes: {one:.1f} s, {head.passes} passes, penalty "
            f"{head.penalty:g}, converged {head.converged}; scikit-learn for this penalty "
            f"{other:.1f} s ({other / one:.1f} times as long)",
            flush=True,
        )


if __name__ == "__main__":
    np.seterr(all="ignore")
    main(tyro.cli(Options, description=__doc__))
