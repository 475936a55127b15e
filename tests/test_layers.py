"""The order of the modules and the doors to the libraries, read off every import statement."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "effnet_ray"

ORDER = (
    "errors records variants speed tasks recipe phases placement retry disk storage "
    "uploads conditional sealed "
    "data.manifest data.augment data.images data.classes data.archives data.sources data.splits "
    "data.duplicates data.shards data.report data.in_place data.pack data.sample data.balance "
    "data.order data.labels data.rows data.spread data.features data.chunks data.ingest "
    "model.drop model.network model.compiled model.average model.weights model.optim "
    "model.cost "
    "train.reports train.per_class train.metrics train.precision train.ranking train.scaling "
    "train.state "
    "train.mixing train.step train.memory train.loop train.checkpoint train.audit "
    "train.quarantine train.record train.progress train.drain train.start train.worker "
    "train.machines train.session train.actors train.features train.waiting train.finetune "
    "store.names store.shelf store.publishing store.aliases store.upkeep store.releases "
    "store.catalog "
    "use.opened use.sight use.shown use.sums use.figures use.several use.evaluate use.plots "
    "use.report use.export use.found use.said use.predict use.answers use.bound use.serve "
    "release.card release.provenance release.test_split release.run "
    "sweep.space sweep.ladder sweep.schedule sweep.record sweep.book sweep.outcome sweep.costs "
    "sweep.resources sweep.searchers sweep.trial sweep.tune sweep.publish sweep.report "
    "track.points track.story track.mlflow track.tensorboard track.trackers "
    "check.findings check.ec2 check.cluster_security check.cluster_file check.places "
    "check.inputs check.working_dir check.cluster check.preflight "
    "console.people console.packing console.sweeping console.checking console.models "
    "console.evaluating "
    "cli.main cli.flags cli.checking cli.finetuning cli.packing cli.sweeping cli.models "
    "cli.using cli.evaluating cli.predicting cli.serving"
).split()
"""Top to bottom: a module imports only from modules before it."""

DOORS = {
    "ray": "data.spread data.ingest train.progress train.drain train.machines train.session "
    "train.worker train.actors train.features train.waiting train.finetune sweep.schedule "
    "sweep.costs sweep.searchers sweep.trial check.cluster_file check.working_dir "
    "check.cluster use.said use.serve",
    "timm": "model.",
    "s3fs": "storage",
    "botocore": "retry storage check.ec2 check.cluster_file check.places",
    "tenacity": "retry",
    "torch": "model. train. use.sight use.export track.tensorboard",
    "mlflow": "track.mlflow",
    "tensorboard": "track.tensorboard",
    "PIL": "data.augment data.images data.sample use.plots",
    "pickle": "",
    "_pickle": "",
    "cloudpickle": "",
    "dill": "",
}
"""Library → the modules that may import it; a name that ends in a dot means a folder."""

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}


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
