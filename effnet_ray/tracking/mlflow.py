"""MLflow: a run on the tracking server, and a release as a version of a registered model.

The server, credentials and experiment come from MLflow's own environment variables:
`MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_EXPERIMENT_NAME`, …

    RUNS/NAME/mlflow.json    the id by which every later call finds the same MLflow run
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import effnet_ray
from effnet_ray import safe_json, storage
from effnet_ray.errors import AlreadyExistsError, TrackerError
from effnet_ray.publish.provenance import git_commit
from effnet_ray.redaction import redact
from effnet_ray.release.names import BEST
from effnet_ray.tracking.metrics import EPOCH, RUNNING_LOSS, Logged, MetricPoint, params
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.tracking.tracker import RunStatus, reason
from effnet_ray.train.run_record import Run

ID_FILE = "mlflow.json"
ID_TAG, RUN_TAG = "effnet_ray.id", "effnet_ray.run"
RELEASE_TAG, SHA256_TAG = "effnet_ray.release", "effnet_ray.sha256"
ARTIFACTS = "release"
"""Folder of the run's artifacts."""
METRICS_PER_REQUEST = 1000
"""MLflow's limit for one `log_batch` request."""
STATUSES = {
    RunStatus.FINISHED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.INTERRUPTED: "KILLED",
}
ENV_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's default is 7, each of up to 120 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the job's summary contains the URL
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Set unless the user has set them: an unreachable server must not delay the end of a run."""


class Mlflow:
    """Logs to an MLflow server.

    Raises TrackerError if MLflow is not installed or MLFLOW_TRACKING_URI is not set.
    """

    name = "mlflow"

    def __init__(self) -> None:
        for name, value in ENV_DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise TrackerError(
                "MLflow is not installed: pip install 'effnet-ray[mlflow]'"
            ) from error
        for logger in ("mlflow", "urllib3.connectionpool"):  # TrackerThread reports failures
            logging.getLogger(logger).setLevel(logging.ERROR)
        self._address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._address:
            raise TrackerError(
                "MLFLOW_TRACKING_URI is not set: set it to the address of your MLflow server"
            )
        with _as_tracker_error(self._address):
            self._client: Any = MlflowClient()
        self._run_id = ""
        self.location = ""

    def check(self) -> str:
        """Return server and experiment. Raises TrackerError if the server is unreachable."""
        address = redact(self._address)
        with _as_tracker_error(self._address):
            experiment = self._find_experiment()
        name = experiment.name if experiment else _experiment_name()
        if experiment and experiment.lifecycle_stage != "active":
            raise TrackerError(
                f"the experiment {name!r} was deleted at {address}: restore it with `mlflow "
                "experiments restore`, or set MLFLOW_EXPERIMENT_NAME to another"
            )
        return f"{address}, experiment {name}"

    def start_run(self, run: Run, run_uri: str) -> Logged:
        """Find the run on the server or create it; return what is logged of it."""
        experiment = self._experiment_id()
        mlflow_run = self._find_run(experiment, _run_key(run_uri))
        if mlflow_run is None:
            tags = {ID_TAG: _run_key(run_uri), RUN_TAG: run_uri, **_version_tags()}
            mlflow_run = self._client.create_run(experiment, tags=tags, run_name=run.name)
        elif mlflow_run.info.status in ("FAILED", "KILLED"):
            self._client.update_run(mlflow_run.info.run_id, status="RUNNING")
        self._run_id = mlflow_run.info.run_id
        server = redact(self._address).rstrip("/")
        self.location = f"{server}/#/experiments/{experiment}/runs/{self._run_id}"
        self._log_params(run, mlflow_run.data.params)
        return Logged(self._steps(EPOCH), max(self._steps(RUNNING_LOSS), default=-1))

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Log metrics by optimizer step."""
        from mlflow.entities import Metric

        # The first metric of a point is logged last, so a point that has it is complete.
        metrics = [
            Metric(name, value, round(point.time_s * 1000), point.step)
            for point in points
            for name, value in reversed(list(point.metrics.items()))
        ]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            batch = metrics[first : first + METRICS_PER_REQUEST]
            self._client.log_batch(self._run_id, metrics=batch)

    def register_release(self, history: RunHistory) -> None:
        """Register the release as a version of the model of its name, unless it is one already.

        The model's alias `best` moves to it if the store's `best` points to this release.
        """
        name = history.release.name
        self._create_model(name)
        version = self._find_version(name, history.sha256) or self._create_version(history)
        if history.is_best:
            self._client.set_registered_model_alias(name, BEST, version)

    def end_run(self, status: RunStatus) -> None:
        """Set the run's status, unless it is FINISHED already."""
        if self._client.get_run(self._run_id).info.status != STATUSES[RunStatus.FINISHED]:
            self._client.set_terminated(self._run_id, STATUSES[status])

    def _find_experiment(self) -> Any:
        """The experiment that MLflow's environment names; None if it does not exist yet."""
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment_id:
            return self._client.get_experiment(experiment_id)
        return self._client.get_experiment_by_name(_experiment_name())

    def _experiment_id(self) -> str:
        """The experiment's id; the experiment is created if it does not exist yet."""
        experiment = self._find_experiment()
        if experiment:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(_experiment_name()))

    def _find_run(self, experiment: str, key: str) -> Any:
        """The run with this ID_TAG; None if there is none."""
        runs = self._client.search_runs([experiment], f"tags.`{ID_TAG}` = '{key}'", max_results=1)
        return runs[0] if runs else None

    def _log_params(self, run: Run, logged: Mapping[str, str]) -> None:
        """Log the parameters that are missing: MLflow refuses to change one."""
        from mlflow.entities import Param

        missing = [
            Param(name, str(value)) for name, value in params(run).items() if name not in logged
        ]
        self._client.log_batch(self._run_id, params=missing)

    def _steps(self, metric: str) -> set[int]:
        """Steps at which the metric is logged."""
        return {point.step for point in self._client.get_metric_history(self._run_id, metric)}

    def _create_model(self, name: str) -> None:
        """Create the registered model, unless it exists."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find_version(self, name: str, sha256: str) -> str | None:
        """The model version of this release; None if there is none."""
        query = f"name = '{name}' and tags.`{SHA256_TAG}` = '{sha256}'"
        versions = self._client.search_model_versions(query, max_results=1)
        return versions[0].version if versions else None

    def _create_version(self, history: RunHistory) -> str:
        """Create a model version whose source is the release's folder.

        A server refuses a local folder as a source, since it may run on another machine: the files
        of a release on a local disk are copied to the run's artifacts instead.
        """
        source = history.release.uri
        if not storage.is_remote(source):
            folder = f"{ARTIFACTS}/{history.sha256[:16]}"
            self._client.log_artifacts(self._run_id, source, folder)
            run = self._client.get_run(self._run_id)
            source = storage.join(run.info.artifact_uri, folder)
        tags = {RELEASE_TAG: history.release.reference, SHA256_TAG: history.sha256}
        version = self._client.create_model_version(
            history.release.name, source, run_id=self._run_id, tags=tags
        )
        return str(version.version)


@contextmanager
def _as_tracker_error(address: str) -> Iterator[None]:
    """Turn any error of MLflow, requests or a database into a TrackerError."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise TrackerError(
                f"the MLflow server at {redact(address)} returns an error ({reason(error)}): set "
                "MLFLOW_EXPERIMENT_ID to an experiment that exists, or unset it"
            ) from error
        raise TrackerError(
            f"no MLflow server answers at {redact(address)} ({reason(error)}): check "
            "MLFLOW_TRACKING_URI, its credentials and the network"
        ) from error


def _experiment_name() -> str:
    """The experiment's name; `Default` is MLflow's own default."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"


def _run_key(run_uri: str) -> str:
    """The run's id on every MLflow server, created on first use and stored with the run.

    The run's URI would not be unique: ~/effnet-ray/runs/pets is another run on every machine.
    """
    uri = storage.join(run_uri, ID_FILE)
    if not storage.exists(uri):
        try:
            content = json.dumps({"id": uuid.uuid4().hex}).encode()
            storage.write_bytes(uri, content, exclusive=True)
        except AlreadyExistsError:
            pass  # another driver was first
    return str(safe_json.parse(storage.read_bytes(uri))["id"])


def _version_tags() -> dict[str, str]:
    """Tags with the versions of this package and of the working folder."""
    tags = {"effnet_ray.version": effnet_ray.__version__}
    commit = git_commit()
    if commit:
        tags |= {
            "mlflow.source.git.commit": commit["commit"],
            "effnet_ray.changed": str(commit["changed"]),
        }
    return tags
