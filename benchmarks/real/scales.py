"""What a linear probe's features are best divided by.

    python benchmarks/real/scales.py --real ~/effnet-real --out ~/effnet-compare

The flags are those of `compare.py`. Prints eval top-1 of scikit-learn's logistic regression for
each scale, with the best of seven penalties.
"""

from collections.abc import Callable

import numpy as np
import tyro
from compare import Cell, Options, cached_features, cells
from sklearn.linear_model import LogisticRegression

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": np.ones_like,
    "standard deviation": lambda std: std.clip(1e-3 * std.mean()),
    "its geometric mean with the mean one": lambda std: np.sqrt(
        std.clip(1e-3 * std.mean()) * std.mean()
    ),
}


def main(options: Options) -> None:
    """Print one table."""
    chosen = list(cells(options))
    print("| divided by | " + " | ".join(cell.name for cell in chosen) + " |")
    print("|---" * (len(chosen) + 1) + "|")
    for name, scale in SCALES.items():
        tops = [f"{_best(cell, scale, options):.3f}" for cell in chosen]
        print(f"| {name} | " + " | ".join(tops) + " |")


def _best(cell: Cell, scale: Callable[[np.ndarray], np.ndarray], options: Options) -> float:
    (train_x, train_y), (eval_x, eval_y) = cached_features(cell, options)
    centre, divisor = train_x.mean(0), scale(train_x.std(0))
    probes = (
        LogisticRegression(C=1 / penalty / len(train_y), max_iter=500) for penalty in PENALTIES
    )
    return max(
        probe.fit((train_x - centre) / divisor, train_y).score((eval_x - centre) / divisor, eval_y)
        for probe in probes
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
