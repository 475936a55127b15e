"""What several test files share: S3 servers, photographs, a packed data set."""

import functools
import gc
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from support.faults import Proxy, proxy
from support.laws import RECIPE
from support.plain_run import PlainRun, plain_run
from support.servers import fresh_bucket, moto_server, rclone_server, s3_environment
from support.sources import files, write_hugging_face

from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.packing.sample import pack_sample

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before anybody imports it

settings.register_profile(
    "effnet",
    max_examples=40,
    derandomize=True,  # a run is red for a change, not for a draw
    deadline=None,  # no test asserts a time
    database=None,  # nothing is left behind
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# For finding what no run has drawn yet: pytest --hypothesis-profile=search
settings.register_profile(
    "search", settings.get_profile("effnet"), max_examples=1000, derandomize=False
)
settings.load_profile("effnet")


QUICK = (
    "asha audit augment class_balance dependencies docs duplicates errors eval_inputs in_place "
    "kuberay labels layers logits messages metric_definitions metrics mixup multiclass_metrics "
    "multilabel_metrics mutations nodes optimizer pending plan publish quarantine recipe "
    "recipes resources results run_record searchers space splits sync_batchnorm terminal "
    "throughput trial_log variant_schedule variants"
).split()
"""Files whose tests take seconds, all together."""


def pytest_configure(config: pytest.Config) -> None:
    """Files that are named on the command line are run, not only their quick tests."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if named and config.option.markexpr == "quick":
        config.option.markexpr = "not long"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without quick tests a file is not even imported, which takes longer than they do."""
    if config.option.markexpr != "quick" or not collection_path.stem.startswith("test_"):
        return None
    listed = collection_path.stem.removeprefix("test_") in QUICK
    return not (listed or "pytest.mark.quick" in collection_path.read_text()) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `QUICK` files, unless they have a mark of their own."""
    for item in items:
        slow = any(item.get_closest_marker(name) for name in ("ray", "heavy", "long"))
        if item.path.stem.removeprefix("test_") in QUICK and not slow:
            item.add_marker("quick")


def pytest_collection_finish() -> None:
    """What is imported and collected stays: every `gc.collect` would otherwise take 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bit-equality wants one order of additions."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- object storage


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of an rclone server."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Endpoint of a moto server."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["rclone", "moto"])
def s3(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix in a fresh bucket, on each server in turn."""
    with s3_environment(request.getfixturevalue(request.param)):
        yield f"{fresh_bucket()}/data"


# --- images

WIDTH, HEIGHT, PER_CLASS = 120, 90, 8


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of eight photographs each, JPEG and PNG. Read only."""
    folder = tmp_path_factory.mktemp("photographs")
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    for name, photograph, top in (
        ("roof", china, 0),
        ("garden", china, 240),
        ("dahlia", flower, 120),
    ):
        (folder / name).mkdir()
        for index in range(PER_CLASS):
            row, column = divmod(index, 4)
            left, upper = column * 150 + row * 20, top + row * HEIGHT
            tile = photograph.crop((left, upper, left + WIDTH, upper + HEIGHT))
            tile.save(folder / name / f"{index}.{'png' if index % 4 == 3 else 'jpg'}")
    return folder


@pytest.fixture(scope="session")
def packed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as a data set: 18 train, 6 eval. Read only."""
    out = tmp_path_factory.mktemp("packed")
    pack(str(photographs), str(out), Packing(eval_fraction=0.25))
    return out


@pytest.fixture(scope="session")
def weights_mirror(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mirror with B0's weights, made up."""
    folder = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(0)
    made = timm.create_model("tf_efficientnet_b0")
    save_file(made.state_dict(), folder / "tf_efficientnet_b0.ns_jft_in1k.safetensors")
    return str(folder)


@pytest.fixture
def shards(photographs: Path, tmp_path: Path) -> Path:
    """The photographs as `datasets` writes them, the classes mixed."""
    folder = tmp_path / "mixed"
    result = files(photographs)
    random.Random(0).shuffle(result)
    for number, path in enumerate(result):
        target = folder / path.parent.name / f"{number:02d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "shards").mkdir()
    write_hugging_face(folder, tmp_path / "shards", splits=("train", "validation"))
    return tmp_path / "shards"


# --- Ray


@pytest.fixture(scope="session")
def cluster_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before an rclone server with the bucket s3://laws, for the workers of `cluster`."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "laws").mkdir()
    with (
        rclone_server(folder) as endpoint,
        proxy(endpoint) as running,
        s3_environment(running.endpoint),
    ):
        yield running


@pytest.fixture(scope="session")
def cluster(cluster_proxy: Proxy) -> Iterator[None]:
    """The one Ray of the session. Its workers inherit S3's settings, so the proxy comes first."""
    import ray

    from effnet_ray.runtime import session

    session.start_local(3, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample data, packed. Read only."""
    out = tmp_path_factory.mktemp("digits") / "data"
    pack_sample(str(out))
    return str(out)


@pytest.fixture(scope="session")
def undisturbed(
    digits: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], PlainRun]:
    """The run of RECIPE with N workers, in plain processes; made once for each N."""
    folder = str(tmp_path_factory.mktemp("undisturbed"))

    @functools.cache
    def run(workers: int) -> PlainRun:
        return plain_run(RECIPE, digits, folder, f"w{workers}", workers=workers)

    return run


# --- jobs


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Runs a job, `jobs/finetune.py` if not told, with flags that it refuses; the sentence."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*flags: str, job: Callable[..., dict[str, Any]] = finetune_job) -> str:
        assert main(job, list(flags)) == 2
        seen = capsys.readouterr()
        assert seen.out == "" and "Traceback" not in seen.err
        return seen.err.strip().splitlines()[-1]

    return run
