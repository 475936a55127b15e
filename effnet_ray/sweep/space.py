"""What a sweep samples: domains for some of a Recipe's fields, typed and checked. No Ray.

lr = log:1e-4:1e-2        uniform in the logarithm
drop_path = uniform:0:0.3
warmup_epochs = int:0:3   both ends included
batchnorm = choice:train,frozen
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from types import UnionType
from typing import Any, get_args, get_type_hints

from effnet_ray.errors import InputError, RecipeError
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict

Settings = dict[str, Any]
"""One draw: field → value, of every field of a space."""

DEFAULT = {
    "lr": "log:2e-4:5e-3",
    "weight_decay": "log:1e-3:0.2",
    "label_smoothing": "uniform:0:0.2",
    "drop_path": "uniform:0:0.3",
}
"""What decides most when fine-tuning with AdamW, in ranges that hold the Recipe's defaults. The
head's rate is ten times lr."""

FROM_SCRATCH = {**DEFAULT, "lr": "log:1e-3:1e-2"}
"""Without pretrained weights there is further to go."""

NOT_SEARCHABLE = {
    "variant": "list variants with --variants",
    "epochs": "--epochs is the length of every trial that is not stopped early",
    "seed": "--seed seeds the whole sweep",
    "task": "--task is what the images are, and every trial's",
    "limit": "trials on different images cannot be compared",
}
"""Fields that a space may not hold, and why."""

COMBINATIONS = 4096
"""Of choices, that are tried before a sweep begins."""

EXPECTED = "expected log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B,…"


@dataclass(frozen=True, slots=True)
class Domain:
    """The values of one field."""

    kind: str
    """log, uniform, int or choice."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def draw(self, random: Random) -> Any:
        """A value: all equally likely, for `log` all orders of magnitude."""
        match self.kind:
            case "choice":
                return self.choices[int(random.random() * len(self.choices))]
            case "int":
                return int(self.low) + int(random.random() * (self.high - self.low + 1))
            case "log":
                low, high = math.log(self.low), math.log(self.high)
                return math.exp(low + (high - low) * random.random())
        return self.low + (self.high - self.low) * random.random()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be good for all of them to be."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Space:
    """The domains of a sweep's fields."""

    domains: dict[str, Domain]

    def draw(self, random: Random) -> Settings:
        """One value for every field."""
        return {name: domain.draw(random) for name, domain in self.domains.items()}

    def check(self, base: Recipe, variants: Iterable[str]) -> None:
        """Raises RecipeError where a draw would be no recipe."""
        for name, domain in self.domains.items():
            for value in domain.ends:
                for variant in variants:
                    try:
                        replace(base, **{"variant": variant, name: value})
                    except InputError as error:
                        raise RecipeError(f"space of {name} for {variant}: {error}") from None
        choices = {n: domain.choices for n, domain in self.domains.items() if domain.choices}
        for combination in itertools.islice(itertools.product(*choices.values()), COMBINATIONS):
            chosen = dict(zip(choices, combination, strict=True))
            try:
                replace(base, variant=next(iter(variants)), **chosen)
            except InputError as error:
                told = ", ".join(f"{name} {value}" for name, value in chosen.items())
                raise RecipeError(f"space with {told}: {error}") from None


def parse(described: Mapping[str, Any]) -> Space:
    """A space from field → domain as written above, or a list of choices.

    Raises RecipeError for unknown fields, domains of another type than the field, empty ones, and
    a space without fields.
    """
    if not described:
        raise RecipeError(f"the search space is empty: {EXPECTED} for a recipe's field")
    return Space({name: _domain(name, text) for name, text in described.items()})


def describe(entries: Iterable[str]) -> dict[str, Any]:
    """Field → domain, from FIELD=DOMAIN entries and JSON files of them.

    Raises RecipeError for a file that cannot be read, and for a field that comes twice.
    """
    described: dict[str, Any] = {}
    for entry in entries:
        name, equals, domain = entry.partition("=")
        found = {name.replace("-", "_"): domain} if equals else _file(entry)
        twice = sorted(set(found) & set(described))
        if twice:
            raise RecipeError(f"the search space has {twice[0]} twice: give it once")
        described |= found
    return described


def _file(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--space {path!r} is neither FIELD=DOMAIN nor a JSON file ({error}): {EXPECTED}"
        ) from None
    if not isinstance(found, dict):
        raise RecipeError(f"--space {path}: expected a JSON object of field and domain")
    return found


def _domain(field: str, text: Any) -> Domain:
    """Raises RecipeError where it is none, or none for this field."""
    if field in NOT_SEARCHABLE:
        raise RecipeError(f"{field} cannot be in the search space: {NOT_SEARCHABLE[field]}")
    from_dict(Recipe, dict.fromkeys([field], _default(field)))  # says the nearest name
    kinds = _kinds(field)
    if isinstance(text, list):
        return _checked(field, Domain("choice", choices=tuple(text)), text)
    kind, _, rest = str(text).partition(":")
    if kind == "choice":
        values = [_value(word, kinds) for word in rest.split(",") if word]
        return _checked(field, Domain(kind, choices=tuple(values)), text)
    try:
        low, high = (float(end) for end in rest.split(":"))
    except ValueError:
        raise RecipeError(f"space of {field} is {text!r}: {EXPECTED}") from None
    return _checked(field, Domain(kind, low, high), text)


def _checked(field: str, domain: Domain, text: Any) -> Domain:
    kinds, kind = _kinds(field), domain.kind
    wrong = ""
    if kind not in ("log", "uniform", "int", "choice"):
        wrong = EXPECTED
    elif kind == "choice" and len(set(map(repr, domain.choices))) < max(1, len(domain.choices)):
        wrong = "expected one choice or more, each once"
    elif not all(type(choice) in kinds | ({int} if float in kinds else set())
                 for choice in domain.choices):  # fmt: skip
        wrong = "expected " + " or ".join(sorted(k.__name__ for k in kinds - {type(None)}))
    elif kind in ("log", "uniform") and float not in kinds:
        wrong = "it holds no fractions: expected int:LOW:HIGH or choice:A,B,…"
    elif kind == "int" and not {int, float} & kinds:
        wrong = "it holds no numbers: expected choice:A,B,…"
    elif kind != "choice" and not -math.inf < domain.low < domain.high < math.inf:
        wrong = "expected a low end below the high end"
    elif kind == "int" and domain.low % 1 + domain.high % 1:
        wrong = "expected whole numbers"
    elif kind == "log" and domain.low <= 0:
        wrong = "a logarithm's low end lies above 0"
    if wrong:
        raise RecipeError(f"space of {field} is {text!r}: {wrong}")
    return domain


def _kinds(field: str) -> set[type]:
    hint = get_type_hints(Recipe)[field]
    return set(get_args(hint) if isinstance(hint, UnionType) else (hint,))


def _default(field: str) -> Any:
    return {known.name: known.default for known in fields(Recipe)}.get(field)


def _value(word: str, kinds: set[type]) -> Any:
    """What a word on the command line means for a field of these types."""
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(word)
            except ValueError:
                continue
    return None if word == "none" and str not in kinds else word
