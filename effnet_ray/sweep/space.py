"""The search space: typed, validated domains for some of a Recipe's fields. No Ray.

lr = log:1e-4:1e-2        uniform in the logarithm
drop_path = uniform:0:0.3
warmup_epochs = int:0:3   both ends included
batchnorm = choice:train,frozen
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from types import UnionType
from typing import Any, get_args, get_type_hints

from effnet_ray import safe_json
from effnet_ray.errors import InputError, RecipeError
from effnet_ray.recipe import Recipe
from effnet_ray.recipe_rules import SYNONYMS
from effnet_ray.schema import describe_types, from_dict

Settings = dict[str, Any]
"""One sample of a space: field → value."""

LR_RANGE, LR_RANGE_FROM_SCRATCH, WEIGHT_DECAY_RANGE = (0.2, 5.0), (1.0, 10.0), (0.02, 4.0)
"""Ends of the default ranges, as multiples of the recipe's own value. Training from scratch takes
higher rates."""

NOT_SEARCHABLE = {
    "variant": "list variants with --variants",
    "epochs": "--epochs is the length of every trial that is not stopped early",
    "seed": "--seed seeds the whole sweep",
    "task": "the data set determines it",
    "limit": "trials on different images cannot be compared",
}
"""Fields that cannot be searched → what to do instead."""

COMBINATIONS = 4096
"""Most combinations of choices and bounds that are validated before a sweep starts. Chosen, not
measured."""

EXPECTED = "expected log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B,…"


@dataclass(frozen=True, slots=True)
class Domain:
    """The domain of one field."""

    kind: str
    """log, uniform, int or choice."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def draw(self, random: Random) -> Any:
        """Sample a value, uniformly or, for `log`, uniformly in the logarithm."""
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
    def bounds(self) -> tuple[Any, ...]:
        """The extreme values: if these are valid, every value is."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Space:
    """The domains of a sweep, by field."""

    domains: dict[str, Domain]

    def draw(self, random: Random) -> Settings:
        """Sample one value for every field."""
        return {name: domain.draw(random) for name, domain in self.domains.items()}

    def check(self, base: Recipe, variants: Iterable[str]) -> None:
        """Raises RecipeError if some sample would not be a valid recipe."""
        for name, domain in self.domains.items():
            for value in domain.bounds:
                for variant in variants:
                    try:
                        replace(base, **{"variant": variant, name: value})
                    except InputError as error:
                        raise RecipeError(f"space of {name} for {variant}: {error}") from None
        extremes = itertools.product(*(domain.bounds for domain in self.domains.values()))
        for combination in itertools.islice(extremes, COMBINATIONS):
            chosen = dict(zip(self.domains, combination, strict=True))
            try:
                replace(base, variant=next(iter(variants)), **chosen)
            except InputError as error:
                values = ", ".join(f"{name} {value}" for name, value in chosen.items())
                raise RecipeError(f"space with {values}: {error}") from None


def default(recipe: Recipe, fixed: Collection[str] = ()) -> dict[str, Any]:
    """The most influential settings of fine-tuning, without the fields in `fixed`.

    The ranges of lr and weight_decay contain the recipe's own, which may be its default for the
    data set; a weight decay of 0 is not searched.
    """
    own = recipe.with_defaults
    lr_range = LR_RANGE_FROM_SCRATCH if own.weights == "none" else LR_RANGE
    domains = {
        "lr": _multiples(own.lr, lr_range),
        "weight_decay": _multiples(own.weight_decay, WEIGHT_DECAY_RANGE),
        "label_smoothing": "uniform:0:0.2",
        "drop_path": "uniform:0:0.3",
    }
    if not own.weight_decay:
        del domains["weight_decay"]
    return {name: domain for name, domain in domains.items() if name not in fixed}


def _multiples(value: float | None, ends: tuple[float, float]) -> str:
    assert value is not None  # a recipe with defaults has one
    return f"log:{value * ends[0]:.2g}:{value * ends[1]:.2g}"


def parse(domains: Mapping[str, Any]) -> Space:
    """Parse field → domain, in the notation above or as a list of choices.

    Raises RecipeError for unknown fields, domains that do not fit the field's type, empty domains,
    and an empty space.
    """
    if not domains:
        raise RecipeError(f"the search space is empty: {EXPECTED} for at least one recipe field")
    return Space({name: _domain(name, text) for name, text in domains.items()})


def collect(entries: Iterable[str]) -> dict[str, Any]:
    """Merge FIELD=DOMAIN entries and JSON files of them into field → domain.

    Raises RecipeError for a file that cannot be read, and for a field given twice.
    """
    domains: dict[str, Any] = {}
    for entry in entries:
        name, equals, domain = entry.partition("=")
        new = {name.replace("-", "_"): domain} if equals else _read_file(entry)
        repeated = sorted(set(new) & set(domains))
        if repeated:
            raise RecipeError(
                f"the search space contains {repeated[0]} twice: remove one of the two"
            )
        domains |= new
    return domains


def _read_file(path: str) -> dict[str, Any]:
    if path.replace("-", "_") in {field.name for field in fields(Recipe)}:
        raise RecipeError(
            f"--space {path} has no domain: write {path}=DOMAIN, such as lr=log:1e-4:1e-2, or "
            "pass the path of a JSON file"
        )
    try:
        content = safe_json.parse(Path(path).expanduser().read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--space {path!r} is neither FIELD=DOMAIN nor a JSON file ({error}): {EXPECTED}"
        ) from None
    if not isinstance(content, dict):
        raise RecipeError(f"--space {path}: expected a JSON object of field → domain")
    return content


def _domain(field: str, text: Any) -> Domain:
    """Raises RecipeError if the text is not a domain, or does not fit the field."""
    if field in NOT_SEARCHABLE:
        raise RecipeError(f"{field} cannot be in the search space: {NOT_SEARCHABLE[field]}")
    from_dict(
        Recipe, dict.fromkeys([field], _default(field)), SYNONYMS
    )  # suggests the nearest name
    types = _types(field)
    if isinstance(text, list):
        return _validated(field, Domain("choice", choices=tuple(text)), text)
    kind, _, rest = str(text).partition(":")
    if kind == "choice":
        values = [_value(word, types) for word in rest.split(",") if word]
        return _validated(field, Domain(kind, choices=tuple(values)), text)
    try:
        low, high = (float(end) for end in rest.split(":"))
    except ValueError:
        raise RecipeError(f"space of {field} is {text!r}: {EXPECTED}") from None
    return _validated(field, Domain(kind, low, high), text)


def _validated(field: str, domain: Domain, text: Any) -> Domain:
    types, kind = _types(field), domain.kind
    problem = ""
    if kind not in ("log", "uniform", "int", "choice"):
        problem = EXPECTED
    elif kind == "choice" and len(set(map(repr, domain.choices))) < max(1, len(domain.choices)):
        problem = "expected one or more choices, each at most once"
    elif not all(
        type(choice) in types | ({int} if float in types else set()) for choice in domain.choices
    ):
        problem = f"expected {describe_types(types)}"
    elif kind in ("log", "uniform") and float not in types:
        problem = "the field takes whole numbers: expected int:LOW:HIGH or choice:A,B,…"
    elif kind == "int" and not {int, float} & types:
        problem = "the field is not a number: expected choice:A,B,…"
    elif kind != "choice" and not -math.inf < domain.low < domain.high < math.inf:
        problem = "expected LOW below HIGH"
    elif kind == "int" and domain.low % 1 + domain.high % 1:
        problem = "expected whole numbers"
    elif kind == "log" and domain.low <= 0:
        problem = "expected LOW above 0"
    if problem:
        raise RecipeError(f"space of {field} is {text!r}: {problem}")
    return domain


def _types(field: str) -> set[type]:
    hint = get_type_hints(Recipe)[field]
    return set(get_args(hint) if isinstance(hint, UnionType) else (hint,))


def _default(field: str) -> Any:
    return {f.name: f.default for f in fields(Recipe)}.get(field)


def _value(word: str, types: set[type]) -> Any:
    """Parse a word of the command line as a value of one of these types."""
    for kind in (int, float):
        if kind in types:
            try:
                return kind(word)
            except ValueError:
                continue
    return None if word == "none" and str not in types else word
