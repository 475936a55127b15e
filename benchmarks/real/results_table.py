"""The table of `compare.py`'s results."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

RELEASED = ", the released epoch"
"""Follows a contestant's name; not ranked, since the others have no such choice."""


def table(results: Sequence[Mapping[str, Any]], contestants: Sequence[str]) -> str:
    """Mean and standard deviation of eval top-1 over the seeds, and ranks.

    The mean rank is over the images that all contestants were trained on.
    """
    values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        column = f"{result['variant']} {result['set']} {result['per_class']} {result['size']}"
        values[column][result["contestant"]][result["seed"]] = result["top1"]
        if "released" in result:
            values[column][result["contestant"] + RELEASED][result["seed"]] = result["released"]
    columns = sorted(values, key=_column_order)
    both = [form for name in contestants for form in (name, name + RELEASED)]
    names = [name for name in both if any(name in values[column] for column in columns)]
    ranked = [name for name in names if not name.endswith(RELEASED)]
    ranks = [
        dict(zip(ranked, _ranks([values[column][name][seed] for name in ranked]), strict=True))
        for column in columns
        for seed in _common_seeds([values[column].get(name, {}) for name in ranked])
    ]
    lines = [
        "| | " + " | ".join(columns) + " | mean rank |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name in names:
        cells = [_mean(list(values[column].get(name, {}).values())) for column in columns]
        own = [rank[name] for rank in ranks if name in rank]
        rank = f"{statistics.mean(own):.1f}" if own else ""
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
