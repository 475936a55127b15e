"""The mutations of `tests/mutations.py` are what they claim to be. `make mutations` tries them."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from support.mutations import MUTATIONS, Mutation

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "effnet_ray"

each = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@each
def test_a_mutation_changes_one_place_and_leaves_code(mutation: Mutation) -> None:
    whole = (PACKAGE / mutation.path).read_text()
    assert whole.count(mutation.old) == 1
    ast.parse(whole.replace(mutation.old, mutation.new))


@each
def test_the_test_of_a_mutation_exists(mutation: Mutation) -> None:
    file, _, test = mutation.test.partition("::")
    assert test.partition("[")[0] in functions(file)


def test_laws_are_those_of_architecture_and_the_first_ones_are_all_broken() -> None:
    architecture = (TESTS.parent / "ARCHITECTURE.md").read_text()
    laws = {int(number) for number in re.findall(r"^\| (\d+) \|", architecture, re.MULTILINE)}
    broken = {mutation.law for mutation in MUTATIONS}
    assert laws == set(range(1, len(laws) + 1))
    assert set(range(1, 17)) <= broken <= laws
    assert len({mutation.breaks for mutation in MUTATIONS}) == len(MUTATIONS)
