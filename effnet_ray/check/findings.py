"""What a check found, for people and for JSON."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at."""
    ok: bool
    found: str
    do: str = ""
    """What to do; empty where there is nothing to do."""


def finding(check: str, wrong: str, right: str, do: str) -> Finding:
    """Of a check with one remedy: right where `wrong` is empty."""
    return Finding(check=check, ok=not wrong, found=wrong or right, do=do if wrong else "")


def all_right(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.ok for finding in findings)
