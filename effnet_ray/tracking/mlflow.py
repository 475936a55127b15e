"""MLflow: a run on its server, and a release as a version of a registered model.

Where the server is, who asks and in which experiment is MLflow's own environment:
`MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_EXPERIMENT_NAME`, …

    RUNS/NAME/mlflow.json    the id by which any later call finds the same MLflow run again
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import effnet_ray
from effnet_ray import storage
from effnet_ray.errors import AlreadyExistsError, EffnetRayError, TrackerError
from effnet_ray.publish.provenance import git_commit
from effnet_ray.release.names import BEST
from effnet_ray.tracking.metrics import EPOCH, STEP, Logged, MetricPoint, params
from effnet_ray.tracking.run_history import RunHistory
from effnet_ray.train.run_record import Run

ID = "mlflow.json"
ID_TAG, RUN_TAG = "effnet_ray.id", "effnet_ray.run"
RELEASE_TAG, SHA256_TAG = "effnet_ray.release", "effnet_ray.sha256"
ARTIFACTS = "release"
"""Folder of the run's artifacts."""
AT_ONCE = 1000
"""Metrics of a request: the server's own bound."""
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
ENV_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 by itself, each of up to 120 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # our summary says it
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow's environment where nobody has set it: the end of a run must not wait long."""


class Mlflow:
    """One run at a time. Raises TrackerError where MLflow is not installed or not told where."""

    name = "mlflow"

    def __init__(self) -> None:
        for name, value in ENV_DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise TrackerError("MLflow is not installed: pip install 'effnet-ray[mlflow]'") \
                from error  # fmt: skip
        for noisy in ("mlflow", "urllib3.connectionpool"):  # what it comes to is said once, by us
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self._address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._address:
            raise TrackerError(
                "MLFLOW_TRACKING_URI is not set: set it to the address of your MLflow server"
            )
        with _answering(self._address):
            self._client: Any = MlflowClient()
        self._id = ""
        self.where = ""

    def check(self) -> str:
        """Whether the server answers. Raises TrackerError where it does not."""
        shown = redact(self._address)
        with _answering(self._address):
            found = self._experiment()
        name = found.name if found else _experiment_name()
        if found and found.lifecycle_stage != "active":
            raise TrackerError(
                f"the experiment {name!r} was deleted at {shown}: restore it, or set "
                "MLFLOW_EXPERIMENT_NAME to another"
            )
        return f"{shown}, experiment {name}"

    def begin(self, run: Run, run_uri: str) -> Logged:
        """Find the run on the server, or create it; what is logged of it."""
        experiment = self._experiment_id()
        found = self._found(experiment, _key(run_uri))
        if found is None:
            told = {ID_TAG: _key(run_uri), RUN_TAG: run_uri, **_tags()}
            found = self._client.create_run(experiment, tags=told, run_name=run.name)
        elif found.info.status in (FAILED, KILLED):
            self._client.update_run(found.info.run_id, status="RUNNING")
        self._id = found.info.run_id
        server = redact(self._address).rstrip("/")
        self.where = f"{server}/#/experiments/{experiment}/runs/{self._id}"
        self._log_params(run, found.data.params)
        return Logged(self._steps(EPOCH), max(self._steps(STEP), default=-1))

    def log(self, points: Sequence[MetricPoint]) -> None:
        """As metrics, by optimizer step."""
        from mlflow.entities import Metric

        # Of a point the first figure last: it says that the server has all of them.
        metrics = [
            Metric(name, value, round(point.when * 1000), point.step)
            for point in points
            for name, value in reversed(list(point.figures.items()))
        ]
        for first in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + AT_ONCE])

    def register(self, story: RunHistory) -> None:
        """The release as a version of the model of its name; the one that exists, if it does.

        `best` moves there where the store's own means this release.
        """
        name = story.release.name
        self._create_model(name)
        version = self._version(name, story.sha256) or self._create_version(story)
        if story.best:
            self._client.set_registered_model_alias(name, BEST, version)

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED; what is finished stays so."""
        if self._client.get_run(self._id).info.status != FINISHED:
            self._client.set_terminated(self._id, status)

    def _experiment(self) -> Any:
        """The one that MLflow's environment names; None where it is to be created."""
        told = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if told:
            return self._client.get_experiment(told)
        return self._client.get_experiment_by_name(_experiment_name())

    def _experiment_id(self) -> str:
        found = self._experiment()
        name = _experiment_name()
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _found(self, experiment: str, key: str) -> Any:
        """The run with our id, or None."""
        found = self._client.search_runs([experiment], f"tags.`{ID_TAG}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _log_params(self, run: Run, known: Mapping[str, str]) -> None:
        """Those that the server has not: it lets none be changed."""
        from mlflow.entities import Param

        missing = {name: value for name, value in params(run).items() if name not in known}
        told = [Param(name, str(value)) for name, value in missing.items()]
        self._client.log_batch(self._id, params=told)

    def _steps(self, metric: str) -> set[int]:
        return {each.step for each in self._client.get_metric_history(self._id, metric)}

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version(self, name: str, sha256: str) -> str | None:
        """Of the model version that is this release."""
        asked = f"name = '{name}' and tags.`{SHA256_TAG}` = '{sha256}'"
        found = self._client.search_model_versions(asked, max_results=1)
        return found[0].version if found else None

    def _create_version(self, story: RunHistory) -> str:
        """Its source is the release itself, in a bucket.

        A server refuses a folder of a machine's disk, which need not be its own: so the files of
        such a release are copied to the run's artifacts.
        """
        source = story.release.uri
        if not storage.is_remote(source):
            folder = f"{ARTIFACTS}/{story.sha256[:16]}"
            self._client.log_artifacts(self._id, source, folder)
            run = self._client.get_run(self._id)
            source = storage.join(run.info.artifact_uri, folder)
        tags = {RELEASE_TAG: story.release.reference, SHA256_TAG: story.sha256}
        made = self._client.create_model_version(
            story.release.name, source, run_id=self._id, tags=tags
        )
        return str(made.version)


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Raises TrackerError for whatever MLflow, requests or a database raises."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise TrackerError(
                f"{redact(address)} answers: {redact(error)}: set MLFLOW_EXPERIMENT_ID to one "
                "that exists, or unset it"
            ) from error
        raise TrackerError(
            f"no MLflow server answers at {redact(address)} ({redact(error)}): check "
            "MLFLOW_TRACKING_URI, its credentials and the network"
        ) from error


def _experiment_name() -> str:
    """MLflow's own default is `Default`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"


def _key(run_uri: str) -> str:
    """The run's id for all trackers' servers: made once, before any of them hears of it.

    A run's URI will not do, since ~/effnet-ray/runs/pets is another run on every machine.
    """
    uri = storage.join(run_uri, ID)
    if not storage.exists(uri):
        try:
            made = json.dumps({"id": uuid.uuid4().hex}).encode()
            storage.write_bytes(uri, made, exclusive=True)
        except AlreadyExistsError:
            pass  # another driver was first
    return str(json.loads(storage.read_bytes(uri))["id"])


def _tags() -> dict[str, str]:
    """What this call is."""
    told = git_commit()
    tags = {"effnet_ray.version": effnet_ray.__version__}
    if told:
        tags |= {
            "mlflow.source.git.commit": told["commit"],
            "effnet_ray.changed": str(told["changed"]),
        }
    return tags


def redact(told: str | Exception) -> str:
    """An address or an error, in one line of at most 300 characters, without passwords.

    Of a network's errors the innermost says it shortest.
    """
    inner = _innermost(told) if isinstance(told, Exception) else told
    foreign = isinstance(inner, OSError) and not isinstance(told, EffnetRayError)
    line = " ".join(str(inner if foreign else told).split())
    return re.sub(r"//[^/@\s]+@", "//", line)[:300] or type(told).__name__


def _innermost(error: BaseException) -> BaseException:
    within = error.__cause__ or error.__context__
    return _innermost(within) if within else error
