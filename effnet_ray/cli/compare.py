"""The comparison of a release with another one, for `evaluate` and `models promote`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effnet_ray import storage
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import DatasetError
from effnet_ray.placement import Placement

if TYPE_CHECKING:
    from effnet_ray.inference.evaluate import Evaluation
    from effnet_ray.inference.paired_test import PairedTest
    from effnet_ray.release.load import LoadedRelease


def data_of(release: "LoadedRelease", data: str) -> str:
    """URI of the data set that a flag names, by default the one of the release's run.

    Raises DatasetError if neither is known.
    """
    recorded = data or str(release.provenance.get("data", ""))
    if not recorded:
        raise DatasetError(f"{release.reference} records no data set: pass --data")
    return storage.absolute(recorded)


def compare(
    evaluation: "Evaluation",
    other: "LoadedRelease",
    placement: Placement,
    connect: Callable[[Placement], Any],
    terminal: Terminal,
) -> "PairedTest":
    """Evaluate `other` on the same images, and compare. Raises what `evaluate` raises."""
    from effnet_ray.inference.evaluate import evaluate
    from effnet_ray.inference.paired_test import paired_test

    against = evaluate(
        other,
        evaluation.data,
        placement,
        split=evaluation.split,
        examples=0,
        on_progress=terminal.image_progress(f"evaluating {other.reference}", "evaluated"),
        connect=connect,
    )
    return paired_test(evaluation.metrics.hits, against.metrics.hits)
