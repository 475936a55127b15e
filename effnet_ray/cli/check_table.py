"""A preflight's table: ✓, ! or ✗, what was found, what to do."""

from collections.abc import Sequence

from effnet_ray.cli.terminal import Terminal
from effnet_ray.preflight.findings import Finding, all_right


def print_findings(people: Terminal, findings: Sequence[Finding]) -> None:
    """Print it."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = "✗" if not finding.ok else "!" if finding.do else "✓"
        people.say(f"{mark} {finding.check:<{width}}  {finding.found}")
        if finding.do:
            people.say(f"  {'':<{width}}  → {finding.do}")
    wrong = sum(not finding.ok for finding in findings)
    people.say("all right" if all_right(findings) else f"{wrong} of {len(findings)} not right")
