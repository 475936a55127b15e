"""Parses untrusted YAML: no duplicate fields, no circular aliases, a limited number of values."""

from collections.abc import Iterator
from typing import Any

import yaml

MAX_CHARS = 1_000_000
"""The files of a large cluster have some tens of thousands."""
MAX_VALUES = 100_000
"""Values of a file with every alias written out: ten lines of aliases can be billions."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Rejects duplicate fields, of which YAML would silently keep the last, and circles."""

    def construct_document(self, node: yaml.Node) -> Any:
        _count_values(node, {})  # before any `<<` is merged, whose fields may be overridden
        return super().construct_document(node)


def parse(text: str) -> list[Any]:
    """The documents of a YAML text. Raises ValueError with the reason."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"it has too many characters: at most {MAX_CHARS:,} are read")
    try:
        return list(yaml.load_all(text, _Loader))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML's errors; and what its constructors raise for values that are not of their tag
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _refuse_duplicates(node: yaml.Node) -> None:
    names = set[str]()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        name = str(key.value)
        if name in names and key.tag != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate field {name!r}", node.start_mark
            )
        names.add(name)


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """The values below a node, aliases written out.

    Raises ConstructorError for too many, and for duplicate fields.

    `counts`: of nodes that were counted; 0 for those that are being counted.
    """
    if id(node) not in counts:
        _refuse_duplicates(node)
        counts[id(node)] = 0
        counts[id(node)] = 1 + sum(_count_values(inner, counts) for inner in _inner_nodes(node))
    count = counts[id(node)]
    if not count or count > MAX_VALUES:
        what = f"more than {MAX_VALUES:,} values" if count else "a value that contains itself"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
    return count


def _inner_nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
