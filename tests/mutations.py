"""Breaks the laws on purpose and shows that a test notices: `python tests/mutations.py`.

Copies the tracked files to a temporary folder, where each mutation of `support/mutations.py` is
made in turn and its one test is run. First all tests must pass without a mutation. Exits 1 if
a mutation survives, or if its test fails for another reason than the broken law.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from support.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600
"""For one test."""
CAUGHT, SURVIVED = "caught", "SURVIVED"
NOT_THE_LAW = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "Failed: Timeout")
"""A test that ends so met a mutation that does not run."""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations whose row has TEXT")
    parser.add_argument("--ray", action="store_true", help="also those whose test starts Ray")
    options = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if options.only in _row(mutation, "") and (options.ray or not mutation.ray)
    ]
    with tempfile.TemporaryDirectory(prefix="effnet-mutations-") as folder:
        copy = Path(folder, "copy")
        copy_tracked_files(copy)
        tests = list(dict.fromkeys(mutation.test for mutation in chosen))
        print(f"{len(chosen)} mutations; first their {len(tests)} tests without any", flush=True)
        whole = run_tests(copy, tests)
        verdicts = []
        print(_line("law", "verdict", "mutation", "test"), flush=True)
        for mutation in chosen:
            fine = whole.get(mutation.test) == SURVIVED
            verdicts.append(try_mutation(copy, mutation) if fine else "fails without it")
            print(_row(mutation, verdicts[-1]), flush=True)
    caught = verdicts.count(CAUGHT)
    print(f"{caught} of {len(verdicts)} caught")
    return 0 if verdicts and caught == len(verdicts) else 1


def _line(*columns: object) -> str:
    law, verdict, mutation, test = map(str, columns)
    return f"{law:>3}  {verdict:<8}  {mutation:<68}  {test}"


def _row(mutation: Mutation, verdict: str) -> str:
    return _line(mutation.law, verdict, mutation.breaks, mutation.test)


def copy_tracked_files(to: Path) -> None:
    """Copy what git tracks, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def try_mutation(copy: Path, mutation: Mutation) -> str:
    """What became of the mutation."""
    path = copy / "effnet_ray" / mutation.path
    whole = path.read_text()
    if whole.count(mutation.old) != 1:
        return "no place"
    path.write_text(whole.replace(mutation.old, mutation.new))
    try:
        return run_tests(copy, [mutation.test]).get(mutation.test, "did not run")
    finally:
        path.write_text(whole)


def run_tests(copy: Path, tests: Sequence[str]) -> dict[str, str]:
    """The verdict of each test that came to an end."""
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               f"--junitxml={report}", f"--timeout={TIMEOUT_S}"]  # fmt: skip
    # Without .pyc files no change is missed, however soon after another it was made.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copy, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if not report.exists():
        print(ended.stdout[-2000:], ended.stderr[-2000:], file=sys.stderr)
        return {}
    cases = ElementTree.parse(report).iter("testcase")
    return {
        f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}": verdict(case)
        for case in cases
    }


def verdict(case: ElementTree.Element) -> str:
    """Whether the test failed; errors outside of the test itself do not count."""
    failure = case.find("failure")
    if failure is not None:
        reason = failure.get("message", "")
        return "is no code" if reason.startswith(NOT_THE_LAW) else CAUGHT
    if case.find("error") is not None or case.find("skipped") is not None:
        return "did not run"
    return SURVIVED


if __name__ == "__main__":
    sys.exit(main())
