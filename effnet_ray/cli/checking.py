"""`jobs/check.py`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tyro

from effnet_ray.check.cluster_file import check_cluster_file
from effnet_ray.check.findings import all_right
from effnet_ray.console.checking import show
from effnet_ray.console.people import People


@dataclass(frozen=True)
class Check:
    """Look at a cluster's file before it costs anything."""

    cluster_file: str
    """A YAML for `ray up`: held against Ray's schema, EC2's and our own rules."""


def check_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/check.py`."""
    flags = tyro.cli(Check, args=argv)
    findings = check_cluster_file(flags.cluster_file)
    show(People(), findings)
    return {
        "ok": all_right(findings),
        "findings": [asdict(finding) for finding in findings],
    }
