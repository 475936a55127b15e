"""A real MLflow server and real event files have every value of a run once."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from support.loop_worker import CLASSES, new_state, settled
from support.servers import free_port, fresh_bucket, mlflow_server, s3_environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from effnet_ray import storage
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.tune import tune_job
from effnet_ray.preflight import preflight
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.names import Release
from effnet_ray.release.store import ModelStore
from effnet_ray.tracking.metrics import params
from effnet_ray.tracking.mlflow import Mlflow
from effnet_ray.tracking.tracker import reason
from effnet_ray.tracking.trackers import Trackers
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.train.events import (
    EpochDone,
    Event,
    ImagesQuarantined,
    RunStarted,
    StepDone,
    WorkersStarted,
)
from effnet_ray.train.run_record import Result, Run

pytestmark = pytest.mark.heavy

BOTH = ("mlflow", "tensorboard")
TENSORBOARD = ("tensorboard",)
RECIPE = settled(epochs=2)


# --- a server


@dataclass
class Server:
    """MLflow's, which may go and come again."""

    folder: Path
    port: int = field(default_factory=free_port)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        """Its URL, the same when it comes again."""
        return f"http://127.0.0.1:{self.port}"

    def come(self) -> None:
        """Until it answers."""
        self.stack.enter_context(mlflow_server(self.folder, self.port))

    def go(self) -> None:
        """Until it does not."""
        self.stack.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("mlflow"))
    started.come()
    yield started
    started.go()


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test has an experiment of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


# --- a run


def of_run(name: str) -> Run:
    return Run(
        name=name, recipe=RECIPE, spec=RECIPE.variant_spec.input_spec(),
        classes=tuple(map(str, range(CLASSES))), data="s3://bucket/data", fingerprint="f" * 64,
        weights="none", weights_sha256="", weights_head=1000,
    )  # fmt: skip


def epoch(number: int, loss: float = 0.5) -> EpochReport:
    return EpochReport(
        epoch=number, step=4 * number + 4, train_loss=loss, train_top1=0.25, train_images=32,
        eval_loss=0.75, eval_top1=0.5 + number / 4, eval_top5=1.0, eval_images=8,
        quarantined=1, skipped=2,
    )  # fmt: skip


def done(report: EpochReport) -> EpochDone:
    return EpochDone(report, seconds=4.0, train_images=200, train_s=2.0, data_wait_s=0.1)


def begun(uri: str, name: str) -> RunStarted:
    """A run that stands in storage."""
    run = of_run(name)
    run_record.create(run, uri)
    return RunStarted(run, uri)


def released(uri: str, store: str, history: Sequence[EpochReport]) -> Release:
    """The run's end: its last checkpoint, its result, its release."""
    run = run_record.load(uri)
    assert run is not None
    state = new_state(RECIPE)
    state.step, state.history = history[-1].step, list(history)
    actual = checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    result = Result(
        run=run.name, run_uri=uri, checkpoint=actual, eval_top1=0.75, eval_top5=1.0,
        eval_loss=0.75, epochs=len(history), steps=state.step, resumed_from_step=0,
        train_images_per_s=1.0, seconds=1.0, quarantined=0,
    )  # fmt: skip
    run_record.write_result(result)
    return release_run(result, ModelStore(store))


def tell(
    *output: Event | Release, names: Sequence[str] = BOTH
) -> tuple[dict[str, str], list[str]]:
    """What a driver does; where the run is to be found, and what was said."""
    said = list[str]()
    with Trackers(names, said.append) as trackers:
        for each in output:
            if isinstance(each, Release):
                trackers.on_release(each)
            else:
                trackers.on_event(each)
    return trackers.locations, said


def interrupted(*events: Event) -> None:
    with pytest.raises(KeyboardInterrupt), Trackers(BOTH, print) as trackers:
        for event in events:
            trackers.on_event(event)
        raise KeyboardInterrupt


# --- what is found afterwards

Series = dict[str, list[tuple[int, float]]]


def the_run() -> Any:
    """The one run of this test's experiment."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def in_mlflow() -> Series:
    run, history = the_run(), MlflowClient().get_metric_history
    return {
        name: [(each.step, each.value) for each in history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def in_tensorboard(uri: str, to: Path) -> Series:
    """As TensorBoard reads them."""
    for name in storage.sizes(uri):
        to.mkdir(exist_ok=True)
        storage.download(storage.join(uri, name), to / name)
    files = EventAccumulator(str(to), size_guidance={"scalars": 0}).Reload()
    return {
        tag: sorted((each.step, each.value) for each in files.Scalars(tag))
        for tag in files.Tags()["scalars"]
    }


def versions(name: str) -> list[Any]:
    return list(MlflowClient().search_model_versions(f"name = '{name}'"))


EXPECTED: Series = {
    "loss": [(2, 0.875), (6, 0.375), (8, 0.125)],
    "images_per_s": [(2, 90.0), (6, 110.0), (8, 110.0)],
    "epoch": [(4, 1.0), (8, 2.0)],
    "train_loss": [(4, 0.5), (8, 0.25)],
    "train_top1": [(4, 0.25), (8, 0.25)],
    "eval_loss": [(4, 0.75), (8, 0.75)],
    "eval_top1": [(4, 0.5), (8, 0.75)],
    "eval_top5": [(4, 1.0), (8, 1.0)],
    "quarantined": [(4, 1.0), (8, 1.0)],
    "skipped": [(4, 2.0), (8, 2.0)],
    "epoch_images_per_s": [(4, 100.0), (8, 100.0)],
}


def told_in_two_sittings(uri: str, store: str, name: str) -> Release:
    """A run that is stopped in its second epoch, resumed at its first one's end, and finished."""
    start = begun(uri, name)
    started = WorkersStarted(workers=2, step=0, steps=8, device="cpu")
    first = (StepDone(2, 0.875, 90.0), done(epoch(0)), StepDone(6, 0.375, 110.0))
    interrupted(start, started, *first)
    again = (done(epoch(0, loss=9.0)), StepDone(6, 9.0, 9.0), StepDone(8, 0.125, 110.0))
    output = (*again, ImagesQuarantined({1: "a.jpg"}), done(epoch(1, loss=0.25)))
    release = released(uri, store, [epoch(0), epoch(1, loss=0.25)])
    assert tell(start, replace(started, step=4), *output, release)[1] == []
    return release


# --- one run, whatever happens to it


def test_a_resumed_run_is_one_run_with_every_step_once(tmp_path: Path) -> None:
    uri = f"{tmp_path}/runs/pets"
    told_in_two_sittings(uri, f"{tmp_path}/store", "pets-resumed")
    assert in_mlflow() == EXPECTED
    assert in_tensorboard(f"{uri}/tensorboard", tmp_path / "read") == EXPECTED
    run = the_run()
    assert run.info.status == "FINISHED"
    settings = {name: str(value) for name, value in params(of_run("pets-resumed")).items()}
    assert run.data.params == settings
    assert settings["variant"] == "b0" and settings["fingerprint"] == "f" * 64
    assert run.data.tags["effnet_ray.run"] == uri


def test_a_stopped_run_is_said_to_be_stopped(tmp_path: Path) -> None:
    interrupted(begun(f"{tmp_path}/runs/pets", "pets-stopped"), StepDone(2, 0.875, 90.0))
    assert the_run().info.status == "KILLED"


def test_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    uri = f"{tmp_path}/runs/pets"
    release = told_in_two_sittings(uri, f"{tmp_path}/store", "pets-again")
    before, files = the_run(), storage.sizes(uri)
    places, said = tell(release)
    assert (said, storage.sizes(uri)) == ([], files)
    assert the_run().to_dictionary() == before.to_dictionary() and in_mlflow() == EXPECTED
    assert len(versions("pets-again")) == 1
    assert places["tensorboard"] == f"{uri}/tensorboard"
    assert places["mlflow"].endswith(f"/runs/{before.info.run_id}")


def test_a_tracker_that_comes_late_is_told_all_epochs(tmp_path: Path) -> None:
    begun(f"{tmp_path}/runs/pets", "pets-late")
    release = released(f"{tmp_path}/runs/pets", f"{tmp_path}/store", [epoch(0), epoch(1, 0.25)])
    tell(release)
    timed = {"loss", "images_per_s", "epoch_images_per_s"}  # in no record
    late = {name: figures for name, figures in EXPECTED.items() if name not in timed}
    assert in_mlflow() == late
    assert in_tensorboard(f"{tmp_path}/runs/pets/tensorboard", tmp_path / "read") == late


def test_on_object_storage_event_files_and_models_are_where_the_run_is(
    moto: str, tmp_path: Path
) -> None:
    with s3_environment(moto):
        bucket = fresh_bucket()
        release = told_in_two_sittings(f"{bucket}/runs/p", f"{bucket}/store", "pets-s3")
        assert in_tensorboard(f"{bucket}/runs/p/tensorboard", tmp_path / "read") == EXPECTED
    (version,) = versions("pets-s3")
    assert version.source == release.uri == f"{bucket}/store/pets-s3/v0001"


def test_hyperparameters_are_in_the_runs_own_event_file(tmp_path: Path) -> None:
    tell(begun(f"{tmp_path}/runs/pets", "pets"), done(epoch(0)), names=TENSORBOARD)
    (file,) = Path(f"{tmp_path}/runs/pets/tensorboard").iterdir()
    actual = EventAccumulator(str(file)).Reload()
    output = actual.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"batch_size" in output and b"fingerprint" in output


def test_an_event_file_that_a_kill_has_torn_is_gone_on_from(tmp_path: Path) -> None:
    uri = f"{tmp_path}/runs/pets"
    start = begun(uri, "pets")
    tell(start, StepDone(2, 0.875, 90.0), done(epoch(0)), names=TENSORBOARD)
    (file,) = Path(f"{uri}/tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    again = (StepDone(6, 0.375, 110.0), StepDone(8, 0.125, 110.0), done(epoch(1, loss=0.25)))
    tell(start, StepDone(2, 9.0, 9.0), done(epoch(0)), *again, names=TENSORBOARD)
    actual = in_tensorboard(f"{uri}/tensorboard", tmp_path / "read")
    assert {name: actual[name] for name in ("epoch", "loss")} == {
        name: EXPECTED[name] for name in ("epoch", "loss")
    }
    assert actual.keys() == EXPECTED.keys()


# --- models


def test_a_release_becomes_a_version_whose_files_are_the_releases(tmp_path: Path) -> None:
    release = told_in_two_sittings(f"{tmp_path}/runs/p", f"{tmp_path}/store", "pets-model")
    (version,) = versions("pets-model")
    assert version.run_id == the_run().info.run_id
    output = ModelStore(f"{tmp_path}/store").model_folder("pets-model").record(1)
    tags = {"effnet_ray.release": "pets-model@v1", "effnet_ray.sha256": output["sha256"]}
    assert version.tags == tags
    to = f"{tmp_path}/loaded"
    loaded = mlflow.artifacts.download_artifacts("models:/pets-model@best", dst_path=to)
    assert files(Path(loaded)) == files(Path(release.uri))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_best_moves_only_to_what_the_stores_best_means(tmp_path: Path) -> None:
    store = f"{tmp_path}/store"
    begun(f"{tmp_path}/runs/a", "pets-best")
    begun(f"{tmp_path}/runs/b", "pets-best")
    better = released(f"{tmp_path}/runs/a", store, [epoch(0), epoch(1)])
    worse = released(f"{tmp_path}/runs/b", store, [epoch(0)])
    assert tell(better, worse)[1] == []
    assert len(versions("pets-best")) == 2
    best = MlflowClient().get_model_version_by_alias("pets-best", "best")
    assert best.tags["effnet_ray.release"] == better.reference


# --- what can go wrong


def test_a_server_that_goes_is_said_once_and_told_at_the_end_if_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    uri = f"{tmp_path}/runs/pets"
    start, said = begun(uri, "pets-gone"), list[str]()
    with Trackers(["mlflow"], said.append) as trackers:
        trackers.on_event(start)
        trackers.on_event(done(epoch(0)))
        assert until(lambda: trackers.locations and "train_loss" in in_mlflow())
        server.go()
        try:
            for step in range(5, 8):
                trackers.on_event(StepDone(step, 0.5, 90.0))
            trackers.on_event(done(epoch(1, loss=0.25)))
            assert until(lambda: said)
        finally:
            server.come()
        release = released(uri, f"{tmp_path}/store", [epoch(0), epoch(1, loss=0.25)])
        trackers.on_release(release)
    (sentence,) = said
    assert sentence.startswith("mlflow cannot log the run (")
    assert in_mlflow()["train_loss"] == EXPECTED["train_loss"] and len(versions("pets-gone")) == 1


def until(true: Callable[[], object]) -> bool:
    """Waits for another thread."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_stays_away_leaves_a_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{tmp_path}/runs/pets"
    start = begun(uri, "pets-away")
    release = released(uri, f"{tmp_path}/store", [epoch(0), epoch(1, 0.25)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    places, said = tell(start, done(epoch(0)), release)
    assert len(said) == 2 and "secret" not in "".join(said)
    assert "run the same command again" in said[1]
    assert in_tensorboard(f"{uri}/tensorboard", tmp_path / "read")["train_loss"] == [
        (4, 0.5), (8, 0.25),
    ]  # fmt: skip
    assert set(places) == {"tensorboard"}


@pytest.mark.parametrize("job", [None, tune_job])
def test_a_server_that_does_not_answer_is_refused_before_anything_is_leased(
    refused: Callable[..., str], packed: Path, monkeypatch: pytest.MonkeyPatch, job: Any
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
    flags = ("--data", str(packed), "--weights", "none", "--tracker", "tensorboard,mlflow")
    said = refused(*flags, **({"job": job} if job else {}))
    assert f"no MLflow server answers at http://{address} ([Errno 111] Connection" in said
    assert "secret" not in said


def test_without_an_address_mlflow_says_what_to_set(
    refused: Callable[..., str], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI is not set" in refused("--data", str(packed), "--tracker=mlflow")


def test_an_address_of_no_kind_that_mlflow_knows_is_refused(
    refused: Callable[..., str], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://host")
    assert "answers at gopher://host (" in refused("--data", str(packed), "--tracker=mlflow")


def test_a_deleted_experiment_is_refused(
    refused: Callable[..., str], packed: Path, tmp_path: Path
) -> None:
    client = MlflowClient()
    client.delete_experiment(client.create_experiment(tmp_path.name))
    said = refused("--data", str(packed), "--tracker", "mlflow")
    assert f"experiment '{tmp_path.name}' was deleted" in said


@pytest.mark.parametrize(
    ("name", "module"), [("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_without_its_packages_a_tracker_says_what_to_install(
    refused: Callable[..., str], packed: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    module: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    said = refused("--data", str(packed), "--tracker", name)
    assert f"pip install 'effnet-ray[{name}]'" in said


def test_an_unknown_tracker_is_refused(refused: Callable[..., str], packed: Path) -> None:
    flags = ("--data", str(packed), "--tracker", "tensorboard", "--tracker", "wandb")
    assert "tracker 'wandb' is unknown: expected mlflow or tensorboard" in refused(*flags)


def test_the_check_looks_at_trackers(
    server: Server, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (str(packed), f"{tmp_path}/runs", f"{tmp_path}/store")
    actual = preflight.quick_checks(*places, trackers=BOTH, single_writer=False, submitted=False)
    output = {each.check: each for each in actual}
    assert output["tracker mlflow"].ok and output["tracker tensorboard"].ok
    assert output["tracker mlflow"].found == f"{server.address}, experiment {tmp_path.name}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert Mlflow().check() == f"{server.address}, experiment Default"


def test_passwords_are_not_told() -> None:
    said = reason(ValueError("API request to http://me:secret@host:5000/api failed\nfor me"))
    assert said == "API request to http://host:5000/api failed for me"


# --- for real


@pytest.mark.ray
@pytest.mark.long
def test_a_job_tells_both_of_a_run(cluster: object, digits: str, tmp_path: Path) -> None:
    flags = ["--workers", "2", "--epochs", "2", "--limit", "64", "--image-size", "32"]
    flags += ["--data", digits, "--weights", "none", "--name", "tracked"]
    flags += ["--runs", f"{tmp_path}/runs", "--store", f"{tmp_path}/store"]
    flags += ["--tracker", "mlflow", "--tracker", "tensorboard"]
    output = finetune_job(flags)
    actual = in_mlflow()
    assert actual["eval_top1"][-1][0] == output["steps"] and len(actual["train_loss"]) == 2
    events = f"{output['run_uri']}/tensorboard"
    assert in_tensorboard(events, tmp_path / "read").keys() == actual.keys()
    (version,) = versions("tracked")
    assert version.tags["effnet_ray.release"] == output["release"] == "tracked@v1"
    files = storage.sizes(events)
    assert finetune_job(flags) == output
    assert in_mlflow() == actual and storage.sizes(events) == files
