"""Parses flags into dataclasses with tyro, and words their help."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

Flags = TypeVar("Flags")

METAVARS = {int: "INT", float: "FLOAT", str: "STR", bool: "{True,False}"}
"""Names of the types of optional values in help."""
LONG_FLOAT = re.compile(r"\d+\.\d{6,}")
"""A float with more digits than anyone writes, such as 4/3; help shows two decimals of it."""


def parse(
    flags: type[Flags],
    argv: Sequence[str],
    default: Flags | None = None,
    description: str | None = None,
) -> Flags:
    """Parse `argv`; `default` provides the values of absent flags.

    `description` introduces the help, by default the docstring of `flags`.

    Prints help or an error to the terminal and exits where argparse would.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    parsed: Flags = tyro.cli(
        flags, args=argv, registry=tyro_registry(), description=description, **options
    )
    return parsed


def tyro_registry() -> ConstructorRegistry:
    """tyro's registry with our rule for dataclasses of flags."""
    registry = ConstructorRegistry()
    registry.struct_rule(_dataclass_rule)
    return registry


def _dataclass_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe a dataclass of flags, with help from the docstrings below its fields.

    tyro's own rule keeps the line breaks of these docstrings, names the type of optional values
    `{None}|INT`, and repeats defaults that the text already explains.
    """
    ours = info.type.__module__.startswith("effnet_ray.")
    if not (ours and dataclasses.is_dataclass(info.type)):
        return None  # tyro wraps unions in a dataclass of its own
    docs = _field_docs(info.type)
    hints = get_type_hints(info.type, include_extras=True)
    fields = []
    for field in dataclasses.fields(info.type):
        has_value = isinstance(info.default, info.type)
        default = getattr(info.default, field.name) if has_value else _default(field)
        hint = hints[field.name]
        text = docs.get(field.name, "")
        if text:
            hint = _with_help(hint, text, field.metadata.get("choices", ()))
        fields.append(StructFieldSpec(field.name, hint, default, helptext=text or None))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


def _field_docs(flags: type) -> dict[str, str]:
    """The docstring of each field in one line, inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(flags.__mro__):
        if dataclasses.is_dataclass(base):
            for parameter in docstring_parser.parse_from_object(base).params:
                docs[parameter.arg_name] = " ".join((parameter.description or "").split())
    return docs


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


def _with_help(hint: Any, text: str, choices: Sequence[str]) -> Any:
    """The type with its help, and with the name of its values: choices, or the type's."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    types = [kind for kind in get_args(base) if kind is not NoneType]
    optional = NoneType in get_args(base) and len(types) == 1
    metavar = METAVARS.get(types[0]) if optional else None
    if optional and types == [bool]:
        hint = Annotated[hint, SWITCH]
    if choices:
        metavar = f"{{{','.join(choices)}}}"
    return Annotated[
        hint,
        tyro.conf.arg(metavar=metavar, help_behavior_hint=_default_hint(text)),
    ]


def _parse_switch(words: list[str]) -> bool | None:
    """The value of an optional boolean. Raises ValueError, which tyro shows, for another word."""
    values = {"True": True, "False": False, "None": None}
    if words[0] not in values:
        raise ValueError(f"{words[0]!r}: expected True or False")
    return values[words[0]]


SWITCH = PrimitiveConstructorSpec[bool | None](
    nargs=1,
    metavar="{True,False}",
    instance_from_str=_parse_switch,
    is_instance=lambda value: value is None or isinstance(value, bool),
    str_from_instance=lambda value: [str(value)],
)
"""How tyro parses `bool | None`: its own error for a wrong word offers None too."""


def _default_hint(text: str) -> Callable[[str], str]:
    """Words the default of a flag; nothing if there is none, or if the text explains it."""

    def hint(default: str) -> str:
        default = LONG_FLOAT.sub(lambda match: f"{float(match[0]):.2f}", default.strip("'"))
        no_value = default in ("", "None")
        explained = "default:" in text.lower() and (default == "False" or default in text)
        return "" if no_value or explained else f"(default: {default})"

    return hint
