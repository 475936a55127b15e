"""`jobs/tune.py`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import tyro

from effnet_ray import storage
from effnet_ray.cli import flags as shared
from effnet_ray.cli.check import preflight_or_raise
from effnet_ray.cli.flags import LOCAL, TrainingFlags
from effnet_ray.cli.terminal import Terminal
from effnet_ray.cli.tune_view import SweepView
from effnet_ray.errors import RecipeError
from effnet_ray.recipe import Recipe
from effnet_ray.release.names import Release
from effnet_ray.sweep import report, results, space as spaces, sweep_record
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.publish import publish
from effnet_ray.sweep.results import Outcome
from effnet_ray.sweep.searchers import RANDOM
from effnet_ray.sweep.tune import tune
from effnet_ray.tracking.trackers import Trackers, parse_trackers
from effnet_ray.variants import VARIANTS

DOMAIN = re.compile(r"(log|uniform|int|choice):")
"""How a flag's value begins where it is to be searched, not given."""


@dataclass(frozen=True)
class Tune(TrainingFlags):
    """Find the best EfficientNet for the money: B0–B7, one ASHA for each, and a Pareto front.

    The other flags are what all trials share. A field of the recipe is searched where its flag
    is given a domain: --lr log:1e-4:1e-2, --drop-path uniform:0:0.3, --warmup-epochs int:0:3,
    --batchnorm choice:train,frozen. Trackers are told of the released trials, at the end.
    """

    variants: str = ",".join(VARIANTS)
    """Which EfficientNets, with commas between. With --local: b0,b1,b2."""
    trials: int = 16
    """How many recipes to try, over all variants. With --local: 8."""
    space: tuple[str, ...] = ()
    """JSON files of field and domain, or FIELD=DOMAIN. Default: lr, weight_decay,
    label_smoothing and drop_path, where their own flags are not given."""
    searcher: str = RANDOM
    """random, or tpe (Optuna's, pip install 'effnet-ray[tpe]')."""
    budget: float | None = None
    """Device-seconds that the sweep may spend."""
    objective: tyro.conf.OmitArgPrefixes[Objective] = field(default_factory=Objective)


SMALL = {**LOCAL, "image_size": 48, "batch_size": 64, "crop_scale": 0.85}
"""With --local: smaller than a single run's."""
SMALL_SPACE = {
    "lr": "log:4e-3:1.2e-2",
    "weight_decay": "log:1e-3:0.1",
    "label_smoothing": "uniform:0:0.1",
}
"""With --local: so few steps want high rates. B0s with 5e-3 and 8e-3 came to 0.986 and 0.981."""


def tune_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/tune.py`."""
    plain, domains, given = _split(argv)
    small = {"variants": "b0,b1,b2", "trials": 8} if "--local" in plain else {}
    flags = shared.parse(Tune, plain, SMALL, **small)
    if "variant" in given:
        raise RecipeError("a sweep has several variants: give --variants b0,b1,…, not --variant")
    people = Terminal()
    space = _space([*flags.space, *domains], given, flags)
    data = flags.where.data or shared.sample(people)
    preflight_or_raise(flags, data, people)
    connect = shared.connect_as(people, local=flags.local, verbose=flags.verbose, dashboard=True)
    given_workers = _says_workers(plain)
    found = _found(flags, data, space, people, connect, workers_given=given_workers)
    # Trials had as many workers as keep all devices busy; one alone fits wherever they did.
    placement = flags.placement if given_workers else replace(flags.placement, workers="1")
    with Trackers(
        parse_trackers(flags.tracker), people.say
    ) as trackers:  # a trial's events stay with it
        release, front = publish(
            found,
            flags.where.store,
            single_writer=flags.where.single_writer,
            scoring=shared.scoring(flags, data, people, connect, placement),
        )
        for each in dict.fromkeys([release, *front]):
            trackers.on_release(each)
    page = storage.join(found.uri, sweep_record.REPORT)
    storage.write_bytes(page, report.html(found))
    _summary(people, found, release, page)
    return {
        **found.as_json(),
        "release": release.reference,
        "release_uri": release.uri,
        "pareto_releases": [other.reference for other in front],
        "report": page,
    }


def _found(
    flags: Tune,
    data: str,
    space: dict[str, Any],
    people: Terminal,
    connect: shared.Connect,
    *,
    workers_given: bool,
) -> Outcome:
    """The sweep's outcome; people see how it comes about."""
    with SweepView(people) as view:
        return tune(
            shared.recipe(flags),
            flags.placement,
            data,
            variants=[name for name in flags.variants.split(",") if name],
            trials=flags.trials,
            runs=flags.where.runs,
            space=space,
            searcher=flags.searcher,
            budget=flags.budget,
            objective=flags.objective,
            workers=flags.placement.workers if workers_given else None,
            name=flags.name or None,
            mirror=flags.where.weights_mirror or None,
            on_progress=view.on_progress,
            connect=connect,
        )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], set[str]]:
    """The flags without those that give a domain, these as FIELD=DOMAIN, and fields given."""
    known = {known.name for known in fields(Recipe)}
    rest, domains, given = list[str](), list[str](), set[str]()
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag[:2] != "--" or name not in known:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if DOMAIN.match(value):
            domains.append(f"{name}={value}")
        else:
            given.add(name)
            rest += [flag, value] if value else [flag]
    return rest, domains, given


def _space(entries: Sequence[str], given: set[str], flags: Tune) -> dict[str, Any]:
    """The space asked for; a default one without what flags give."""
    if not entries:
        usual = spaces.FROM_SCRATCH if flags.recipe.weights == "none" else spaces.DEFAULT
        usual = SMALL_SPACE if flags.local else usual
        return {name: text for name, text in usual.items() if name not in given}
    described = spaces.collect(entries)
    twice = sorted(given & set(described))
    if twice:
        raise RecipeError(
            f"{twice[0]} is given by a flag and in the search space: give one of the two"
        )
    return described


def _says_workers(argv: Sequence[str]) -> bool:
    """Whether a person, or the cluster's files, decided each trial's workers."""
    return "--workers" in argv or shared.workers_from_environment()


def _summary(people: Terminal, found: Outcome, release: Release, page: str) -> None:
    best = found.best
    spent = sum(trial.device_seconds for trial in found.trials)
    states = ", ".join(f"{n} {state}" for state, n in results.counts(found.trials).items())
    front = ", ".join(
        f"{entry.trial.variant.upper()} {entry.trial.eval_top1:.2%} ({entry.cost.gmacs:.2g} GMACs)"
        for entry in found.pareto
    )
    top1 = f"{best.trial.eval_top1:.2%}"
    people.table(
        f"{release.reference}: {best.trial.variant.upper()}, eval top-1 {top1}",
        {
            "release": release.uri,
            "Pareto front": front,
            "trials": states,
            "spent": f"{spent:,.0f} device-seconds, "
            f"{results.seconds_saved(found.trials):,.0f} saved by stopping early",
            "report": page,
            "resume": "run the same command again: finished trials are not repeated",
        },
    )
