"""The exception tree: exit codes, and that it crosses processes."""

import inspect
import pickle

import pytest

from effnet_ray import errors
from effnet_ray.errors import EffnetRayError, InputError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_pickles_with_its_message(kind: type[EffnetRayError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("found this, expected that")))
    assert type(copy) is kind
    assert str(copy) == "found this, expected that"


@pytest.mark.parametrize("kind", TREE)
def test_a_persons_mistake_exits_2_and_all_else_1(kind: type[EffnetRayError]) -> None:
    assert issubclass(kind, EffnetRayError)
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_drawn_in_the_modules_tree(kind: type[EffnetRayError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
