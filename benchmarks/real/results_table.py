"""The table of `compare.py`'s results."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def table(results: Sequence[Mapping[str, Any]], contestants: Sequence[str]) -> str:
    """Mean and standard deviation of eval top-1 over the seeds, and ranks.

    The mean rank is over the images that all contestants were trained on.
    """
    values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        column = f"{result['variant']} {result['set']} {result['per_class']} {result['size']}"
        values[column][result["contestant"]][result["seed"]] = result["top1"]
    columns = sorted(values, key=_column_order)
    names = [name for name in contestants if any(name in values[column] for column in columns)]
    ranks = [
        _ranks([values[column][name][seed] for name in names])
        for column in columns
        for seed in _common_seeds([values[column].get(name, {}) for name in names])
    ]
    lines = [
        "| | " + " | ".join(columns) + " | mean rank |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for index, name in enumerate(names):
        cells = [_mean(list(values[column].get(name, {}).values())) for column in columns]
        rank = f"{statistics.mean(rank[index] for rank in ranks):.1f}" if ranks else ""
        lines.append(f"| {name} | " + " | ".join([*cells, rank]) + " |")
    return "\n".join(lines)


def _common_seeds(tops: Sequence[Mapping[int, float]]) -> list[int]:
    """The seeds that all contestants have."""
    return sorted(set.intersection(*(set(top) for top in tops)))


def _column_order(column: str) -> tuple[str, str, int]:
    variant, name, per_class, size = column.split()
    return f"{variant} {size}", name, int(per_class)


def _ranks(tops: Sequence[float]) -> list[float]:
    """1 for the best; equal ones share the mean of their ranks."""
    return [
        1 + sum(other > top for other in tops) + (sum(other == top for other in tops) - 1) / 2
        for top in tops
    ]


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"
