"""Validated dataclasses from JSON."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from effnet_ray.errors import RecipeError

Record = TypeVar("Record")


def from_dict(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Build a dataclass from its JSON form.

    Raises RecipeError for an unknown field, with the most similar name, and for a wrong type.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass type
    for name in values:
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=1)
            hint = (
                f": did you mean {similar[0]!r}?"
                if similar
                else f": expected one of {', '.join(names)}"
            )
            raise RecipeError(f"{kind.__name__} has no field {name!r}{hint}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        _check_type(f"{kind.__name__}.{name}", value, hints[name])
    return kind(**{name: _list_as_tuple(value) for name, value in values.items()})


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise RecipeError if a plain field has a value of another type; skip containers."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return
    allowed = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in allowed:
        expected = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise RecipeError(f"{name} is {value!r}: expected {expected}")


def require(ok: bool, field: str, value: object, expected: str) -> None:
    """Raise RecipeError, with the value and what was expected, unless `ok`."""
    if not ok:
        raise RecipeError(f"{field} is {value!r}: expected {expected}")
