"""What is written down is a frozen dataclass: checked on construction, and whole after JSON."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from effnet_ray.errors import RecipeError

Record = TypeVar("Record")


def from_dict(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Build a dataclass from its JSON form, refusing unknown names and saying the nearest one."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass type
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": known are {', '.join(known)}"
            raise RecipeError(f"{kind.__name__} has no field {name!r}{hint}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        _check_type(f"{kind.__name__}.{name}", value, hints[name])
    return kind(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_type(name: str, value: object, hint: Any) -> None:
    """Refuse a JSON value of another type than a plain field's; containers are left alone."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return
    allowed = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in allowed:
        names = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise RecipeError(f"{name} is {value!r}: expected {names}")


def require(ok: bool, field: str, value: object, expected: str) -> None:
    """Raises RecipeError, saying what was found and expected, where it is not ok."""
    if not ok:
        raise RecipeError(f"{field} is {value!r}: expected {expected}")
