"""The artefacts that the project reads: how they are made, and what reads them."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from effnet_ray.cli.check import check_job
from effnet_ray.cli.data import data_job
from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import Job, main
from effnet_ray.cli.models import models_job
from effnet_ray.cli.tune import tune_job
from effnet_ray.data import feature_cache, manifest as manifests
from effnet_ray.data.feature_cache import FeatureRows
from effnet_ray.data.plan import Plan
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.source_size import typical_side
from effnet_ray.data.train_labels import read_train_labels
from effnet_ray.errors import EffnetRayError
from effnet_ray.inference import image_sources
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.recipe import Recipe
from effnet_ray.release.load import load_release
from effnet_ray.release.store import ModelStore
from effnet_ray.storage import checksummed_json
from effnet_ray.sweep import sweep_record
from effnet_ray.sweep.asha import Brackets
from effnet_ray.sweep.sweep_record import Sweep, Trial, TrialPoint
from effnet_ray.sweep.trial_log import TrialLog
from effnet_ray.sweep.variant_schedule import VariantSchedule
from effnet_ray.train import checkpoint, run_record
from support.finished_runs import report, result, run
from support.loop_worker import new_state, settled
from support.releases import released
from support.sources import write_hugging_face

ROOT = Path(__file__).parents[2]
PER_CLASS = 8


@dataclass(frozen=True)
class Target:
    """One kind of artefact."""

    name: str
    make: Callable[[Path], None]
    """Writes an intact one into a folder."""
    files: str
    """Glob of the files to mutate."""
    read: Callable[[Path], None]
    """What reads it. May raise EffnetRayError."""
    seal: Callable[[Path, Path], None] = lambda folder, file: None
    """Makes the digests of a mutated file true, as whoever can write it can."""
    intact: str = "read"
    """What becomes of an intact one; `refused` where reading it stops at what does not exist."""


class Refused(EffnetRayError):
    """A job ended with exit code 1 or 2."""


def replace_file(file: Path, content: bytes) -> None:
    """Another file of this name: the file itself may have other names."""
    file.unlink()
    file.write_bytes(content)


def run_job(job: Job, *flags: str) -> None:
    """Run a job. Raises Refused with what it printed, unless it succeeded."""
    printed = io.StringIO()
    with redirect_stderr(printed), redirect_stdout(io.StringIO()):
        try:
            code = main(job, flags)
        except SystemExit as error:  # tyro's
            code = int(error.code or 0)
    if code:
        assert code in (1, 2), code
        lines = printed.getvalue().strip().splitlines()
        raise Refused(lines[-1] if lines else "")


# --- data sets


def write_images(folder: Path) -> None:
    for name, seed in (("cat", 0), ("dog", 1)):
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.random.default_rng([seed, number]).integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(
                folder / name / f"{number}.{'png' if number % 2 else 'jpg'}"
            )


def make_data(folder: Path) -> None:
    write_images(folder / "images")
    pack(str(folder / "images"), str(folder / "data"), Packing(eval_fraction=0.25))
    shutil.rmtree(folder / "images")


def read_data(folder: Path) -> None:
    """What a run reads of its data set, before and during an epoch."""
    data = str(folder / "data")
    manifest = manifests.load(data)
    manifests.check_trainable(manifest, data)
    read_train_labels(manifest, data)
    typical_side(manifest, data)
    Plan(manifest.index("train"), seed=0, batch_size=4, micro_batch=2).chunk(0, 1, 0)
    for split in manifest.splits:
        for group in range(len(manifest.index(split).sizes)):
            rows = RowGroup(manifest, data, split, group, limited=False)
            for row in range(int(manifest.index(split).sizes[group])):
                rows.record(row)


def read_data_page(folder: Path) -> None:
    run_job(data_job, str(folder / "data"), "--page", str(folder / "page.html"))


def seal_data(folder: Path, file: Path) -> None:
    record_file = folder / "data/manifest.json"
    record = json.loads(record_file.read_text())
    for shard in (shard for shards in record["splits"].values() for shard in shards):
        if file == folder / "data" / shard["path"]:
            content = file.read_bytes()
            shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if file.name == "labels.parquet":
        record["labels_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    splits = {
        name: [(shard["path"], shard["row_groups"], shard["sha256"]) for shard in shards]
        for name, shards in sorted(record["splits"].items())
    }
    content = json.dumps({"classes": record["classes"], "splits": splits}).encode()
    record["fingerprint"] = hashlib.sha256(content).hexdigest()
    replace_file(record_file, json.dumps(record).encode())


# --- sources


def make_parquet(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "source").mkdir()
    write_hugging_face(folder / "images", folder / "source", splits=("train", "validation"))
    shutil.rmtree(folder / "images")


def read_parquet(folder: Path) -> None:
    """Packed, used in place, and as images to predict."""
    source, errors = str(folder / "source"), []
    for read in (
        lambda: pack(source, str(folder / "out"), Packing()),
        lambda: list(predicted(source)),
        lambda: read_in_place(source),
    ):
        try:
            read()
        except EffnetRayError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_in_place(source: str) -> None:
    manifest = pack(source, source, Packing(in_place=True))
    for split in manifest.splits:
        for group in np.flatnonzero(manifest.index(split).sizes).tolist():
            RowGroup(manifest, source, split, group, limited=False).record(0)


def predicted(source: str) -> Iterator[Any]:
    actual = image_sources.find_images(source)
    for unit in actual.units:
        yield from actual.read(unit)


def tar_of(folder: Path, mode: str, name: str) -> None:
    with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
        for file in sorted((folder / "images").rglob("*.*")):
            stem = f"{file.parent.name}{file.stem}"
            tar.add(file, f"{stem}{file.suffix}")
            for suffix, text in (("cls", file.parent.name), ("json", json.dumps({"label": "a"}))):
                if (suffix == "json") == (int(file.stem) == 0):
                    info = tarfile.TarInfo(f"{stem}.{suffix}")
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))


def make_archives(folder: Path) -> None:
    write_images(folder / "images")
    (folder / "tar").mkdir()
    (folder / "tgz").mkdir()
    tar_of(folder, "w", "tar/a.tar")
    tar_of(folder, "w:gz", "tgz/a.tgz")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("cat/1.jpg", b"x")
    (folder / "zip").mkdir()
    shutil.move(str(folder / "images"), str(folder / "zip/images"))
    shutil.move(str(folder / "a.zip"), str(folder / "zip/images/cat/a.zip"))


def read_archives(folder: Path) -> None:
    errors = []
    for source in ("tar", "tgz", "zip/images", "zip/images/cat/a.zip"):
        try:
            pack(str(folder / source), str(folder / f"out-{source.replace('/', '-')}"), Packing())
        except EffnetRayError as error:
            errors.append(error)
    if len(errors) > 1:  # a zip is no source
        raise errors[0]


def make_tables(folder: Path) -> None:
    write_images(folder)
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    rows = [f"{path},{path[:3]},g{number % 5}" for number, path in enumerate(paths)]
    (folder / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    decided = [f"{path},{path[:3]},dog,relabel:dog" for path in paths[:2]]
    (folder / "corrections.csv").write_text("\n".join(["path,label,suggested,decision", *decided]))
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "classes.json").write_text('["cat", "dog"]')
    table = pa.table({"path": paths, "label": [path[:3] for path in paths]})
    pq.write_table(table, folder / "table.parquet")


def read_tables(folder: Path) -> None:
    errors = []
    for number, (source, more) in enumerate((
        ("labels.csv", {"corrections": "corrections.csv", "group_column": "group"}),
        ("labels.csv", {"classes": "classes.txt", "task": "multilabel"}),
        ("table.parquet", {"classes": "classes.json"}),
    )):  # fmt: skip
        options = {key: value if key in ("group_column", "task") else str(folder / value)
                   for key, value in more.items()}  # fmt: skip
        try:
            pack(str(folder / source), str(folder / f"out{number}"), Packing(**options))  # type: ignore[arg-type]
        except EffnetRayError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# --- runs


def make_features(folder: Path) -> None:
    rows = FeatureRows(np.ones((4, 3), np.float16), np.arange(4), np.arange(4), [""] * 4)
    feature_cache.write(str(folder / "00000.parquet"), [rows])
    feature_cache.write_record(str(folder), ["00000.parquet"])


def read_features(folder: Path) -> None:
    actual = feature_cache.read_record(str(folder))
    for name in actual or {}:
        feature_cache.bad_images(f"{folder}/{name}")
        feature_cache.read(f"{folder}/{name}", 0)


def seal_features(folder: Path, file: Path) -> None:
    record = json.loads((folder / "features.json").read_text())
    record["files"][file.name]["bytes"] = file.stat().st_size
    replace_file(folder / "features.json", json.dumps(record).encode())


def make_run(folder: Path) -> None:
    uri = str(folder / "runs/birds")
    run_record.create(run(), uri)
    run_record.write_result(replace(result(uri, "x"), run_uri=uri))


def read_run(folder: Path) -> None:
    uri = str(folder / "runs/birds")
    recorded = run_record.load(uri)
    if recorded:
        run_record.check_same(recorded, run().recipe, "f" * 64)
    run_record.load_result(uri)


def make_checkpoint(folder: Path) -> None:
    state = new_state(settled(ema_decay=0.0))
    state.step, state.history = 1, [report(0, 0.75)]
    checkpoint.write(checkpoint.snapshot(state), str(folder / "checkpoints"))


def read_checkpoint(folder: Path) -> None:
    """Skipped if it is damaged, else resumed from."""
    damaged: list[str] = []
    actual = checkpoint.newest(str(folder / "checkpoints"), damaged.append)
    assert actual or damaged
    if actual:
        actual.load_into(new_state(settled(ema_decay=0.0)))
    else:
        raise Refused(damaged[0])


def seal_checkpoint(folder: Path, file: Path) -> None:
    record_file = file.parent / "checkpoint.json"
    record = json.loads(record_file.read_text())
    del record["sha256"]
    if file != record_file:
        record["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    content = json.dumps(record, sort_keys=True).encode()
    sealed = {**record, "sha256": hashlib.sha256(content).hexdigest()}
    replace_file(record_file, json.dumps(sealed).encode())


# --- releases


def make_release(folder: Path) -> None:
    released(folder)
    shutil.rmtree(folder / "run")
    ModelStore(str(folder / "store")).promote("birds@v1", "champion")


def read_release(folder: Path) -> None:
    """Loaded, listed, verified, and cleaned up after."""
    store, errors = str(folder / "store"), []
    for verb in (("list",), ("show", "birds@v1"), ("verify",), ("gc", "--older-than", "0")):
        try:
            run_job(models_job, *verb, "--store", store)
        except EffnetRayError as error:
            errors.append(error)
    try:
        load_release("birds@champion", store)
    except EffnetRayError as error:
        errors.append(error)
    if errors:
        raise errors[0]


def seal_release(folder: Path, file: Path) -> None:
    record_file = file.parent / "release.json" if file.parent.name == "v0001" else file
    record = json.loads(record_file.read_text())
    if file != record_file:
        content = file.read_bytes()
        record["files"][file.name] = hashlib.sha256(content).hexdigest()
        record["sizes"][file.name] = len(content)
    record.pop(checksummed_json.CHECKSUM, None)
    replace_file(record_file, checksummed_json.seal(record))


# --- sweeps


SWEEP = Sweep(name="pets", recipe=Recipe(weights="none"), variants=("b0", "b7"), trials=4,
              space={"lr": "log:1e-4:1e-2"}, searcher="random", budget=None, data="/data",
              fingerprint="f00d")  # fmt: skip


def make_sweep(folder: Path) -> None:
    sweep_record.create(SWEEP, str(folder))
    for number, state in enumerate((sweep_record.FINISHED, sweep_record.RUNNING)):
        points = tuple(
            TrialPoint(reached=r, eval_top1=r, device_seconds=9 * r) for r in (0.5, 1.0)
        )
        trial = Trial(number=number, variant="b0", settings={"lr": 0.001}, state=state,
                      run=f"pets-{number:03d}-b0", curve=points)  # fmt: skip
        sweep_record.write_trial(trial, str(folder))
    sweep_record.write_outcome({"best": 1}, str(folder))


def read_sweep(folder: Path) -> None:
    uri = str(folder)
    sweep_record.recorded_data(uri)
    same = sweep_record.as_recorded(SWEEP, uri, Recipe(), None)
    sweep_record.create(same, uri)
    sweep_record.has_outcome(uri)
    past = sweep_record.load_trials(uri)
    schedule = VariantSchedule({"b0": 10.0, "b7": 480.0}, 4, lambda number: {"lr": 0.1}, None)
    log = TrialLog(SWEEP, uri, schedule, Brackets(), past, on_progress=lambda progress: None,
                   observe=lambda trial: None, result=lambda run: None)  # fmt: skip
    assert log.spent_before >= 0 or past


# --- settings


def make_recipe(folder: Path) -> None:
    shutil.copy(ROOT / "recipes/keras-dogs.json", folder / "recipe.json")
    (folder / "space.json").write_text(json.dumps({"lr": "log:1e-4:1e-2", "dropout": [0.1, 0.2]}))


def read_recipe(folder: Path) -> None:
    """As far as the data set, which does not exist."""
    nowhere = ("--data", str(folder / "nowhere"), "--runs", str(folder), "--store", str(folder))
    recipe = ("--recipe", str(folder / "recipe.json"))
    run_job(finetune_job, *recipe, *nowhere)


def read_space(folder: Path) -> None:
    nowhere = ("--data", str(folder / "nowhere"), "--runs", str(folder), "--store", str(folder))
    run_job(tune_job, "--space", str(folder / "space.json"), *nowhere)


def cluster_file(name: str) -> Target:
    """Exit code 1 is a report of findings."""

    def make(folder: Path) -> None:
        shutil.copy(ROOT / "cluster" / name, folder)

    def read(folder: Path) -> None:
        run_job(check_job, "--cluster-file", str(folder / name.rpartition("/")[2]))

    return Target(name, make, "*.yaml", read)


TARGETS = (
    Target("manifest", make_data, "data/manifest.json", read_data, seal_data),
    Target("shards", make_data, "data/*/*.parquet", read_data, seal_data),
    Target("labels", make_data, "data/labels.parquet", read_data, seal_data),
    Target("data page", make_data, "data/**/*.*", read_data_page, seal_data),
    Target("parquet", make_parquet, "source/data/*.parquet", read_parquet),
    Target("archives", make_archives, "**/a.*", read_archives),
    Target("tables", make_tables, "*.*", read_tables),
    Target("features", make_features, "*.*", read_features, seal_features),
    Target("run", make_run, "runs/birds/*.json", read_run),
    Target("checkpoint", make_checkpoint, "checkpoints/*/*.*", read_checkpoint, seal_checkpoint),
    Target("release", make_release, "store/birds/**/*.json", read_release, seal_release),
    Target("weights", make_release, "store/birds/v0001/*.safetensors", read_release, seal_release),
    Target("sweep", make_sweep, "**/*.json", read_sweep),
    Target("recipe", make_recipe, "recipe.json", read_recipe, intact="refused"),
    Target("space", make_recipe, "space.json", read_space, intact="refused"),
    *map(cluster_file, ("aws.yaml", "gcp.yaml", "kuberay/cluster.yaml", "kuberay/nightly.yaml")),
)
