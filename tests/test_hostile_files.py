"""A hostile artefact is read, or refused with one sentence: no code, no hang, no memory."""

import ast
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effnet_ray import errors, safe_json
from effnet_ray.data import hf_parquet, manifest as manifests
from effnet_ray.errors import (
    DatasetError,
    EffnetRayError,
    InputError,
    RecipeError,
    StorageError,
)
from effnet_ray.inference.image_sources import find_images
from effnet_ray.packing import tables, webdataset
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.recipe import Recipe
from effnet_ray.schema import from_dict
from effnet_ray.storage import parquet
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.sweep_record import Sweep

SUPPORT = Path(__file__).parent / "support"
PACKAGE = Path(__file__).parents[1] / "effnet_ray"
RUN_S = 900
"""A run takes a few minutes on a busy machine."""
QUICK = ("manifest", "shards", "labels", "features", "run", "checkpoint", "sweep", "recipe",
         "space", "kuberay/cluster.yaml", "kuberay/nightly.yaml")  # fmt: skip
"""Targets of which a mutant takes milliseconds."""
SLOW = ("data page", "parquet", "archives", "tables", "release", "weights", "aws.yaml", "gcp.yaml")
MAX_MB = 512


SWEEP = Sweep(name="pets", recipe=Recipe(weights="none"), variants=("b0",), trials=4,
              space={"lr": "log:1e-4:1e-2"}, searcher="random", budget=None, data="/data",
              fingerprint="f00d")  # fmt: skip


def mutants(seed: int, count: int, *targets: str) -> dict[str, dict[str, Any]]:
    """What became of `count` mutants of each target, in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "fuzz.py"), str(seed), str(count), *targets],
        capture_output=True, text=True, timeout=RUN_S,
        env={**os.environ, "PYTHONPATH": f"{SUPPORT.parent}:{SUPPORT.parents[1]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == [name for name in result if name in targets] and len(result) == len(
        targets
    )
    failures = [failure for target in result.values() for failure in target["failures"]]
    assert failures == [], "\n\n".join(failures[:5])
    assert all(target["read"] + target["refused"] == count for target in result.values())
    assert max(target["grown_mb"] for target in result.values()) <= MAX_MB
    return result


@pytest.mark.heavy
@pytest.mark.timeout(RUN_S)
def test_a_hundred_mutants_are_read_or_refused() -> None:
    result = mutants(0, 6, *QUICK, *SLOW)
    assert 6 * len(result) >= 100
    assert sum(target["refused"] for target in result.values()) > 30
    assert sum(target["read"] for target in result.values()) > 5


@pytest.mark.long
@pytest.mark.timeout(10 * RUN_S)
def test_five_thousand_mutants_are_read_or_refused() -> None:
    parts = [mutants(1, 360, *QUICK), *(mutants(seed, 45, *SLOW) for seed in (2, 3, 4))]
    counts = [target["read"] + target["refused"] for part in parts for target in part.values()]
    print(sum(counts), json.dumps(parts))
    assert sum(counts) >= 5000


# --- nothing is executed


PICKLED = b"cposix\nmkdir\n(S'%s'\ntR."
"""A pickle that makes a folder when it is loaded."""


def extension(values: pa.Array, name: bytes, parameters: bytes, field: str) -> pa.Field:
    """A field of a type that Ray Data registers, as it is stored in Parquet."""
    metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": parameters}
    return pa.field(field, values.type, metadata=metadata)


def evil_table(pickled: bytes) -> pa.Table:
    """Images, paths and labels that are pickles, of the type of Ray Data's Python objects."""
    name, count = b"ray.data.arrow_pickled_object", 6
    objects = pa.array([pickled] * count, pa.large_binary())
    field, paths = extension(objects, name, b"", "bytes"), pa.array(["x"] * count)
    images = pa.StructArray.from_arrays(
        [objects, paths], fields=[field, pa.field("path", pa.string())]
    )
    columns = {"image": images, "label": pa.array([0, 1] * 3), "path": objects, "group": objects}
    fields = [pa.field("image", images.type), pa.field("label", pa.int64())]
    fields += [extension(objects, name, b"", column) for column in ("path", "group")]
    return pa.table(columns, schema=pa.schema(fields))


def readers(folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that makes Python values of a Parquet file's cells."""
    source, uri = str(folder / "source"), str(folder / "source/train-0.parquet")
    table = pq.read_table(io.BytesIO((folder / "source/train-0.parquet").read_bytes()))
    pq.write_table(table.drop_columns("image"), folder / "table.parquet")
    result = find_images(source)
    return {
        "table": lambda: parquet.read_table(uri),
        "row group": lambda: hf_parquet.read_row_group(uri, 0, "label", parquet.read_footer(uri)),
        "archive": lambda: pack(source, str(folder / "out"), Packing()),
        "list": lambda: tables.index_table(str(folder / "table.parquet"), Packing()),
        "predicted": lambda: list(result.read(result.units[0])),
        "in place": lambda: pack(source, source, Packing(in_place=True)),
    }


def test_a_parquet_file_of_pickled_objects_is_refused_where_ray_data_would_load_them(
    tmp_path: Path,
) -> None:
    import ray.data  # registers its types with Arrow  # noqa: F401

    (tmp_path / "source").mkdir()
    pickled = PICKLED % str(tmp_path / "executed").encode()
    for split in ("train", "validation"):
        pq.write_table(evil_table(pickled), tmp_path / f"source/{split}-0.parquet")
    says = r"arrow_pickled_object.*, whose values may contain code"
    for name, read in readers(tmp_path).items():
        # Of a table other columns are used; this one is left out.
        with pytest.raises(InputError, match="has no column" if name == "list" else says):
            read()
        assert not (tmp_path / "executed").exists(), name
    schema = parquet.read_schema(str(tmp_path / "source/train-0.parquet"))
    assert isinstance(schema.field("path").type, pa.ExtensionType)  # so Ray would have loaded it


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"])
def test_a_tensor_type_whose_shape_is_a_pickle_is_refused_unread(
    tmp_path: Path, name: str
) -> None:
    """CVE-2026-41486: Ray 2.49 to 2.54 unpickled the parameters of its types in a schema."""
    import ray.data  # noqa: F401

    pickled = PICKLED % str(tmp_path / "executed").encode()
    values = pa.array([[0, 1]] * 3, pa.list_(pa.int64(), 2))
    schema = pa.schema([extension(values, name.encode(), pickled, "path")])
    uri = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"path": values}, schema=schema), uri)
    for read in (parquet.read_table, parquet.read_schema):
        with pytest.raises(InputError, match="not readable Parquet"):
            read(uri)
    assert not (tmp_path / "executed").exists()


UNPICKLERS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "joblib.load",
              "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "eval", "exec", "os.system",
              "yaml.load", "yaml.load_all", "shelve.open", "tar.extractall", "tar.extract",
              "shutil.unpack_archive"}  # fmt: skip
SAFE_CALLS = {"model/packaged_weights.py": "torch.load", "safe_yaml.py": "yaml.load_all"}
"""The one with weights_only=True, the other with a loader that derives from SafeLoader."""


def test_the_package_calls_nothing_that_runs_what_it_reads() -> None:
    result = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in UNPICKLERS:
                result[str(path.relative_to(PACKAGE))] = ast.unparse(node.func)
    assert result == SAFE_CALLS


# --- what the mutants have come upon


def test_a_message_is_one_line_that_a_terminal_can_print() -> None:
    error = DatasetError("a\nb\x1b[31m\ud800" + "x" * 10**6 + ": pack again")
    assert str(error).startswith("a b [31m") and str(error).endswith("x: pack again")
    assert str(error).isprintable() and len(str(error)) <= errors.MAX_MESSAGE_CHARS + 3


@pytest.mark.parametrize("text", ["[" * 100_000, '"\\ud800"', "{", "1" * 5000])
def test_json_that_cannot_be_read_or_written_again_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        safe_json.parse(text)
    with pytest.raises(ValueError):
        safe_json.parse(text.encode())
    assert safe_json.parse(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("values", "says"),
    [([], "a list: expected an object"), ({"variant": 1}, "variant is 1")],
)
def test_a_record_of_another_type_is_refused(values: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        from_dict(Recipe, values)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["/etc"], "expected a whole number"), ([[1]], "expected a whole number"),
        ([2**70], "rows in"), ([-1], "rows in"), ([10**9], "rows in"), ("12", "expected a list"),
    ],
)  # fmt: skip
def test_a_shard_with_impossible_rows_is_refused(tmp_path: Path, rows: Any, says: str) -> None:
    shard = {"path": "a.parquet", "row_groups": rows, "bytes": 1000, "sha256": "0" * 64}
    record = {"version": 1, "fingerprint": "", "classes": ["a", "b"], "splits": {"train": [shard]}}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DatasetError, match=says):
        manifests.load(str(tmp_path))


def test_a_manifest_with_another_split_is_refused(tmp_path: Path) -> None:
    record = {"version": 1, "fingerprint": "", "classes": ["a", "b"], "splits": {"../x": []}}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DatasetError, match=r"its splits are \.\./x"):
        manifests.load(str(tmp_path))


@pytest.mark.parametrize("change", [{"space": "x"}, {"side": "x"}, {"recipe": {"lr": "x"}}])
def test_a_sweeps_record_of_other_types_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    uri = str(tmp_path)
    sweep_record.create(SWEEP, uri)
    record = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(record | change))
    with pytest.raises(StorageError, match="is damaged"):
        sweep_record.as_recorded(SWEEP, uri, Recipe(), None)


def tar_with(folder: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / ("a.tar" if mode == "w" else "a.tgz"), mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_member_that_claims_more_than_its_tar_is_refused_and_not_skipped_for_ever(
    tmp_path: Path, kind: bytes
) -> None:
    folder = tar_with(tmp_path / "tars", ("1.bin", b"x"), ("2.cls", b"a"))
    content = bytearray((folder / "a.tar").read_bytes())
    content[124:136] = b"\x80" + b"\0" * 3 + b"\x7f" * 8
    content[148:157] = b" " * 8 + kind
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    (folder / "a.tar").write_bytes(content)
    with pytest.raises(DatasetError, match="bytes by its header"):
        pack(str(folder), str(tmp_path / "out"), Packing())


def test_a_long_name_of_a_compressed_tar_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_HEADER_BYTES", 1000)
    folder = tar_with(tmp_path / "tars", ("x" * 5000 + ".jpg", b"x"), mode="w:gz")
    with pytest.raises(DatasetError, match="a header has"):
        pack(str(folder), str(tmp_path / "out"), Packing())


def test_an_image_beyond_the_limit_is_quarantined_unread(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effnet_ray.data import image_checks

    sizes = sorted(path.stat().st_size for path in photographs.rglob("*.*"))
    monkeypatch.setattr(image_checks, "MAX_FILE_BYTES", sizes[-2])
    manifest = pack(str(photographs), str(tmp_path / "out"), Packing())
    assert manifest.quarantined == 1
    reasons = parquet.read_table(str(tmp_path / "out/quarantine.parquet"))["reason"].to_pylist()
    assert "expected at most" in reasons[0]


def test_a_table_does_not_make_packing_list_the_whole_disk(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files whose common folder is the root of the disk."""
    from effnet_ray import storage

    files = [str(path) for path in sorted(photographs.rglob("*.jpg"))]
    rows = [f"{path},{Path(path).parent.name}" for path in files]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows, "/dev/zero,dahlia"]))
    monkeypatch.setattr(storage, "entries", lambda *args, **options: pytest.fail("listed"))
    with pytest.raises(DatasetError, match=r"1 of the 19 images .* do not exist"):
        tables.index_table(str(tmp_path / "table.csv"), Packing())


def test_the_fuzzer_notices_what_the_law_forbids(tmp_path: Path) -> None:
    """Each in a process of its own: an audit hook cannot be removed."""
    ways = {
        "open(folder.parent / 'beside', 'w')": "open",
        "os.system('true')": "os.system",
        "pickle.loads(pickle.dumps(Path('x')))": "pickle.find_class",
        "time.sleep(3)": "took more than",
        "(folder / 'inside').write_text('x')": "",
    }
    for number, (line, says) in enumerate(ways.items()):
        (tmp_path / str(number)).mkdir()
        script = (
            "import os, pickle, sys, time\nfrom pathlib import Path\nfrom support import fuzz\n"
            "fuzz.HANG_S = 1\nfolder = Path(sys.argv[1])\nwatch = fuzz.Watch(folder)\n"
            "try:\n    with watch.watching():\n        try:\n"
            f"            {line}\n        except BaseException: pass\n"
            "except fuzz.Broken as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / str(number))],
                              capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PYTHONPATH": str(SUPPORT.parent)})  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(says) and bool(done.stdout) == bool(says), line


def test_every_error_of_the_project_takes_what_it_quotes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 20 and all(issubclass(kind, EffnetRayError) for kind in kinds)
    assert all(str(kind("a\nb")) == "a b" and len(str(kind("x" * 9999))) < 2100 for kind in kinds)
