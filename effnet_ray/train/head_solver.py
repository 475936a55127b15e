"""Solves the head: the logistic regression of the train images' features, to convergence.

The features are centred and scaled, the solution starts at zero and the L2 penalty is chosen on a
held-out fifth of the train images. The objective is the recipe's own loss (label smoothing, class
weights, balance, several labels), so that training which continues from the solution starts at
its minimum for the eval views. Worker 0 runs SciPy's L-BFGS; all workers compute the objective of
their share of the images. Sums over images are exact, so the head does not depend on how workers
share them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from effnet_ray.errors import TrainingError
from effnet_ray.model.network import Network
from effnet_ray.train.collectives import (
    broadcast,
    fixed_point_sum_over_workers,
    sum_over_workers,
    to_fixed_point,
)
from effnet_ray.train.head_features import FeatureBlock, HeadFeatures
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.mixup import MixedImages
from effnet_ray.train.state import SolvedHead

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
"""Convergence: the largest element of the gradient, for the final solution and, rougher, while
penalties are compared. Smaller ones changed eval top-1 by no more than an image or two."""
MIN_STD = 1e-3
"""Smallest standard deviation that is distinguished, as a share of the mean one: some features are
always 0."""

STOP, FIT, CHECK, ALL = range(4)
"""Worker 0's requests. STOP: no more work. FIT: the objective of the images that are not held out.
CHECK: of the held-out ones. ALL: of all."""


class _Stopped(Exception):
    """Some worker has to stop; raised on all of them."""


def solve_head(
    networks: Sequence[Network],
    features: HeadFeatures,
    loss: TrainLoss,
    *,
    leads: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> SolvedHead | None:
    """Set the networks' heads to the solution; a collective, called by every worker.

    `networks` are those of a TrainState; `features` are this worker's; worker 0 has `leads`.
    `should_stop` is checked before each pass over the features: if it is true on any worker, the
    heads stay as they are, and the result is None on every worker.
    """
    network = networks[0]
    objective = HeadObjective(
        features,
        classes=network.num_classes,
        width=network.backbone.num_features,
        loss=loss,
        should_stop=should_stop,
    )
    try:
        solution, solved = _search(objective) if leads else _follow(objective)
    except _Stopped:
        return None
    weight, bias = objective.unscaled(solution)
    for network in networks:
        network.backbone.classifier.load_state_dict({"weight": weight, "bias": bias})
    return solved


def _search(objective: "HeadObjective") -> tuple[Vector, SolvedHead]:
    """Worker 0: the solution for the best penalty, which it sends to the others."""
    solution, best_loss = objective.zero(), np.inf
    chosen, start = NO_CHOICE, solution
    for penalty in PENALTIES:
        solution, _ = _minimise(objective, FIT, penalty, solution, ROUGH)
        loss, _ = objective.request(CHECK, solution)
        if not loss < best_loss:
            break
        best_loss, chosen, start = loss, penalty, solution
    solution, converged = _minimise(objective, ALL, chosen, start, TOLERANCE)
    passes = objective.passes
    objective.request(STOP, solution)
    return solution, _share(SolvedHead(chosen, passes, converged))


def _share(head: SolvedHead) -> SolvedHead:
    """Worker 0's, on every worker."""
    shared = broadcast(torch.tensor([head.penalty, head.passes, head.converged]).double())
    penalty, passes, converged = shared.tolist()
    return SolvedHead(penalty, int(passes), bool(converged))


def _minimise(
    objective: "HeadObjective", part: int, penalty: float, start: Vector, tolerance: float
) -> tuple[Vector, bool]:
    """The head of the smallest penalised loss, from `start` on, and whether it converged."""
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
    return result.x, bool(result.success)


def _follow(objective: "HeadObjective") -> tuple[Vector, SolvedHead]:
    """The other workers: compute what worker 0 requests until it has the solution."""
    request = np.empty(objective.size + 1)
    while True:
        part, solution = objective.receive(request)
        if part == STOP:
            return solution, _share(SolvedHead(0.0, 0, False))
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
        loss: TrainLoss,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """`width` is F, the number of features."""
        self.classes, self.size, self.passes = classes, classes * (width + 1), 0
        self._features, self._loss, self._device = features, loss, features.device
        self._should_stop = should_stop
        self._mean, self._scale = _mean_and_scale(features, width)

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
        self.passes += 1
        sums = _zero_sums(self.size + 2, self._device)
        for block in self._features:
            if part == ALL or block.held_out == (part == CHECK):
                sums += to_fixed_point(self._block_sums(block, solution))
        stop = self._should_stop is not None and self._should_stop()
        stops = torch.tensor([int(stop)], device=self._device)
        if int(sum_over_workers(stops)):
            raise _Stopped
        total = _total(sums).numpy()
        with np.errstate(invalid="ignore"):
            mean = total[:-1] / total[-1]
        return float(mean[-1]), mean[:-1]

    def _block_sums(self, block: FeatureBlock, solution: Vector) -> Tensor:
        """Sums over a block's images, float64: gradient, then loss, then weight."""
        weight, bias = self._split(torch.from_numpy(solution).float().to(self._device))
        weight.requires_grad_()
        bias.requires_grad_()
        unscaled = weight / self._scale
        logits = block.feature.float() @ unscaled.T + (bias - unscaled @ self._mean)
        losses = self._loss(logits, block.target, MixedImages(block.feature, block.weight))
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
        weight = weight / self._scale.cpu().double()
        return weight.float(), (bias - weight @ self._mean.cpu().double()).float()


def _mean_and_scale(features: HeadFeatures, width: int) -> tuple[Tensor, Tensor]:
    """What features [F] are centred by and divided by, over all workers' readable images.

    The scale is the geometric mean of a feature's standard deviation and the mean one. Dividing
    by the standard deviation itself amplifies features that hardly vary, which costs up to three
    points (`benchmarks/results/real_weights.md`).
    """
    sums = _zero_sums(2 * width + 1, features.device)
    for block in features:
        readable = block.feature[block.weight > 0].double()
        count = readable.new_tensor([len(readable)])
        sums += to_fixed_point(torch.cat([readable.sum(0), (readable**2).sum(0), count]))
    total = _total(sums)
    mean, square = (total[:-1] / total[-1].clamp(min=1)).view(2, width)
    std = (square - mean**2).clamp(min=0).sqrt()
    scale = (std.clamp(min=MIN_STD * std.mean()) * std.mean()).sqrt()
    scale = scale.where(scale > 0, 1.0)
    return mean.float().to(features.device), scale.float().to(features.device)


def _zero_sums(length: int, device: torch.device) -> Tensor:
    """The sums of a worker without images."""
    return to_fixed_point(torch.zeros(length, dtype=torch.float64, device=device))


def _total(sums: Tensor) -> Tensor:
    """The sums over all workers, float64 on the CPU. Raises TrainingError if not finite."""
    try:
        return fixed_point_sum_over_workers(sums).cpu()
    except FloatingPointError as error:
        raise TrainingError(
            "the head cannot be solved: some features of the train images are not finite: use "
            "--precision float32, or --head trained --no-head-cache"
        ) from error
