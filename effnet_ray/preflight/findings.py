"""What a check found, for people and for JSON."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from effnet_ray.errors import EffnetRayError


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at."""
    ok: bool
    found: str
    do: str = ""
    """What to do; empty where there is nothing to do, or `found` says it."""

    @property
    def message(self) -> str:
        """In one sentence."""
        return f"{self.check}: {self.found}" + (f": {self.do}" if self.do else "")


def problem(check: str, wrong: str, right: str, do: str) -> Finding:
    """Of a check with one remedy: right where `wrong` is empty."""
    return Finding(check=check, ok=not wrong, found=wrong or right, do=do if wrong else "")


def all_right(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.ok for finding in findings)


def run_check(check: str, look: Callable[[], str]) -> Finding:
    """Of a check that says what it found, or raises a sentence, which says also what to do."""
    try:
        return Finding(check=check, ok=True, found=look())
    except EffnetRayError as error:
        return Finding(check=check, ok=False, found=str(error))
