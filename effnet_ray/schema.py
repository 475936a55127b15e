"""Validated dataclasses from JSON."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from effnet_ray.errors import RecipeError

Record = TypeVar("Record")


SIMILARITY = 0.75
"""difflib's ratio from which a name is suggested: at its default, 0.6, `nested` is like `seed`."""

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    NoneType: "null",
}
"""JSON's words for types, in the order of a sentence."""


def from_dict(
    kind: type[Record], values: Mapping[str, Any], synonyms: Mapping[str, str] | None = None
) -> Record:
    """Build a dataclass from its JSON form.

    Raises RecipeError for a wrong type, and for an unknown field: with the field of which it is
    one of the `synonyms`, or the most similar name.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(
            f"{kind.__name__} is {describe_types([type(values)])}: expected an object"
        )
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass type
    for name in values:
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=1, cutoff=SIMILARITY)
            if synonyms and name in synonyms:
                similar = [synonyms[name]]
            hint = (
                f": did you mean {similar[0]!r}?"
                if similar
                else f": expected one of {', '.join(names)}"
            )
            raise RecipeError(f"{kind.__name__} has no field {name!r}{hint}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        _check_type(name, value, hints[name])
    return kind(**{name: _list_as_tuple(value) for name, value in values.items()})


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise RecipeError if a field, or an item of its list or object, has another type."""
    if get_origin(hint) is tuple:
        _require_type(isinstance(value, list | tuple), name, value, list)
        assert isinstance(value, list | tuple)
        if get_args(hint)[-1] is Ellipsis:
            for item in {type(item): item for item in value}.values():  # one of each type
                _check_type(name, item, get_args(hint)[0])
    elif get_origin(hint) is dict:
        _require_type(isinstance(value, dict), name, value, dict)
    else:
        _check_plain_type(name, value, hint)


def _check_plain_type(name: str, value: object, hint: Any) -> None:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return
    allowed = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in allowed:
        raise RecipeError(f"{name} is {value!r}: expected {describe_types(kinds)}")


def _require_type(ok: bool, name: str, value: object, kind: type) -> None:
    """Raise RecipeError unless `ok`."""
    if not ok:
        raise RecipeError(f"{name} is {value!r}: expected {TYPE_NAMES[kind]}")


def describe_types(kinds: Collection[type]) -> str:
    """The types in JSON's words."""
    names = [name for kind, name in TYPE_NAMES.items() if kind in kinds]
    return " or ".join(names) or " or ".join(kind.__name__ for kind in kinds)


def require(ok: bool, field: str, value: object, expected: str) -> None:
    """Raise RecipeError, with the value and what was expected, unless `ok`."""
    if not ok:
        raise RecipeError(f"{field} is {value!r}: expected {expected}")
