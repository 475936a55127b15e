"""`tune`: search for the best model over EfficientNet variants and recipes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from effnet_ray.cli.check import preflight_or_raise
from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.flags import (
    LOCAL,
    TrainingFlags,
    parse_training,
    workers_in_environment,
)
from effnet_ray.cli.terminal import Terminal
from effnet_ray.cli.tune_view import SweepView
from effnet_ray.errors import RecipeError
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.sweep.objective import Objective
from effnet_ray.train.metric_definitions import EVAL_TOP1
from effnet_ray.variants import DEFAULT_VARIANTS, FAMILIES

if TYPE_CHECKING:
    from effnet_ray.release.names import Release
    from effnet_ray.sweep.results import Outcome

DOMAIN = re.compile(r"(log|uniform|int|choice):")
"""How a flag's value begins if it is a domain to search."""

SMALL = {**LOCAL, "image_size": 48, "batch_size": 64, "crop_scale": 0.85}
"""Recipe defaults with `--local`: smaller than for a single run."""
SMALL_SPACE = {
    "lr": "log:4e-3:1.2e-2",
    "weight_decay": "log:1e-3:0.1",
    "label_smoothing": "uniform:0:0.1",
}
"""Search space with `--local`: few steps need a high learning rate. B0 with 5e-3 and 8e-3 reached
0.986 and 0.981."""


@dataclass(frozen=True)
class Tune(TrainingFlags):
    """Search variants and settings with ASHA; report the Pareto front of accuracy and cost.

    All trials share the other flags. To search a recipe field, give its flag a domain:
    --lr log:1e-4:1e-2, --drop-path uniform:0:0.3, --warmup-epochs int:0:3,
    --batchnorm choice:train,frozen. Only released trials are logged to trackers, after the sweep.
    """

    variants: str = ",".join(DEFAULT_VARIANTS)
    """EfficientNet variants to try, separated by commas. With --local: b0,b1,b2."""
    trials: int = 16
    """Trials over all variants. With --local: 8."""
    space: tuple[str, ...] = ()
    """Search space: FIELD=DOMAIN, or JSON files of fields and domains. Default: lr, weight_decay,
    label_smoothing and drop_path, minus the fields that you set by flag."""
    searcher: str = field(default="random", metadata={"choices": ("random", "tpe")})
    """Search algorithm: random, or tpe (Optuna's; pip install 'effnet-ray[tpe]')."""
    budget: float | None = None
    """Device-seconds that the sweep may use. Default: no limit."""
    objective: Annotated[tyro.conf.OmitArgPrefixes[Objective], tyro.conf.arg(name="Objective")] = (
        field(default_factory=Objective)
    )


def tune_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `tune`."""
    argv, domains, explicit = _split_domains(argv)
    argv = _with_base_variant(argv)
    small = {"variants": "b0,b1,b2", "trials": 8} if "--local" in argv else {}
    flags = parse_training(Tune, argv, SMALL, **small)
    if "variant" in explicit:
        raise RecipeError(
            "a sweep takes several variants: pass --variants b0,b1,… instead of --variant"
        )
    space = _search_space([*flags.space, *domains], explicit, flags)
    terminal = Terminal()
    location = flags.location
    job_data = find_data(location.data, location.runs, terminal, name=flags.name)
    preflight_or_raise(flags, job_data, terminal)
    data = job_data.pack(terminal, flags.connector(terminal, dashboard=True))
    explicit_workers = "--workers" in argv or workers_in_environment()
    outcome = _tune(
        flags, data, space, terminal, fixed=explicit, explicit_workers=explicit_workers
    )
    # Trials used all devices; one worker scores the test split, and fits wherever they did.
    placement = flags.placement if explicit_workers else replace(flags.placement, workers="1")
    release, front = _publish(flags, outcome, data, terminal, placement)
    report = _write_report(outcome)
    _print_summary(terminal, outcome, release, report)
    return {
        **outcome.as_json(),
        "release": release.reference,
        "release_uri": release.uri,
        "pareto_releases": [other.reference for other in front],
        "report": report,
    }


def _split_domains(argv: Sequence[str]) -> tuple[list[str], list[str], set[str]]:
    """Split off recipe flags whose value is a domain.

    Returns the other flags, the domains as FIELD=DOMAIN, and the recipe fields with a value.
    """
    names = {recipe_field.name for recipe_field in fields(Recipe)}
    rest, domains, explicit = list[str](), list[str](), set[str]()
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag[:2] != "--" or name not in names:
            rest.append(word)
            continue
        if not equals and words and not words[0].startswith("--"):  # a switch has no value
            value = words.pop(0)
        if DOMAIN.match(value):
            domains.append(f"{name}={value}")
        else:
            explicit.add(name)
            rest += [flag, value] if value else [flag]
    return rest, domains, explicit


def _with_base_variant(argv: list[str]) -> list[str]:
    """`argv`, with the first of `--variants` as `--variant` if the default lacks the weights.

    Otherwise the recipe that trials share would be refused before it gets their variants.
    """
    weights, variants = _value(argv, "--weights"), _value(argv, "--variants")
    if not variants or weights not in FAMILIES or weights in Recipe().variant_spec.families:
        return argv
    return [*argv, "--variant", variants.split(",")[0]]


def _value(argv: Sequence[str], flag: str) -> str:
    """The last value of a flag; empty if it is absent."""
    found = ""
    for word, following in pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def _search_space(
    entries: Sequence[str], explicit: set[str], flags: Tune
) -> dict[str, Any] | None:
    """The search space of the flags. None: the default one, minus the fields set by flag."""
    from effnet_ray.sweep import space as spaces

    if not entries:
        small = {name: domain for name, domain in SMALL_SPACE.items() if name not in explicit}
        return small if flags.local else None
    space = spaces.collect(entries)
    twice = sorted(explicit & set(space))
    if twice:
        raise RecipeError(f"{twice[0]} is set by a flag and searched: remove one of the two")
    return space


def _tune(
    flags: Tune,
    data: str,
    space: dict[str, Any] | None,
    terminal: Terminal,
    *,
    fixed: set[str],
    explicit_workers: bool,
) -> "Outcome":
    """The outcome of the sweep; the terminal shows its progress."""
    from effnet_ray.sweep.tune import tune

    with SweepView(terminal) as view:
        return tune(
            flags.resolved_recipe(),
            flags.placement,
            data,
            variants=[name for name in flags.variants.split(",") if name],
            trials=flags.trials,
            runs=flags.location.runs,
            space=space,
            fixed=fixed,
            searcher=flags.searcher,
            budget=flags.budget,
            objective=flags.objective,
            workers=flags.placement.workers if explicit_workers else None,
            name=flags.name or None,
            mirror=flags.location.weights_mirror or None,
            on_progress=view.on_progress,
            connect=flags.connector(terminal, dashboard=True),
        )


def _publish(
    flags: Tune,
    outcome: "Outcome",
    data: str,
    terminal: Terminal,
    placement: Placement,
) -> "tuple[Release, list[Release]]":
    """Publish the best trial and the Pareto front, and log them to the trackers."""
    from effnet_ray.sweep.releases import release_models
    from effnet_ray.tracking.trackers import Trackers, parse_trackers

    with Trackers(parse_trackers(flags.tracker), terminal.print) as trackers:
        release, front = release_models(
            outcome,
            flags.location.model_store,
            scoring=flags.test_scoring(data, terminal, placement),
            options=flags.releasing,
        )
        for published in dict.fromkeys([release, *front]):
            trackers.on_release(published)
    return release, front


def _write_report(outcome: "Outcome") -> str:
    """Write the sweep's report and return its URI."""
    from effnet_ray import storage
    from effnet_ray.sweep import report, sweep_record

    uri = storage.join(outcome.uri, sweep_record.REPORT)
    storage.write_bytes(uri, report.html(outcome))
    return uri


def _print_summary(
    terminal: Terminal, outcome: "Outcome", release: "Release", report: str
) -> None:
    from effnet_ray.sweep import results

    best = outcome.best.trial
    spent = sum(trial.device_seconds for trial in outcome.trials)
    states = ", ".join(f"{n} {state}" for state, n in results.counts(outcome.trials).items())
    front = ", ".join(
        f"{row.trial.variant.upper()} {row.trial.eval_top1:.2%} ({row.cost.gmacs:.2g} GMACs)"
        for row in outcome.pareto
    )
    terminal.print_summary(
        f"{release.reference}: {best.variant.upper()}, "
        f"{EVAL_TOP1.describe(best.eval_top1, outcome.eval_images)}",
        {
            "release": release.uri,
            "Pareto front": front,
            "trials": states,
            "used": f"{spent:,.0f} device-seconds; early stopping saved "
            f"{results.seconds_saved(outcome.trials):,.0f}",
            "report": report,
            "resume": "run the same command again; finished trials are not repeated",
        },
    )
