"""`finetune`: train one model and publish it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effnet_ray.cli.check import preflight_or_raise
from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.flags import TrainingFlags, parse_training
from effnet_ray.cli.terminal import Terminal
from effnet_ray.publish.options import ReleaseOptions
from effnet_ray.train.metric_definitions import EVAL_IMAGES, TEST_SCORES

if TYPE_CHECKING:
    from effnet_ray.release.names import Release
    from effnet_ray.tracking.trackers import Trackers
    from effnet_ray.train.events import Event
    from effnet_ray.train.run_record import Result


@dataclass(frozen=True)
class Finetune(TrainingFlags):
    """Fine-tune an EfficientNet and publish the best epoch as a release."""


def finetune_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `finetune`."""
    flags = parse_training(Finetune, argv)
    from effnet_ray.publish.from_run import release_run
    from effnet_ray.release_format.record import read_record
    from effnet_ray.tracking.trackers import Trackers, parse_trackers

    with Terminal() as terminal:
        location = flags.location
        job_data = find_data(location.data, location.runs, terminal, name=flags.name)
        preflight_or_raise(flags, job_data, terminal)
        data = job_data.pack(terminal, flags.connector(terminal))
        if flags.recipe.weights == "none":
            terminal.print("training from scratch: no pretrained weights (--weights none)")
        with Trackers(parse_trackers(flags.tracker), terminal.print) as trackers:
            result = _train(flags, data, terminal, trackers)
            release = release_run(
                result,
                flags.location.model_store,
                scoring=flags.test_scoring(data, terminal, flags.placement),
                options=flags.releasing,
            )
            trackers.on_release(release)
        record = read_record(release.uri)
        _report_ignored_options(flags, release, record, terminal)
        test_metrics = {m.key: record[m.key] for m in TEST_SCORES if m.key in record}
        _print_summary(terminal, result, release, data, record, trackers.locations)
    return {
        **{name: value for name, value in asdict(result).items() if value is not None},
        "release": release.reference,
        "release_uri": release.uri,
        **test_metrics,
    }


def _train(flags: Finetune, data: str, terminal: Terminal, trackers: "Trackers") -> "Result":
    """The run's result. Its events go to the terminal and to the trackers."""
    from effnet_ray.train.finetune import finetune

    def on_event(event: "Event") -> None:
        terminal.on_event(event)
        trackers.on_event(event)

    result = finetune(
        flags.resolved_recipe(),
        flags.placement,
        data,
        runs=flags.location.runs,
        name=flags.name or None,
        mirror=flags.location.weights_mirror or None,
        on_event=on_event,
        connect=flags.connector(terminal),
    )
    if not terminal.training_started:
        terminal.print(f"run {result.run!r} is already finished: nothing to train")
    return result


def _print_summary(
    terminal: Terminal,
    result: "Result",
    release: "Release",
    data: str,
    record: Mapping[str, Any],
    tracker_locations: Mapping[str, str],
) -> None:
    """`record`: the release's."""
    test = "".join(
        f", {metric.describe(record[metric.key], record['test_images'])}"
        for metric in TEST_SCORES
        if metric.key in record
    )
    score = result.summary(record.get(EVAL_IMAGES, 0))
    terminal.print_summary(
        f"{release.reference}: {score}{test}",
        {
            **_calibration(release.uri),
            "release": release.uri,
            "run": result.run_uri,
            "data": data,
            "trained": f"{result.epochs} epochs, {result.steps} steps, "
            f"{result.train_images_per_s:,.1f} images/s, {result.seconds:.0f} s",
            "resume": "run the same command again; a finished run is not trained again",
            "load": _load_code(release.uri),
            **tracker_locations,
        },
    )


def _report_ignored_options(
    flags: Finetune, release: "Release", record: Mapping[str, Any], terminal: Terminal
) -> None:
    """Print a note if the run was released before, with other options."""
    from effnet_ray.publish.from_run import OPTIONS

    used = record.get(OPTIONS)
    if used != asdict(flags.releasing) and (used or flags.releasing != ReleaseOptions()):
        terminal.print(
            f"{release.reference} was released before, with other --false-alarms or "
            "--min-precision: it stays as it is"
        )


def _calibration(uri: str) -> dict[str, str]:
    """What calibrating the release changed; empty if nothing was fitted."""
    from effnet_ray.release_format.layout import METRICS
    from effnet_ray.release_format.record import read_file

    fitted = json.loads(read_file(uri, METRICS)).get("calibration")
    if not fitted:
        return {}
    before, after = fitted["ece_before"], fitted["ece_after"]
    return {"calibrated": f"error of probabilities {after:.2%}, before {before:.2%}"}


def _load_code(uri: str) -> str:
    """Code that loads the release with timm, which reads local folders only."""
    from effnet_ray import storage

    if not storage.is_remote(uri):
        return f'timm.create_model("local-dir:{uri}", pretrained=True)'
    return f'aws s3 cp --recursive {uri} m, then timm.create_model("local-dir:m", pretrained=True)'
