"""Solves the head: the logistic regression of the train images' features, to convergence.

The features are centred and scaled, the solution starts at zero and the L2 penalty is chosen on a
held-out fifth of the train images. The objective is the recipe's own loss (label smoothing, class
weights, balance, several labels), so that training which continues from the solution starts at
its minimum for the eval views. Worker 0 runs SciPy's L-BFGS; all workers compute the objective of
their share of the images. Sums over images are exact, so the head does not depend on how workers
share them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.train.collectives import (
    broadcast,
    fixed_point_sum_over_workers,
    to_fixed_point,
)
from effnet_ray.train.head_features import FeatureBlock, HeadFeatures
from effnet_ray.train.loss import train_losses
from effnet_ray.train.mixup import MixedLane

Vector = npt.NDArray[np.float64]

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
"""L2 penalties that are tried, from the strongest: the objective is the mean loss plus half the
penalty times the sum of squared weights of scaled features. For the sets of
`benchmarks/real/compare.py` 0.03 to 0.3 were chosen with label smoothing."""
NO_CHOICE = 0.1
"""The penalty where no image is held out: the one chosen most often for those sets."""
ITERATIONS = 300
"""Maximum number of L-BFGS iterations for one penalty; about 100 were needed."""
TOLERANCE, ROUGH = 1e-4, 1e-3
"""Largest element of the gradient at convergence: of the solution, and of those that penalties are
compared by. Smaller ones did not change eval top-1 by more than an image or two."""
MIN_STD = 1e-3
"""Smallest standard deviation that is distinguished, as a share of the mean one: some features are
always 0."""

STOP, FIT, CHECK, ALL = range(4)
"""What worker 0 asks of the others: nothing more, or the objective of the images that are not held
out, of those that are, or of all."""


@dataclass(frozen=True, slots=True)
class SolvedHead:
    """How the head was solved."""

    penalty: float
    """The chosen L2 penalty."""
    evaluations: int
    """Evaluations of the objective, each a pass over the features."""


def solve_head(
    networks: Sequence[Network],
    features: HeadFeatures,
    recipe: Recipe,
    *,
    class_weights: Sequence[float] = (),
    leads: bool = True,
) -> SolvedHead:
    """Set the networks' heads to the solution; a collective, called by every worker.

    `networks` are those of a TrainState; `features` are this worker's; worker 0 has `leads`.
    """
    network = networks[0]
    objective = HeadObjective(
        features,
        classes=network.num_classes,
        width=network.backbone.num_features,
        smoothing=recipe.label_smoothing,
        class_weights=class_weights,
    )
    if leads:
        solution, solved = _search(objective)
        objective.request(STOP, solution)
    else:
        solution, solved = _follow(objective), SolvedHead(0.0, 0)
    weight, bias = objective.unscaled(solution)
    for network in networks:
        network.backbone.classifier.load_state_dict({"weight": weight, "bias": bias})
    return solved


def _search(objective: "HeadObjective") -> tuple[Vector, SolvedHead]:
    """Worker 0: the solution for the best penalty."""
    solution, best_loss = objective.zero(), np.inf
    chosen, start = NO_CHOICE, solution
    for penalty in PENALTIES:
        solution = _minimise(objective, FIT, penalty, solution, ROUGH)
        loss, _ = objective.request(CHECK, solution)
        if not loss < best_loss:
            break
        best_loss, chosen, start = loss, penalty, solution
    solution = _minimise(objective, ALL, chosen, start, TOLERANCE)
    return solution, SolvedHead(chosen, objective.evaluations)


def _minimise(
    objective: "HeadObjective", part: int, penalty: float, start: Vector, tolerance: float
) -> Vector:
    """The head of the smallest penalised loss, within the tolerance, from `start` on."""
    # Only runs that solve a head need SciPy's optimizers, whose import takes 0.3 s.
    from scipy.optimize import minimize

    biases = objective.classes

    def penalised(solution: Vector) -> tuple[float, Vector]:
        loss, gradient = objective.request(part, solution)
        weights = solution[:-biases]
        gradient[:-biases] += penalty * weights
        return loss + penalty / 2 * float(weights @ weights), gradient

    options = {"maxiter": ITERATIONS, "gtol": tolerance, "ftol": 1e-9}
    # OpenBLAS's threads wait in a loop and would slow down torch's: 14 s instead of 1 s.
    with threadpool_limits(1, user_api="blas"):
        result = minimize(penalised, start, jac=True, method="L-BFGS-B", options=options)
    solution: Vector = result.x
    return solution


def _follow(objective: "HeadObjective") -> Vector:
    """The other workers: compute what worker 0 requests until it has the solution."""
    request = np.empty(objective.size + 1)
    while True:
        part, solution = objective.receive(request)
        if part == STOP:
            return solution
        objective.evaluate(part, solution)


class HeadObjective:
    """Mean loss and gradient of a head over the images of all workers.

    A head is a vector of K × F weights of scaled features, then K biases.
    """

    def __init__(
        self,
        features: HeadFeatures,
        *,
        classes: int,
        width: int,
        smoothing: float,
        class_weights: Sequence[float],
    ) -> None:
        """`width` is F, the number of features; the rest is the recipe's."""
        self.classes, self.size, self.evaluations = classes, classes * (width + 1), 0
        self._features, self._smoothing = features, smoothing
        self._class_weights = torch.tensor(class_weights) if class_weights else None
        self._mean, self._scale = _mean_and_scale(features, width)
        features.standardise(self._mean, self._scale)

    def zero(self) -> Vector:
        """The head that gives every class the same logit."""
        return np.zeros(self.size)

    def request(self, part: int, solution: Vector) -> tuple[float, Vector]:
        """Worker 0: let all workers evaluate a head. `STOP` only sends it."""
        broadcast(torch.from_numpy(np.append(solution, float(part))))
        return (0.0, solution) if part == STOP else self.evaluate(part, solution)

    def receive(self, request: Vector) -> tuple[int, Vector]:
        """The others: worker 0's next request."""
        broadcast(torch.from_numpy(request))
        return int(request[-1]), request[:-1].copy()

    def evaluate(self, part: int, solution: Vector) -> tuple[float, Vector]:
        """Mean loss and its gradient; a collective. Without images, the loss is NaN."""
        self.evaluations += 1
        sums = _zero_sums(self.size + 2)
        for block in self._features:
            if part == ALL or block.held_out == (part == CHECK):
                sums += to_fixed_point(self._block_sums(block, solution))
        total = _total(sums).numpy()
        with np.errstate(invalid="ignore"):
            mean = total[:-1] / total[-1]
        return float(mean[-1]), mean[:-1]

    def _block_sums(self, block: FeatureBlock, solution: Vector) -> Tensor:
        """Sums over a block's images, float64: gradient, then loss, then weight."""
        weight, bias = self._split(torch.from_numpy(solution).float())
        weight.requires_grad_()
        bias.requires_grad_()
        logits = block.feature @ weight.T + bias
        losses = train_losses(
            logits,
            block.label,
            MixedLane(block.feature, block.weight),
            smoothing=self._smoothing,
            class_weights=self._class_weights,
        )
        # Binary cross-entropy is a mean over classes: as their sum, penalties and tolerances mean
        # the same for any number of classes.
        loss = (losses * block.weight).sum() * (1 if block.label.ndim == 1 else self.classes)
        gradients = torch.autograd.grad(loss, [weight, bias])
        rest = torch.stack([loss.detach(), block.weight.sum()])
        return torch.cat([*(gradient.flatten() for gradient in gradients), rest]).double()

    def _split(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        weight = solution[: -self.classes].view(self.classes, -1)
        return weight.clone(), solution[-self.classes :].clone()

    def unscaled(self, solution: Vector) -> tuple[Tensor, Tensor]:
        """The same head's weights [K, F] and biases [K] for features as they are."""
        weight, bias = self._split(torch.from_numpy(solution))
        weight = weight / self._scale.double()
        return weight.float(), (bias - weight @ self._mean.double()).float()


def _mean_and_scale(features: HeadFeatures, width: int) -> tuple[Tensor, Tensor]:
    """What features [F] are centred by and divided by, over all workers' readable images.

    The scale is the geometric mean of a feature's standard deviation and the mean one. Dividing
    by the standard deviation itself amplifies features that hardly vary, which costs up to three
    points (`benchmarks/results/real_weights.md`).
    """
    sums = _zero_sums(2 * width + 1)
    for block in features:
        readable = block.feature[block.weight > 0].double()
        count = torch.tensor([len(readable)], dtype=torch.float64)
        sums += to_fixed_point(torch.cat([readable.sum(0), (readable**2).sum(0), count]))
    total = _total(sums)
    mean, square = (total[:-1] / total[-1].clamp(min=1)).view(2, width)
    std = (square - mean**2).clamp(min=0).sqrt()
    scale = (std.clamp(min=MIN_STD * std.mean()) * std.mean()).sqrt()
    return mean.float(), scale.where(scale > 0, 1.0).float()


def _zero_sums(length: int) -> Tensor:
    """The sums of a worker without images."""
    return to_fixed_point(torch.zeros(length, dtype=torch.float64))


def _total(sums: Tensor) -> Tensor:
    """The sums over all workers, float64. Raises TrainingError if they are not finite."""
    try:
        return fixed_point_sum_over_workers(sums)
    except FloatingPointError as error:
        raise TrainingError(
            "the head cannot be solved: some features of the train images are not finite: use "
            "--precision float32, or --head trained --no-head-cache"
        ) from error
