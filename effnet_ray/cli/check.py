"""`check`: the preflight of a training run, and the quick part that every training job runs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effnet_ray.cli.data_set import JobData, find_data
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
    """A YAML file for `ray up` or KubeRay: check it against Ray's or KubeRay's schema, the cloud's
    API and this project's rules, and check nothing else."""


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
    data = find_data(location.data, location.runs, terminal, name=flags.name)
    if data.source:
        return _check_source(flags, data)
    return list(
        preflight.all_checks(
            flags.resolved_recipe(),
            flags.placement,
            data=data.uri,
            runs=location.runs,
            store=location.store,
            mirror=location.weights_mirror or None,
            name=flags.name or None,
            trackers=parse_trackers(flags.tracker),
            single_writer=location.single_writer,
            submits=_submits(),
            connect=flags.connector(terminal),
        )
    )


def _check_source(flags: Check, data: JobData) -> "list[Finding]":
    """The checks that need no packed data set, and what would be packed."""
    from effnet_ray.preflight import inputs
    from effnet_ray.preflight.working_dir import check_working_dir

    assert data.source
    recipe, mirror = flags.resolved_recipe(), flags.location.weights_mirror or None
    return [
        *_quick_checks(flags, data, submitted=False),
        inputs.check_source(data.source),
        inputs.check_weights(recipe, mirror),
        *check_working_dir(Path.cwd(), submits=_submits()),
    ]


def _submits() -> bool:
    """Whether `ray job submit` on this machine would upload the working dir."""
    return "RAY_API_SERVER_ADDRESS" in os.environ


def _quick_checks(flags: TrainingFlags, data: JobData, *, submitted: bool) -> "Iterator[Finding]":
    from effnet_ray.preflight import preflight
    from effnet_ray.tracking.trackers import parse_trackers

    location = flags.location
    return preflight.quick_checks(
        data.read_from,
        location.runs,
        location.store,
        trackers=parse_trackers(flags.tracker),
        single_writer=location.single_writer,
        submitted=submitted,
    )


def preflight_or_raise(flags: TrainingFlags, data: JobData, terminal: Terminal) -> None:
    """Run the quick checks; before packing also that of the weights.

    Raises InputError if results could not be saved or tracked.
    """
    from effnet_ray.preflight import inputs
    from effnet_ray.runtime import session

    findings = list(_quick_checks(flags, data, submitted=session.is_submitted_job()))
    if data.source:
        mirror = flags.location.weights_mirror or None
        findings.append(inputs.check_weights(flags.resolved_recipe(), mirror))
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
