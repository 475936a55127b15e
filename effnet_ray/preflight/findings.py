"""The result of a check, for the terminal and for JSON."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from effnet_ray.errors import EffnetRayError


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    ok: bool
    found: str
    """What was found."""
    do: str = ""
    """What to do; empty if nothing is to be done, or if `found` includes it."""

    @property
    def message(self) -> str:
        """The finding in one line."""
        return f"{self.check}: {self.found}" + (f": {self.do}" if self.do else "")


def problem(check: str, wrong: str, right: str, do: str) -> Finding:
    """A finding that is ok if `wrong` is empty: then `right` is shown, else `wrong` and `do`."""
    return Finding(check=check, ok=not wrong, found=wrong or right, do=do if wrong else "")


def all_right(findings: Iterable[Finding]) -> bool:
    """Whether every finding is ok."""
    return all(finding.ok for finding in findings)


def run_check(check: str, run: Callable[[], str]) -> Finding:
    """The finding of `run`, which returns what it found, or raises an error with the remedy."""
    try:
        return Finding(check=check, ok=True, found=run())
    except EffnetRayError as error:
        return Finding(check=check, ok=False, found=str(error))
