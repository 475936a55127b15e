"""The order of the modules and the doors to the libraries, read off every import statement."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.layers import DOORS, ORDER

PACKAGE = Path(__file__).parents[1] / "effnet_ray"

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {
    name: path
    for name, path in FILES.items()
    if path.name != "__init__.py" or name == "storage"  # a package with an API of its own
}


@cache
def tree(name: str) -> ast.Module:
    """The parsed file."""
    return ast.parse(FILES[name].read_text())


@cache
def imports(name: str) -> tuple[str, ...]:
    """Every name a module imports, dotted, also inside functions; relative ones with dots."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own(name: str) -> set[str]:
    """The modules of this package that a module imports; unknown names come back as they are."""
    result = {i.removeprefix("effnet_ray.") for i in imports(name) if i.startswith("effnet_ray.")}
    return {i if i in MODULES else i.rpartition(".")[0] or i for i in result}


def room(name: str) -> str:
    """The package that a module is in."""
    return name.partition(".")[0]


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


def test_no_two_rooms_import_each_other() -> None:
    rooms = {(room(name), room(other)) for name in MODULES for other in own(name)}
    assert sorted(pair for pair in rooms if pair[::-1] in rooms and pair[0] < pair[1]) == []


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


TEMPORARY = {
    "inference.onnx_outputs", "inference.quantize", "model.pretrained", "packing.archives",
    "packing.shards", "train.checkpoint",
}  # fmt: skip
"""What these modules write themselves lies in temporary folders."""
EXCEPTIONS = {"packing.sample", "runtime.shared_folders"}
"""The sample's images are made again; a probe is no file of the user's."""


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user_are_written_by_storage_alone(name: str) -> None:
    """So whatever `test_storage` and `test_limits` hold of its writes holds of every writer."""
    if name.split(".")[0] != "storage" and name not in TEMPORARY | EXCEPTIONS:
        assert [ast.unparse(call) for call in calls(name) if writes_a_file(call)] == []


def calls(name: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]


def writes_a_file(call: ast.Call) -> bool:
    """By the call's text: a write of another object than `storage`, or `open` to write."""
    owner, _, function = ast.unparse(call.func).rpartition(".")
    if function == "open":
        modes = {ast.unparse(each) for each in [*call.args, *(k.value for k in call.keywords)]}
        return bool(modes & {repr(f"{mode}{kind}") for mode in "wxa" for kind in ("", "b", "t")})
    return function in ("write_bytes", "write_text", "save_file") and owner != "storage"


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(name: str) -> None:
    loads = [n for n in calls(name) if ast.unparse(n.func) == "torch.load"]
    assert all("weights_only=True" in ast.unparse(n) for n in loads)
    assert not loads or name == "model.packaged_weights"
    assert "torch.load" not in imports(name)
    assert not {each.split(".")[0] for each in imports(name)} & PICKLES
