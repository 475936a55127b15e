"""Messages of mistakes state the problem and the remedy; help states the behaviour."""

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from effnet_ray.cli.check import check_job
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.flags import LOCAL, SAMPLE, LocationFlags
from effnet_ray.cli.main import main, run
from effnet_ray.cli.models import models_job
from effnet_ray.cli.tune import Tune, _split_domains, tune_job
from effnet_ray.placement import Placement
from effnet_ray.recipe import Recipe
from effnet_ray.recipe_rules import OPTIMIZERS, SYNONYMS
from effnet_ray.sweep.costs import two_digits
from effnet_ray.sweep.objective import OBJECTIVES

Refused = Callable[..., str]
Job = Callable[..., dict[str, Any]]


@pytest.fixture
def help_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The words that a job prints with these flags and --help."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(job: Job, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["job", *flags, "--help"])
        with pytest.raises(SystemExit) as ended:
            main(job)
        assert ended.value.code in (0, None)
        return " ".join(capsys.readouterr().out.replace("│", "").split())

    return run


# --- sweeps


def test_a_switch_before_a_flag_swallows_nothing() -> None:
    words = ["--head-cache", "--lr", "1e-3", "--drop-path", "uniform:0:0.3", "--epochs=2"]
    assert _split_domains(words) == (
        ["--head-cache", "--lr", "1e-3", "--epochs", "2"],
        ["drop_path=uniform:0:0.3"],
        {"head_cache", "lr", "epochs"},
    )
    assert _split_domains(["--lr"]) == (["--lr"], [], {"lr"})


def test_estimates_have_two_digits() -> None:
    shown = [two_digits(number) for number in (0.0123, 0.5, 3.14159, 99.9, 12345.6)]
    assert shown == ["0.012", "0.50", "3.1", "100", "12,000"]


# --- names of other libraries


def test_a_synonym_is_no_flag_and_stands_for_a_field() -> None:
    names = {f.name for kind in (Recipe, Placement, LocationFlags, Tune) for f in fields(kind)}
    assert not SYNONYMS.keys() & names
    assert set(SYNONYMS.values()) <= {field.name for field in fields(Recipe)}


def test_the_environment_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_WORKERS", "two")
    assert "EFFNET_WORKERS is 'two': expected N, or MIN:MAX" in refused()


# --- files


def test_a_cluster_file_that_is_not_there_is_said(refused: Refused) -> None:
    says = "nowhere.yaml does not exist: check the path"
    assert says in refused("--cluster-file", "nowhere.yaml", job=check_job)


def test_a_file_is_no_store(refused: Refused, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for store in ("file", "file/store"):
        flags = ["--data", str(packed), "--weights", "none", "--store", str(tmp_path / store)]
        assert f"{tmp_path}/file is a file: choose a folder" in refused(*flags)
    assert "is a file" in refused("list", "--store", f"{tmp_path}/file", job=models_job)


# --- releases


@pytest.mark.parametrize("hours", ["-1", "nan"])
def test_leftovers_are_not_deleted_by_a_negative_age(
    refused: Refused, tmp_path: Path, hours: str
) -> None:
    flags = ["gc", "--store", str(tmp_path), "--older-than", hours]
    assert "expected 0 hours or more" in refused(*flags, job=models_job)


# --- help


def test_help_shows_the_defaults_that_other_flags_set(help_of: Callable[..., str]) -> None:
    plain, local = help_of(finetune_job), help_of(finetune_job, "--local")
    assert "the largest power of two" in plain and f"(default: {LOCAL['lr']})" not in plain
    assert f"(default: {LOCAL['batch_size']})" in local and f"(default: {LOCAL['lr']})" in local
    for name, value in SAMPLE.items():
        value = f"{value:g}" if isinstance(value, float) else value
        assert f"--{name.replace('_', '-')} {value}" in plain
    assert "with `tune`: chosen by the sweep" in help_of(tune_job)


def test_help_lists_the_choices_and_the_defaults_by_optimizer(help_of: Callable[..., str]) -> None:
    text = help_of(tune_job)
    choices_of = {f.name: f.metadata["choices"] for f in fields(Recipe) if "choices" in f.metadata}
    assert len(choices_of) == 9
    for name, choices in choices_of.items():
        assert f"--{name.replace('_', '-')} {{{','.join(choices)}}}" in text
    assert "--searcher {random,tpe}" in text and f"--objective {{{','.join(OBJECTIVES)}}}" in text
    text = help_of(finetune_job)
    rate, decay = text.partition("--lr ")[2], text.partition("--weight-decay ")[2]
    numbers = set(map(float, re.findall(r"\d+(?:\.\d+)?(?:e-\d)?", decay[:200])))
    for name, (factor, weight_decay) in OPTIMIZERS.items():
        assert name in decay[:200] and weight_decay in numbers
        assert name in rate[:200] and (factor == 1 or f"× {factor:g}" in rate[:200])


@pytest.mark.parametrize("words", [["--help"], []])
def test_the_command_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["effnet-ray", *words])
    with pytest.raises(SystemExit):
        run()
    output = capsys.readouterr().out
    assert (
        "Fine-tune EfficientNets on your images" in output
        and "--version" in output
        and "(gc)" in output
    )


def test_a_wrong_switch_is_offered_two_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "--compile", "maybe"])
    with pytest.raises(SystemExit) as ended:
        main(finetune_job)
    output = "".join(capsys.readouterr())
    assert ended.value.code == 2 and "expected True or False" in output and "None" not in output
