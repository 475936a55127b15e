"""Averages the weights of checkpoints, as long as the eval split says that it helps.

Weights that were fine-tuned from the same start lie in one basin of the loss, where their mean is
often better than each of them. Checkpoints are added from the best on, and one that does not help
is left out: the greedy soup of Wortsman et al. 2022 (arXiv 2203.05482, algorithm 1).

The result is recorded as a run of its own, whose only checkpoint has the averaged weights.

    RUNS/NAME-average-<8 hex digits of the checkpoints>/
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from safetensors.torch import load
from torch import Tensor

from effnet_ray import safe_json, storage
from effnet_ray.errors import InputError
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.schema import from_dict
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.checkpoint import AVERAGED, EVAL_OUTPUTS, Checkpoint, Snapshot
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.evaluation import EvalResult
from effnet_ray.train.run_record import Result, Run
from effnet_ray.train.state import Progress
from effnet_ray.train.weights_evaluator import Weights, WeightsEvaluator

TRIED = "average.json"
"""File of the run: which checkpoints were tried."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may become part of the average."""

    run: Run
    result: Result
    """Of the same run."""
    checkpoint: Checkpoint

    @property
    def report(self) -> EpochReport:
        """The report of the epoch that it was written after."""
        return self.checkpoint.history[-1]

    @property
    def file(self) -> str:
        """The file with the weights that the report is about."""
        return AVERAGED if self.report.averaged else WEIGHTS

    def weights(self) -> Weights:
        """The weights. Raises CheckpointError if they are damaged."""
        return load(self.checkpoint.read(self.file))


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate that was added to the average, or was not."""

    checkpoint: str
    """Its URI."""
    score: float
    """Eval score, 0 to 1, of the average with it; of the first one, of that checkpoint alone."""
    loss: float
    """Its eval loss, nats, which decides between equal scores."""
    kept: bool


@dataclass(frozen=True, slots=True)
class Averaged:
    """What averaging came to."""

    tried: tuple[Tried, ...]
    """The best checkpoint first."""
    score: float
    """Eval score of what was kept."""
    loss: float
    """Its eval loss, nats."""
    result: Result | None
    """The run that has the averaged weights; None if no average was better."""


def run_candidates(run_uri: str) -> list[Candidate]:
    """The kept checkpoints of evaluated epochs of a finished run. Raises InputError."""
    run, result = _finished(run_uri)
    found = checkpoint.complete(storage.join(run_uri, run_record.CHECKPOINTS))
    return [Candidate(run, result, each) for each in found if _was_evaluated(each)]


def best_candidate(run_uri: str) -> Candidate:
    """The best checkpoint of a finished run. Raises InputError or CheckpointError."""
    run, result = _finished(run_uri)
    return Candidate(run, result, checkpoint.open_checkpoint(result.checkpoint))


def _finished(run_uri: str) -> tuple[Run, Result]:
    run, result = run_record.load(run_uri), run_record.load_result(run_uri)
    if run is None:
        raise InputError(f"there is no run or sweep {run_uri}: check its name and --runs")
    if result is None:
        raise InputError(f"run {run_uri} is not finished: finish it first")
    return run, result


def _was_evaluated(found: Checkpoint) -> bool:
    history = found.history
    return bool(history) and history[-1].step == found.step and history[-1].eval_loss is not None


def average(
    candidates: Sequence[Candidate],
    runs: str,
    name: str,
    *,
    data: str = "",
    most: int = 5,
    on_tried: Callable[[Tried], None] | None = None,
) -> Averaged:
    """Average the `most` best candidates and record the result below `runs`, if it is better.

    The evaluations run in this process, on its GPU if it has one. `data` is the URI of the data
    set, by default the runs'. A better average is made once, and then returned. Raises
    InputError if there are fewer than two candidates, or their networks differ.
    """
    chosen = sorted(candidates, key=_sort_key)[:most]
    _check_alike(chosen, name)
    run_uri = storage.join(runs, f"{name}-average-{_digest(chosen)}")
    result = run_record.load_result(run_uri)
    if result:
        return _recorded(run_uri, result)
    start = time.perf_counter()
    soup = _search(chosen, WeightsEvaluator(chosen[0].run, data), on_tried)
    if len(soup.kept) > 1:
        result = _record(soup, run_uri, time.perf_counter() - start)
    return Averaged(tuple(soup.tried), -soup.best.sort_key[0], soup.best.sums.loss, result)


def _recorded(run_uri: str, result: Result) -> Averaged:
    """What averaging came to before."""
    tried = safe_json.parse(storage.read_bytes(storage.join(run_uri, TRIED)))
    report = checkpoint.open_checkpoint(result.checkpoint).history[-1]
    score, loss = _score_of(report), report.eval_loss or 0.0
    return Averaged(tuple(from_dict(Tried, each) for each in tried), score, loss, result)


@dataclass(slots=True)
class _Soup:
    """The average so far."""

    best: EvalResult
    weights: Weights
    total: dict[str, Tensor]
    """Sums of the kept weights, float64."""
    kept: list[Candidate]
    tried: list[Tried]


def _search(
    chosen: Sequence[Candidate],
    evaluate_weights: Callable[[Weights], EvalResult],
    on_tried: Callable[[Tried], None] | None,
) -> _Soup:
    """Add each candidate to the average if that makes it better; the first is always kept."""
    soup: _Soup | None = None
    for candidate in chosen:
        total, count = (soup.total, len(soup.kept)) if soup else ({}, 0)
        mean, with_it = _with(candidate.weights(), total, count)
        found = evaluate_weights(mean)
        kept = soup is None or found.sort_key < soup.best.sort_key
        uri = candidate.checkpoint.uri
        tried = Tried(uri, -found.sort_key[0], found.sums.loss, kept)
        if on_tried:
            on_tried(tried)
        before = soup.tried if soup else []
        if kept:
            members = [*soup.kept, candidate] if soup else [candidate]
            soup = _Soup(found, mean, with_it, members, before)
        assert soup is not None
        soup.tried = [*before, tried]
    assert soup is not None  # there are candidates
    return soup


def _sort_key(candidate: Candidate) -> tuple[float, float, str]:
    """Sorts the best first: by score, then by loss."""
    report = candidate.report
    return -_score_of(report), report.eval_loss or 0.0, candidate.checkpoint.uri


def _score_of(report: EpochReport) -> float:
    return report.score or 0.0


def _check_alike(candidates: Sequence[Candidate], name: str) -> None:
    """Raises InputError unless there are several networks of one kind and one start."""
    if len(candidates) < 2:
        raise InputError(
            f"{name} has {len(candidates)} evaluated checkpoints, expected two or more: train "
            "with a higher --keep-checkpoints, or average the trials of a sweep"
        )
    kinds = {
        (run.recipe.variant, run.spec, run.classes, run.fingerprint, run.weights_sha256)
        for run in (candidate.run for candidate in candidates)
    }
    if len(kinds) > 1:
        raise InputError(
            f"the checkpoints of {name} differ in variant, input, classes, data or initial "
            "weights: average runs that differ only in how they were trained"
        )


def _digest(candidates: Sequence[Candidate]) -> str:
    """8 hex digits of the candidates' weights."""
    files = [candidate.checkpoint.files[candidate.file] for candidate in candidates]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]


def _with(weights: Weights, total: Weights, count: int) -> tuple[Weights, dict[str, Tensor]]:
    """The mean of `count` weights, whose sum is `total`, and of one more; and the new sum.

    Sums are float64. Counters, which are integers, are those of the first.
    """
    sums = {
        name: tensor.double() + total[name] if count else tensor.double()
        for name, tensor in weights.items()
    }
    mean = {
        name: (sums[name] / (count + 1)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    return mean, sums


def _record(soup: _Soup, run_uri: str, seconds: float) -> Result:
    """Write a run with the averaged weights: its record, its checkpoint and its result."""
    best, found = soup.kept[0], soup.best
    run = replace(
        best.run,
        name=run_uri.rpartition("/")[2],
        averaged=tuple(candidate.checkpoint.uri for candidate in soup.kept),
    )
    recorded = run_record.load(run_uri)
    if recorded is None:
        run_record.create(run, run_uri)
    elif recorded.averaged != run.averaged:
        raise InputError(
            f"{run_uri} was interrupted, and had kept other checkpoints: delete it, and run the "
            "same command again"
        )
    # Its only epoch: those before belong to one checkpoint of several.
    report = replace(best.report, averaged=False, eval_images=found.sums.images, **found.metrics)
    progress = Progress(step=best.checkpoint.step, history=[report], per_class=found.per_class)
    tensors = {WEIGHTS: soup.weights, **({EVAL_OUTPUTS: found.outputs} if found.outputs else {})}
    on_cpu = {
        file: {name: tensor.cpu().contiguous() for name, tensor in content.items()}
        for file, content in tensors.items()
    }
    uri = checkpoint.write(
        Snapshot(progress, on_cpu, None), storage.join(run_uri, run_record.CHECKPOINTS)
    )
    result = replace(
        best.result, run=run.name, run_uri=run_uri, checkpoint=uri, steps=best.checkpoint.step,
        resumed_from_step=0, seconds=seconds, device_seconds=0.0, train_images_per_s=0.0,
        **found.metrics,
    )  # fmt: skip
    tried = [asdict(each) for each in soup.tried]
    storage.write_bytes(storage.join(run_uri, TRIED), json.dumps(tried, indent=1).encode())
    run_record.write_result(result)
    return result
