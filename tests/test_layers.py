"""The order of the modules and the doors to the libraries, read off every import statement."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "effnet_ray"

ORDER = (
    "errors variants schema recipe_rules recipe phases placement "
    "storage.names storage.uri storage.backend storage.retry storage.local storage.s3_errors "
    "storage.s3 storage storage.multipart storage.conditional "
    "storage.checksummed_json storage.parquet release.layout release.record "
    "data.manifest data.classes data.augment data.image_checks data.decode data.views "
    "data.class_balance data.plan data.parquet_reads data.train_labels "
    "data.hf_parquet data.row_group data.feature_cache data.chunks "
    "data.thread_executor data.ray_executor data.stream "
    "packing.options packing.listing packing.archive_job packing.webdataset packing.archives "
    "packing.tables packing.sources packing.splits packing.duplicates packing.shards "
    "packing.report packing.in_place packing.pack packing.sample packing.ray_map "
    "model.dropout model.batchnorm model.network model.compile model.ema model.pretrained "
    "model.optimizer model.profile "
    "runtime.events runtime.actors runtime.preemption runtime.nodes runtime.session "
    "runtime.pending "
    "runtime.inference_actors "
    "train.metric_definitions train.epoch_report train.class_metrics train.average_precision "
    "train.mixup train.loss train.metrics train.loss_scale train.run_record train.state "
    "train.evaluation train.step train.oom train.loop train.checkpoint train.checkpoint_writer "
    "train.throughput train.step_log train.events train.worker_job train.device_batches "
    "train.worker_loop train.run_setup train.run_monitor "
    "train.worker train.feature_tasks train.precompute_features train.ray_trainer train.finetune "
    "release.names release.model_folder release.publish release.aliases release.maintenance "
    "release.store release.catalog release.load "
    "inference.options reporting.page reporting.svg reporting.training_curves "
    "inference.logits inference.scorer inference.eval_inputs inference.metric_sums "
    "inference.multiclass "
    "inference.multilabel inference.evaluate inference.plots inference.report inference.export "
    "inference.image_sources inference.predictor inference.predict inference.http_api "
    "inference.request_limit inference.serve "
    "publish.card publish.provenance publish.test_score publish.from_run "
    "sweep.objective sweep.space sweep.variant_schedule sweep.asha sweep.sweep_record "
    "sweep.trial_log sweep.scheduled_search sweep.results sweep.costs sweep.resources "
    "sweep.searchers sweep.trial sweep.tune sweep.publish sweep.report "
    "tracking.metrics tracking.run_history tracking.tracker tracking.mlflow tracking.tensorboard "
    "tracking.trackers "
    "preflight.findings preflight.ec2 preflight.cluster_security preflight.cluster_file "
    "preflight.permissions preflight.inputs preflight.working_dir preflight.cluster "
    "preflight.preflight "
    "cli.terminal cli.parsing cli.flags cli.check cli.release_flags cli.finetune cli.pack "
    "cli.tune_view cli.tune cli.models_tables cli.models cli.evaluate cli.predict cli.serve "
    "cli.all_jobs cli.main"
).split()
"""Top to bottom: a module imports only from modules before it."""

DOORS = {
    "ray": "packing.ray_map data.ray_executor runtime. train.worker "
    "train.precompute_features train.ray_trainer train.finetune "
    "sweep.asha sweep.costs sweep.scheduled_search sweep.searchers "
    "sweep.trial preflight.cluster_file "
    "preflight.working_dir preflight.cluster inference.predictor inference.serve",
    "timm": "model.",
    "s3fs": "storage.s3",
    "fsspec": "storage.s3",
    "aiohttp": "storage.s3_errors",
    "botocore": "storage.s3_errors preflight.ec2 preflight.cluster_file preflight.permissions",
    "tenacity": "storage.retry",
    "torch": "model. train. runtime.inference_actors inference.logits inference.scorer "
    "inference.export tracking.tensorboard",
    "mlflow": "tracking.mlflow",
    "tensorboard": "tracking.tensorboard",
    "PIL": "data.augment data.image_checks data.decode data.views packing.sample inference.plots",
    "pickle": "",
    "_pickle": "",
    "cloudpickle": "",
    "dill": "",
}
"""Library → the modules that may import it; a name that ends in a dot means a folder."""

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {
    name: path
    for name, path in FILES.items()
    if path.name != "__init__.py" or name == "storage"  # a package with an API of its own
}


def tree(name: str) -> ast.Module:
    """The parsed file."""
    return ast.parse(FILES[name].read_text())


def imports(name: str) -> Iterator[str]:
    """Every name a module imports, dotted, also inside functions; relative ones with dots."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own(name: str) -> set[str]:
    """The modules of this package that a module imports; unknown names come back as they are."""
    found = {i.removeprefix("effnet_ray.") for i in imports(name) if i.startswith("effnet_ray.")}
    return {i if i in MODULES else i.rpartition(".")[0] or i for i in found}


def may(name: str, library: str) -> bool:
    """Whether the module is one of the library's doors."""
    doors = DOORS[library].split()
    return any(name == door or (door[-1] == "." and name.startswith(door)) for door in doors)


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(MODULES.keys() - set(ORDER)) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_above(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)]) if name in ORDER else set(ORDER)
    assert own(name) - above - {"__version__"} == set()


@pytest.mark.parametrize("name", MODULES)
def test_of_the_packages_face_modules_use_only_the_version(name: str) -> None:
    nodes = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)]
    face = {n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "effnet_ray"}
    assert face <= {"__version__"}


@pytest.mark.parametrize("name", FILES)
def test_libraries_are_imported_only_at_their_doors(name: str) -> None:
    libraries = {i.split(".")[0] for i in imports(name)} & DOORS.keys()
    assert [library for library in libraries if not may(name, library)] == []


@pytest.mark.parametrize("name", FILES)
def test_imports_are_absolute(name: str) -> None:
    assert [i for i in imports(name) if i.startswith(".")] == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(name: str) -> None:
    called = {ast.unparse(n) for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute)}
    assert "torch.load" not in called and "torch.load" not in imports(name)
