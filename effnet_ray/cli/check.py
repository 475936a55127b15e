"""`jobs/check.py`, and its quick part, which the jobs that train begin with."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray.cli import flags as shared
from effnet_ray.cli.check_table import print_findings
from effnet_ray.cli.flags import TrainingFlags
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import StorageError
from effnet_ray.preflight import preflight
from effnet_ray.preflight.cluster_file import check_cluster_file
from effnet_ray.preflight.findings import Finding, all_right
from effnet_ray.runtime import session
from effnet_ray.tracking import trackers


@dataclass(frozen=True)
class Check(TrainingFlags):
    """Look before a run costs anything: with its flags, or at a cluster's file."""

    cluster_file: str = ""
    """A YAML for `ray up`, held against Ray's schema, EC2's and our own rules; nothing else is
    looked at then."""


def check_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/check.py`."""
    people = Terminal()
    flags = shared.parse(Check, argv)
    findings = (
        check_cluster_file(flags.cluster_file) if flags.cluster_file else _run(flags, people)
    )
    print_findings(people, findings)
    return {
        "ok": all_right(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _run(flags: Check, people: Terminal) -> list[Finding]:
    """Findings for a run with these flags."""
    where = flags.where
    data = where.data or shared.sample(people)

    return list(
        preflight.full(
            shared.recipe(flags),
            flags.placement,
            data,
            where.runs,
            where.store,
            where.weights_mirror or None,
            trackers=trackers.parse_trackers(flags.tracker),
            single_writer=where.single_writer,
            submits="RAY_API_SERVER_ADDRESS" in os.environ,
            connect=shared.connect_as(people, local=flags.local, verbose=flags.verbose),
        )
    )


def preflight_or_raise(flags: TrainingFlags, data: str, people: Terminal) -> None:
    """The quick part. Raises StorageError where what is trained could not be kept or told."""
    where = flags.where
    found = preflight.quick(
        data,
        where.runs,
        where.store,
        trackers=trackers.parse_trackers(flags.tracker),
        single_writer=where.single_writer,
        submitted=session.is_submitted_job(),
    )
    for finding in found:
        if not finding.ok:
            raise StorageError(finding.message)
        if finding.do:
            people.say(finding.message)
