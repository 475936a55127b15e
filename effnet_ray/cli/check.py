"""`check`: the preflight of a training run, and the quick part that every training job runs."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effnet_ray.cli.data_set import data_uri
from effnet_ray.cli.flags import TrainingFlags, parse_training
from effnet_ray.cli.terminal import Terminal
from effnet_ray.errors import InputError

if TYPE_CHECKING:
    from effnet_ray.preflight.findings import Finding


@dataclass(frozen=True)
class Check(TrainingFlags):
    """Check everything a training run needs before it costs anything, or check a cluster file.

    Takes the flags of `finetune`.
    """

    cluster_file: str = ""
    """A YAML file for `ray up`: check it against Ray's schema, the cloud's API and this project's
    rules, and check nothing else."""


def check_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `check`."""
    flags = parse_training(Check, argv)
    from effnet_ray.preflight.findings import all_right

    terminal = Terminal()
    findings = _check_file(flags) if flags.cluster_file else _check_run(flags, terminal)
    _print_findings(terminal, findings)
    return {
        "ok": all_right(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _check_file(flags: Check) -> "list[Finding]":
    from effnet_ray.preflight.cluster_file import check_cluster_file

    return check_cluster_file(flags.cluster_file)


def _check_run(flags: Check, terminal: Terminal) -> "list[Finding]":
    from effnet_ray.preflight import preflight
    from effnet_ray.tracking.trackers import parse_trackers

    location = flags.location
    data = data_uri(flags.location.data, terminal)
    return list(
        preflight.all_checks(
            flags.resolved_recipe(),
            flags.placement,
            data=data,
            runs=location.runs,
            store=location.store,
            mirror=location.weights_mirror or None,
            name=flags.name or None,
            trackers=parse_trackers(flags.tracker),
            single_writer=location.single_writer,
            submits="RAY_API_SERVER_ADDRESS" in os.environ,
            connect=flags.connector(terminal),
        )
    )


def preflight_or_raise(flags: TrainingFlags, data: str, terminal: Terminal) -> None:
    """Run the quick checks. Raises InputError if results could not be saved or tracked."""
    from effnet_ray.preflight import preflight
    from effnet_ray.runtime import session
    from effnet_ray.tracking.trackers import parse_trackers

    location = flags.location
    findings = preflight.quick_checks(
        data,
        location.runs,
        location.store,
        trackers=parse_trackers(flags.tracker),
        single_writer=location.single_writer,
        submitted=session.is_submitted_job(),
    )
    for finding in findings:
        if not finding.ok:
            raise InputError(finding.message)
        if finding.do:
            terminal.print(finding.message)


def _print_findings(terminal: Terminal, findings: "Sequence[Finding]") -> None:
    """Print each check with ✓, ! (passed, with advice) or ✗, and what to do."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = "✗" if not finding.ok else "!" if finding.do else "✓"
        terminal.print(f"{mark} {finding.check:<{width}}  {finding.found}")
        if finding.do:
            terminal.print(f"  {'':<{width}}  → {finding.do}")
    failed = sum(not finding.ok for finding in findings)
    count = len(findings)
    terminal.print(f"{failed} of {count} checks failed" if failed else f"{count} checks passed")
