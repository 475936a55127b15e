"""`evaluate`: measure a release on a split of a packed data set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from rich.table import Table

from effnet_ray.cli.compare import compare
from effnet_ray.cli.data_set import find_data
from effnet_ray.cli.flags import default_data, default_runs
from effnet_ray.cli.output_files import output_uri, refuse_filled_in
from effnet_ray.cli.parsing import parse
from effnet_ray.cli.release_flags import ReleaseFlags, defaults
from effnet_ray.cli.terminal import MAX_NAMED_IMAGES, Terminal
from effnet_ray.errors import RecipeError

if TYPE_CHECKING:
    from effnet_ray.inference.evaluate import Evaluation
    from effnet_ray.inference.groups import GroupScores
    from effnet_ray.inference.multiclass import MulticlassMetrics
    from effnet_ray.inference.multilabel import MultilabelMetrics
    from effnet_ray.inference.paired_test import PairedTest
    from effnet_ray.inference.unknown_pictures import UnknownPictures
    from effnet_ray.train.class_metrics import ClassMetrics

    Metrics = MulticlassMetrics | MultilabelMetrics

MAX_CLASS_ROWS = 10
"""Classes in the table; the report has all."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ReleaseFlags):
    """Evaluate a release on every image of a split, and list its mistakes."""

    data: str = ""
    """URI of the data set, or of images that `pack` takes as --source. Default: EFFNET_DATA, else
    the built-in sample data."""
    runs: str = ""
    """Where images are packed, below packed/, as by `finetune`. Default: EFFNET_RUNS, else
    ~/effnet-ray/runs."""
    split: Literal["eval", "test", "train"] = "eval"
    """The split to evaluate on."""
    report: str = ""
    """FILE.html, a path or an s3:// URI: write a self-contained report there with curves, the
    confusion matrix, calibration and mistakes."""
    corrections: str = ""
    """FILE.csv, a path or an s3:// URI: write mistakes, which may be label errors, duplicates with
    different labels and unreadable images there, to decide and to pass to `pack --corrections`."""
    against: str = ""
    """Another release: compare both on the same images (a paired test of top-1)."""
    group_column: str = ""
    """Column of the source, such as camera, that `pack` kept (--keep-columns, --group-column):
    report top-1 of each of its groups, the worst first."""
    unknown_source: str = ""
    """URI of pictures of nothing that the release knows, as `predict` takes them: report how well
    it tells them from the images of the split."""
    examples: int = 24
    """Maximum number of mistakes (and of suspected label errors) shown in the report."""


@dataclass(frozen=True)
class Findings:
    """All that `evaluate` measures."""

    evaluation: "Evaluation"
    groups: "GroupScores | None"
    paired: "PairedTest | None"
    unknown: "UnknownPictures | None"


def evaluate_job(argv: Sequence[str]) -> dict[str, Any]:
    """Run `evaluate`."""
    flags = parse(Evaluate, argv, defaults(Evaluate, data=default_data(), runs=default_runs()))
    if flags.examples < 0:
        raise RecipeError(f"examples is {flags.examples}: expected 0 or more")
    report = output_uri(flags.report, "report", ".html")
    corrections = output_uri(flags.corrections, "corrections", ".csv")
    refuse_filled_in(corrections, "decision")
    with Terminal() as terminal:
        found = _evaluate(flags, terminal)
        evaluation, groups, paired = found.evaluation, found.groups, found.paired
        if report:
            _write_report(found, report)
        proposed = _write_corrections(evaluation, corrections, terminal) if corrections else {}
        against = {f"against {flags.against}": str(paired)} if paired else {}
        worst = {f"worst {groups.column}": str(groups.worst)} if groups else {}
        more = {"report": report, **worst, **against}
        _print_evaluation(terminal, evaluation, found.unknown, more)
    metrics = evaluation.metrics
    return {
        "model": evaluation.release.reference,
        "split": evaluation.split,
        **{metric.key: value for metric, value in metrics.scores.items()},
        **_intervals(metrics),
        "images": metrics.processed,
        "quarantined": len(metrics.unreadable),
        "f1": metrics.macro_f1,
        "ece": metrics.ece,
        "ece_uncalibrated": metrics.plain_ece,
        "suspected_labels": metrics.label_error_count,
        **_multilabel_json(metrics),
        **_unknown_json(evaluation, found.unknown),
        **({"against": {"model": flags.against, **asdict(paired)}} if paired else {}),
        **({"groups": groups.as_json()} if groups else {}),
        **({"report": report} if report else {}),
        **proposed,
    }


def _intervals(metrics: "Metrics") -> dict[str, list[float]]:
    """The 95 % confidence intervals of shares of images: [lowest, highest]."""
    intervals = {
        f"{metric.key}_interval": metric.interval(value, metrics.images)
        for metric, value in metrics.scores.items()
    }
    return {name: list(interval) for name, interval in intervals.items() if interval}


def _multilabel_json(metrics: "Metrics") -> dict[str, float]:
    """The metrics that only several labels per image have."""
    from effnet_ray.inference.multilabel import MultilabelMetrics

    if isinstance(metrics, MultilabelMetrics):
        return {"micro_f1": metrics.micro_f1}
    return {}


def _write_corrections(
    evaluation: "Evaluation", uri: str, terminal: Terminal
) -> dict[str, str | int]:
    from effnet_ray.inference.corrections import write_corrections

    count = write_corrections(evaluation, uri)
    terminal.print(f"wrote {count:,} proposed corrections to {uri}: decide, then pack with them")
    return {"corrections": uri, "proposed": count}


def _unknown_json(
    evaluation: "Evaluation", unknown: "UnknownPictures | None"
) -> dict[str, float | int]:
    """How unknown pictures are told; empty if the release has no references."""
    share = evaluation.share_called_unknown
    figures: dict[str, float | int] = {} if share is None else {"called_unknown": share}
    if unknown:
        figures |= {
            "unknown_auroc": unknown.auroc,
            "unknown_flagged": unknown.flagged,
            "unknown_images": len(unknown.scores),
        }
    return figures


def _evaluate(flags: Evaluate, terminal: Terminal) -> Findings:
    """Measure what the flags ask for; the terminal shows the progress."""
    from effnet_ray.inference.corrections import MAX_MISTAKES
    from effnet_ray.inference.evaluate import evaluate
    from effnet_ray.inference.groups import check_group_column, group_scores
    from effnet_ray.inference.image_sources import find_images
    from effnet_ray.inference.unknown_pictures import check_references
    from effnet_ray.release.load import load_release

    release, connect = flags.load(), flags.connector(terminal)
    other = load_release(flags.against, flags.store) if flags.against else None
    if flags.unknown_source:
        check_references(release)
        find_images(flags.unknown_source)
    data = find_data(flags.data, flags.runs, terminal).pack(terminal, connect)
    column = flags.group_column
    index = check_group_column(data, column) if column else None
    evaluation = evaluate(
        release,
        data,
        flags.placement,
        split=flags.split,
        examples=flags.examples,
        mistakes=MAX_MISTAKES if flags.corrections else 0,
        thumbnails=bool(flags.report),
        on_progress=terminal.image_progress("evaluating", "evaluated"),
        connect=connect,
    )
    groups = group_scores(evaluation, index, column) if index is not None else None
    paired = compare(evaluation, other, flags.placement, connect, terminal) if other else None
    unknown = _score_unknown(flags, evaluation, terminal) if flags.unknown_source else None
    return Findings(evaluation, groups, paired, unknown)


def _score_unknown(
    flags: Evaluate, evaluation: "Evaluation", terminal: Terminal
) -> "UnknownPictures":
    from effnet_ray.inference.unknown_pictures import score_unknown

    return score_unknown(
        evaluation.release,
        flags.unknown_source,
        evaluation.metrics.unknown_scores,
        flags.placement,
        connect=flags.connector(terminal),
        on_progress=terminal.image_progress("scoring unknown pictures", "scored"),
    )


def _write_report(found: Findings, uri: str) -> None:
    from effnet_ray import storage
    from effnet_ray.inference import report

    storage.write_bytes(uri, report.html(found.evaluation, found.unknown, found.groups))


def _print_evaluation(
    terminal: Terminal,
    evaluation: "Evaluation",
    unknown: "UnknownPictures | None",
    more: Mapping[str, str],
) -> None:
    """Print the worst classes, the metrics, and `more` that was found or written."""
    metrics = evaluation.metrics
    for image, (path, reason) in list(metrics.unreadable.items())[:MAX_NAMED_IMAGES]:
        terminal.print(f"quarantined image {image}: {path}: {reason}")
    terminal.console.print(_class_table(evaluation))
    headline, *scores = (
        (m.name, m.format(value, metrics.images)) for m, value in metrics.scores.items()
    )
    title = f"{evaluation.release.reference} on {evaluation.split}: {' '.join(headline)}"
    facts = dict(scores) | _facts(evaluation) | _unknown_facts(evaluation, unknown)
    facts |= more
    terminal.print_summary(title, {name: text for name, text in facts.items() if text})


def _unknown_facts(evaluation: "Evaluation", unknown: "UnknownPictures | None") -> dict[str, str]:
    share, facts = evaluation.share_called_unknown, dict[str, str]()
    if share is not None:
        facts["called unknown"] = f"{share:.2%} of these images"
    if unknown:
        facts["unknown pictures"] = (
            f"{unknown.flagged:.2%} of {len(unknown.scores):,} called unknown, "
            f"AUROC {unknown.auroc:.3f}"
        )
    return facts


def _class_table(evaluation: "Evaluation") -> Table:
    """The classes with the lowest scores."""
    from effnet_ray.inference.multilabel import MultilabelMetrics

    names, worst = evaluation.release.classes, evaluation.metrics.worst_classes
    multilabel = isinstance(evaluation.metrics, MultilabelMetrics)
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class", overflow="fold")
    for title in (*(["AP"] if multilabel else []), "F1", "precision", "recall", "images"):
        table.add_column(title, justify="right")
    for row in worst[:MAX_CLASS_ROWS]:
        table.add_row(
            escape(names[row.index]), *_percentages(row, multilabel=multilabel), f"{row.support:,}"
        )
    if len(worst) > MAX_CLASS_ROWS:
        table.add_row(f"… {len(worst) - MAX_CLASS_ROWS} classes with higher scores")
    return table


def _percentages(row: "ClassMetrics", *, multilabel: bool) -> list[str]:
    cells = [f"{value:.1%}" for value in (row.f1, row.precision, row.recall)]
    return ["" if row.ap is None else f"{row.ap:.1%}", *cells] if multilabel else cells


def _facts(evaluation: "Evaluation") -> dict[str, str]:
    metrics = evaluation.metrics
    micro_f1 = _multilabel_json(metrics).get("micro_f1")
    calibrated = metrics.calibration.changes_logits
    return {
        "micro F1": "" if micro_f1 is None else f"{micro_f1:.2%}",
        "macro F1": f"{metrics.macro_f1:.2%}",
        "calibration error": f"{metrics.ece:.2%} (expected calibration error, 15 bins)"
        + (f", of plain logits {metrics.plain_ece:.2%}" if calibrated else ""),
        "images": f"{metrics.processed:,}, {len(metrics.unreadable):,} of them unreadable",
        "most confused": _confused(metrics, evaluation.release.classes),
        "suspected label errors": f"{metrics.label_error_count:,}"
        if metrics.label_error_count
        else "",
        "release": evaluation.release.uri,
        "data": evaluation.data,
    }


def _confused(metrics: "Metrics", names: Sequence[str]) -> str:
    """The three most frequent confusions; empty with several labels per image."""
    from effnet_ray.inference.multiclass import MulticlassMetrics

    pairs = metrics.confused_pairs[:3] if isinstance(metrics, MulticlassMetrics) else []
    return ", ".join(
        f"{names[label]} → {names[predicted]} ({images:,})" for label, predicted, images in pairs
    )
