"""`jobs/finetune.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effnet_ray import storage
from effnet_ray.cli import flags as shared
from effnet_ray.cli.check import preflight_or_raise
from effnet_ray.cli.flags import TrainingFlags
from effnet_ray.cli.terminal import Terminal
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.names import Release
from effnet_ray.release.record import read_record
from effnet_ray.tracking.trackers import Trackers, parse_trackers
from effnet_ray.train.events import Event
from effnet_ray.train.finetune import finetune
from effnet_ray.train.run_record import Result

TESTED = {"test_top1": "test top-1", "test_map": "test mAP"}
"""What is told of the test split, where there is one."""


@dataclass(frozen=True)
class Finetune(TrainingFlags):
    """Fine-tune an EfficientNet and publish the best epoch as a release."""


def finetune_job(argv: Sequence[str]) -> dict[str, Any]:
    """`jobs/finetune.py`."""
    flags = shared.parse(Finetune, argv)
    where = flags.where
    with Terminal() as people:
        data = where.data or shared.sample(people)
        preflight_or_raise(flags, data, people)
        if flags.recipe.weights == "none":
            people.say("training from scratch: no pretrained weights (--weights none)")
        connect = shared.connect_as(people, local=flags.local, verbose=flags.verbose)
        with Trackers(parse_trackers(flags.tracker), people.say) as trackers:
            result = _finetuned(flags, data, people, trackers, connect)
            release = release_run(
                result,
                where.store,
                single_writer=where.single_writer,
                scoring=shared.scoring(flags, data, people, connect, flags.placement),
            )
            trackers.on_release(release)
        released = read_record(release.uri)
        test = {name: released[name] for name in TESTED if name in released}
        _summary(people, result, release, data, test, trackers.locations)
    return {
        **{name: value for name, value in asdict(result).items() if value is not None},
        "release": release.reference,
        "release_uri": release.uri,
        **test,
    }


def _finetuned(
    flags: Finetune, data: str, people: Terminal, trackers: Trackers, connect: shared.Connect
) -> Result:
    """How the run ended; people and trackers hear of it on the way."""

    def hear(event: Event) -> None:
        people.hear(event)
        trackers.on_event(event)

    result = finetune(
        shared.recipe(flags),
        flags.placement,
        data,
        runs=flags.where.runs,
        name=flags.name or None,
        mirror=flags.where.weights_mirror or None,
        on_event=hear,
        connect=connect,
    )
    if not people.trained:
        people.say(f"run {result.run!r} has finished already: reported, not redone")
    return result


def _summary(
    people: Terminal,
    result: Result,
    release: Release,
    data: str,
    test: Mapping[str, float],
    places: Mapping[str, str],
) -> None:
    tested = "".join(f", {TESTED[name]} {value:.2%}" for name, value in test.items())
    people.table(
        f"{release.reference}: {result.summary}{tested}",
        {
            "release": release.uri,
            "run": result.run_uri,
            "data": data,
            "trained": f"{result.epochs} epochs, {result.steps} steps, "
            f"{result.train_images_per_s:,.1f} images/s, {result.seconds:.0f} s",
            "resume": "run the same command again: a finished run is reported, not redone",
            "load": _load(release.uri),
            **places,
        },
    )


def _load(uri: str) -> str:
    """How timm loads a release; it reads folders only."""
    if not storage.is_remote(uri):
        return f'timm.create_model("local-dir:{uri}", pretrained=True)'
    return f'aws s3 cp --recursive {uri} m, then timm.create_model("local-dir:m", pretrained=True)'
