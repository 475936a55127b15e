"""What an earlier version wrote is read, resumed and reported; what it said is said still.

`tests/fixtures/README.md` says of what, and which version that was.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.contract import (
    DECIDING,
    ENVIRONMENT,
    JOBS,
    PLACE,
    answer,
    contract,
    expected,
    flags,
    keys,
    layout,
    parsed,
    unpacked,
)
from support.plain_run import plain_run

from effnet_ray import Placement
from effnet_ray.train import run_record

ROOT = Path(__file__).parent.parent
FIGURES = {"rel": 1e-3, "abs": 1e-3}
"""Float noise between instruction sets, and what rounding makes of a top-1, is less."""
RETIRED_KEYS = {"pieces"}  # of checkpoint.json: how a lane was divided for want of memory
NEW_FILES = {"eval_outputs.safetensors", "references.safetensors"}
OF_TIME = {"seconds", "device_seconds", "train_images_per_s", "images_per_s", "train_s", "wall_s"}
"""Figures that no two runs have in common."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """The fixtures, to be read only."""
    with unpacked() as place:
        yield place


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's own stay out of it."""
    for name in [name for name in os.environ if name.startswith("EFFNET_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return expected()


def command(said: dict[str, Any], name: str, **moved: Path) -> list[str]:
    """A recorded command, some of the folders at the fixtures' place moved elsewhere."""
    words: list[str] = said["commands"][name].copy()
    for folder, to in moved.items():
        words = [str(to) if word == f"{PLACE}/{folder}" else word for word in words]
    return words


def alone(words: list[str]) -> list[str]:
    """The same command with one worker: sooner ready, and no figure depends on it."""
    at = words.index("--workers") + 1
    return [*words[:at], "1", *words[at + 1 :]]


def copied(tmp_path: Path, *folders: str) -> dict[str, Path]:
    """Copies of folders that a job may write to; where `command` is to find them."""
    for folder in folders:
        shutil.copytree(PLACE / folder, tmp_path / folder)
    return {folder.partition("/")[0]: tmp_path / folder.partition("/")[0] for folder in folders}


def back(found: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """An answer as if its folders were at the fixtures' place."""
    told: dict[str, Any] = json.loads(json.dumps(found).replace(str(tmp_path), str(PLACE)))
    return told


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → bytes, and when it was written; jobs probe folders, so these change."""
    found = {path: path.stat() for path in folder.rglob("[!.]*") if path.is_file()}
    return {str(path): (about.st_size, about.st_mtime_ns) for path, about in found.items()}


def same(found: Any, told: Any) -> None:
    """Asserts equal values; numbers but for noise, and those of time not at all."""
    if isinstance(told, dict):
        assert found.keys() == told.keys()
        for name in told.keys() - OF_TIME:
            same(found[name], told[name])
    elif isinstance(told, list):
        assert len(found) == len(told)
        for one, other in zip(found, told, strict=True):
            same(one, other)
    elif isinstance(told, float):
        assert found == pytest.approx(told, **FIGURES)
    else:
        assert found == told


def without_new_files(found: dict[str, Any]) -> dict[str, Any]:
    """The files of runs and releases but for those that version 0.1 did not write."""
    return {name: about for name, about in found.items() if Path(name).name not in NEW_FILES}


def assert_has_keys(now: Any, before: Any) -> None:
    """Asserts that a record has all keys of an earlier one, of the same types; more are fine."""
    if not isinstance(before, dict):
        assert now == before
        return
    assert now.keys() >= before.keys() - RETIRED_KEYS
    for name in before.keys() & now.keys():
        assert_has_keys(now[name], before[name])


# --- flags and answers


def test_flags_and_defaults_are_those_of_the_contract() -> None:
    assert flags() == contract()["flags"]


def test_the_environment_sets_the_same_defaults() -> None:
    assert flags(**ENVIRONMENT) == contract()["flags by environment"]


@pytest.mark.parametrize("job", ["finetune", "tune"])
@pytest.mark.parametrize("how", DECIDING)
def test_defaults_that_other_flags_decide_are_the_same(job: str, how: str) -> None:
    assert parsed(JOBS[job], DECIDING[how]) == contract()[f"defaults {how}"][job]


# --- data sets


def test_a_packed_data_set_is_reported_not_redone(place: Path, said: dict[str, Any]) -> None:
    before = files(place)
    result = answer(*command(said, "pack"))
    assert result.items() >= said["answers"]["pack"].items()
    assert result["seen"] == sum(result["images"].values()) + result["quarantined"]
    assert files(place) == before


def test_shards_get_the_same_manifest(place: Path, said: dict[str, Any], tmp_path: Path) -> None:
    found = answer(*command(said, "pack in place", **copied(tmp_path, "shards")))
    assert back(found, tmp_path).items() >= said["answers"]["pack in place"].items()
    mine, told = (
        json.loads((at / "shards/manifest.json").read_text()) for at in (tmp_path, place)
    )
    assert back(mine, tmp_path).items() >= told.items()


def test_packing_makes_the_same_data_set(
    place: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    made = answer(*command(said, "pack", data=tmp_path / "data"))
    assert made["fingerprint"] == said["answers"]["pack"]["fingerprint"]
    assert_has_keys(layout(tmp_path), below("data"))
    for path in (place / "data").rglob("*"):
        mine = tmp_path / "data" / path.relative_to(place / "data")
        if path.suffix == ".parquet":
            now, then = (without_reasons(pq.read_table(at)) for at in (mine, path))
            assert now.equals(then)


def without_reasons(table: pa.Table) -> pa.Table:
    """All columns but the messages for people."""
    return table.select([name for name in table.column_names if name != "reason"])


def below(*folders: str) -> dict[str, Any]:
    """The contract's files in these folders."""
    kept = contract()["files"].items()
    return {name: told for name, told in kept if name.startswith(tuple(folders))}


# --- runs


def test_a_finished_run_is_reported_not_redone(place: Path, said: dict[str, Any]) -> None:
    before = files(place)
    assert answer(*command(said, "finetune")) == said["answers"]["finetune again"]
    assert files(place) == before


def test_a_finished_sweep_is_reported(place: Path, said: dict[str, Any], tmp_path: Path) -> None:
    before = files(place / "store")
    again = answer(*command(said, "tune", **copied(tmp_path, "runs/sweep")))
    assert back(again, tmp_path) == said["answers"]["tune again"]
    assert files(place / "store") == before


def test_predictions_are_not_redone(place: Path, said: dict[str, Any], tmp_path: Path) -> None:
    moved = copied(tmp_path, "predictions")
    before = {name: at for name, at in files(tmp_path).items() if "part" in name}
    again = answer(*command(said, "predict", **moved))
    assert back(again, tmp_path) == said["answers"]["predict"]
    assert before and before.items() <= files(tmp_path).items()


def test_files_are_as_the_contract_says(place: Path) -> None:
    """Which covers what no test here writes anew."""
    assert layout(place) == contract()["files"]
    for part in ("features/", "audit/", "quarantine/", "predictions/", "data/quarantine"):
        assert any(part in name and told for name, told in contract()["files"].items()), part


# --- the store


@pytest.mark.parametrize("name", ["list", "show", "show version", "show found", "verify"])
def test_a_store_is_listed_shown_and_verified(
    place: Path, said: dict[str, Any], name: str
) -> None:
    assert answer(*command(said, f"models {name}")) == said["answers"][f"models {name}"]


def test_a_store_is_changed_as_before(place: Path, said: dict[str, Any], tmp_path: Path) -> None:
    store = copied(tmp_path, "store")["store"]

    def models(*argv: str) -> dict[str, Any]:
        return answer("models", *argv, "--store", str(store))

    moved = models("promote", "digits@v2", "champion", "--force")
    assert (moved["version"], moved["previous"]) == (2, 1)
    assert keys(moved) == contract()["answers"]["models promote back"]
    deleted = models("delete", "digits@v2", "--force")
    assert keys(deleted) == contract()["answers"]["models delete"] | {"aliases": {"*": "str"}}
    assert deleted["aliases"] == ["champion"]
    assert keys(models("gc")) == contract()["answers"]["models gc"]
    history = models("show", "digits")["history"]["champion"]
    recorded = said["answers"]["models show"]["history"]["champion"]
    assert history[: len(recorded)] == recorded
    models("promote", "digits@v1", "champion", "--force")
    assert models("verify")["verified"] == ["digits@v1", "sweep-b0@v1"]


def test_a_cluster_file_is_checked_as_before() -> None:
    found = answer("check", "--cluster-file", str(ROOT / "cluster/aws.yaml"))
    assert keys(found) == contract()["answers"]["check file"]


@pytest.mark.parametrize(
    ("run", "phase"), [("head-begun", "the head's"), ("all-begun", "the second")]
)
def test_an_unfinished_run_ends_as_it_would_have(
    place: Path, said: dict[str, Any], tmp_path: Path, run: str, phase: str
) -> None:
    runs = copied(tmp_path, f"runs/{run}", "runs/features", "runs/weights")["runs"]
    features = files(runs / "features")
    recorded = run_record.load(str(runs / run))
    assert recorded is not None
    placement = Placement(workers="1", audit=True, checkpoint_every=2, max_bad_fraction=0.2)
    ended = plain_run(recorded.recipe, recorded.data, str(runs), run, placement=placement)
    assert ended.finished.resumed_from_step == 8
    assert files(runs / "features") == features  # kept, and not computed again
    same(history(runs / run), said["history"][run])
    told = said["answers"][f"finetune, killed in {phase} phase"]
    for figure in ("eval_top1", "eval_top5", "eval_loss", "epochs", "steps", "quarantined"):
        same(getattr(ended.finished, figure), told[figure])


def history(run: Path) -> list[dict[str, Any]]:
    """What each epoch of a run reported, as its newest checkpoint has it."""
    newest = max((run / "checkpoints").iterdir())
    told: list[dict[str, Any]] = json.loads((newest / "checkpoint.json").read_text())["history"]
    return told


# --- with Ray


@pytest.mark.ray
def test_a_release_is_judged_as_before(cluster: None, place: Path, said: dict[str, Any]) -> None:
    found, told = answer(*alone(command(said, "evaluate"))), said["answers"]["evaluate"]
    assert found.keys() >= told.keys()  # more is fine
    same({name: found[name] for name in told}, told)
    assert found["ece"] == found["ece_uncalibrated"]  # it was released without a calibration
    assert "called_unknown" not in found


@pytest.mark.ray
@pytest.mark.long
def test_a_new_run_and_its_release_have_the_same_records(
    cluster: None, place: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    words = command(said, "finetune", runs=tmp_path / "runs", store=tmp_path / "store")
    made = answer(*alone(words))
    assert keys(made) == contract()["answers"]["finetune"]
    same(history(tmp_path / "runs/digits"), said["history"]["digits"])
    found, told = without_new_files(layout(tmp_path)), contract()["files"]
    for name in found:
        assert_has_keys(found[name], told.get(name))
    folders = ("runs/digits", "runs/features", "runs/weights", "store/digits")
    wanted = below(*folders).keys()
    later = {name for name in wanted if "tombstone" in name or "champion" in name}
    assert wanted - later == found.keys()


@pytest.mark.ray
@pytest.mark.long
def test_an_interrupted_sweep_goes_on_and_has_the_same_records(
    place: Path, said: dict[str, Any], tmp_path: Path
) -> None:
    moved = copied(tmp_path, "runs/sweep", "runs/features")
    sweep = moved["runs"] / "sweep"
    for name in ("outcome.json", "report.html", "trials/002.json"):
        (sweep / name).unlink()
    (lost,) = (sweep / "runs").glob("sweep-002-*")
    shutil.rmtree(lost)
    words = alone(command(said, "tune", **moved, store=tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, f"jobs/{words[0]}.py", *words[1:], "--no-test-split"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, told = json.loads(done.stdout.splitlines()[-1]), said["answers"]["tune"]
    assert keys(found) == keys(told)
    for name in ("trials/000.json", "trials/001.json"):
        assert (sweep / name).read_bytes() == (place / "runs/sweep" / name).read_bytes()
    before, now = layout(place / "runs/sweep"), without_new_files(layout(sweep))
    assert now.keys() == before.keys()
    for name in now:
        assert_has_keys(now[name], before[name])
