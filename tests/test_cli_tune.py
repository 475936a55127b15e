"""A mistake in a sweep's flags is one sentence on stderr and exit code 2, before Ray starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from effnet_ray.cli.tune import tune_job


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--variants", "b0,b8"], ": variant 'b8' is unknown: choose one of b0, b1, b2, b3, b4"),
        (["--variants", ""], "variants is '': expected one or more of b0,"),
        (["--variants", "b0,b0"], "each at most once"),
        (["--variant", "b3"], "pass --variants"),
        (["--weights", "in21k"], "no 'in21k' weights for b0"),
        (["--variants", "v2_s,lite0", "--weights=in21k"], "no 'in21k' weights for lite0"),
        (["--variants=v2_s,v2_m", "--weights", "in21k", "--epochs", "0"], "expected 1 to 100,000"),
        (["--trials", "7"], "--trials 7 is too few for 8 variants"),
        (
            ["--budget", "0.01"],
            "a budget of 0.01 device-seconds is too small: a trial of b0 needs",
        ),
        (["--budget", "-5"], "budget is -5.0: expected above 0"),
        (["--data", "nowhere", "--trials", "0"], "--trials 0 is too few for 8 variants"),
        (["--data", "nowhere", "--searcher", "bayes"], "searcher 'bayes' is unknown"),
        (["--searcher", "bayes"], "random"),
        (["--space", "nowhere.json"], "neither FIELD=DOMAIN nor a JSON file"),
        (
            ["--space", "learning_rate=log:1e-4:1e-2"],
            "has no field 'learning_rate': did you mean 'lr'?",
        ),
        (["--space", "variant=choice:b0,b1"], "list variants with --variants"),
        (["--space", "lr=1e-4"], "expected log:LOW:HIGH"),
        (["--lr", "log:1e-2:1e-4"], "expected LOW below HIGH"),
        (["--lr", "log:0:1"], "expected LOW above 0"),
        (["--batchnorm", "choice:train,melted"], "train, frozen or sync"),
        (["--lr", "1e-3", "--space", "lr=log:1e-4:1e-2"], "remove one of the two"),
        (["--lr", "log:1e-4:1e-2", "--space", "lr=log:1e-3:1e-2"], "lr twice"),
        (["--objective", "speed"], "choose accuracy, accuracy-under or cheapest"),
        (["--objective", "accuracy-under"], "needs at least one of --max-params"),
        (["--max-params", "5"], "pass --objective accuracy-under"),
        (["--epochs", "0"], "expected 1 to 100,000"),
        (["--patience", "2"], "does not support patience"),
        (["--eval-every", "2"], "does not support eval_every"),
    ],
)
def test_impossible_sweeps_are_refused(
    refused: Callable[..., str], packed: Path, flags: list[str], says: str
) -> None:
    assert says in refused("--data", str(packed), "--weights", "none", *flags, job=tune_job)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--gpus-per-worker", "1", "--workers", "64"],
            "this cluster has room for 0, and its autoscaler cannot launch",
        ),
        (
            ["--objective", "accuracy-under", "--max-params", "1", "--variants", "b0,b1"],
            "the cheapest has 4.0 M",
        ),
    ],
)
def test_what_this_cluster_can_never_give_is_refused_before_a_trial_begins(
    cluster: None, refused: Callable[..., str], packed: Path, tmp_path: Path,
    flags: list[str], says: str,
) -> None:  # fmt: skip
    runs = tmp_path / "runs"
    folders = ("--runs", str(runs), "--store", str(tmp_path / "store"), "--weights", "none")
    assert says in refused("--data", str(packed), *folders, *flags, job=tune_job)
    assert not list(runs.rglob("sweep.json"))
