"""Sets up a run: checks its inputs, finds its record or makes one, and fetches its weights."""

import hashlib
from dataclasses import dataclass, replace

from effnet_ray import storage
from effnet_ray.data import feature_cache, manifest as manifests, train_labels
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.feature_cache import FOLDER
from effnet_ray.data.manifest import Manifest
from effnet_ray.data.source_size import typical_side
from effnet_ray.errors import RecipeError
from effnet_ray.model import pretrained
from effnet_ray.model.pretrained import Weights
from effnet_ray.placement import Placement
from effnet_ray.recipe import SYNC, Recipe
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.release_format.record import read_file
from effnet_ray.storage.names import check_name
from effnet_ray.train import run_record
from effnet_ray.train.compile_rule import compiles_by_default
from effnet_ray.train.run_record import Result, Run
from effnet_ray.train.teacher import Teacher, read_teacher
from effnet_ray.train.worker_job import WorkerJob


@dataclass(frozen=True, slots=True)
class RunSetup:
    """A run that is ready to train."""

    job: WorkerJob
    new: bool
    """Whether the run is not recorded yet."""


def set_up_run(
    recipe: Recipe,
    placement: Placement,
    data: str,
    *,
    runs: str,
    name: str | None = None,
    mirror: str | None = None,
    features_in: str | None = None,
    bfloat16: bool = True,
    cores: int | None = None,
) -> RunSetup | Result:
    """Check and prepare a run; return its result if it is finished.

    `bfloat16`: the GPUs compute in bfloat16 at full speed. `cores`: the CPU cores of this machine
    if all workers run on them. The others are those of `finetune`.
    Writes nothing but the pretrained weights, shared by runs. Raises InputError.
    """
    data, runs = storage.absolute(data), storage.absolute(runs)
    manifest = manifests.load(data)
    run_uri = find_run_uri(recipe, manifest, runs, name)
    recorded = load_same_run(run_uri, recipe, manifest)
    result = run_record.load_result(run_uri) if recorded else None
    if result:
        return result
    manifests.check_trainable(manifest.limited(recipe.limit), data)
    run = recorded
    if run is None:
        weights = pretrained.resolve(recipe)
        recipe = for_new_run(recipe, manifest, data, placement.gpus)
        resolved = _resolve(recipe, placement, weights, manifest, bfloat16=bfloat16)
        if cores and recipe.compile is None:
            images = manifest.limited(recipe.limit).images["train"]
            resolved = replace(resolved, compile=compiles_by_default(resolved, images, cores))
        teacher = _find_teacher(resolved, manifest, runs)
        digest = _store_weights(runs, pretrained.fetch(weights, mirror))
        run = _new_run(run_uri, resolved, placement, data, manifest, weights, digest)
        run = replace(run, teacher=teacher)
    check_sync(run.recipe, placement)
    dataset = _dataset(run, manifest, data, features_in or storage.join(runs, FOLDER))
    return RunSetup(_worker_job(run, run_uri, dataset, placement, runs), recorded is None)


def _worker_job(
    run: Run, run_uri: str, dataset: Dataset, placement: Placement, runs: str
) -> WorkerJob:
    """What the workers of the run get."""
    return WorkerJob(
        run,
        run_uri,
        dataset,
        placement,
        weights_uri=_weights_uri(runs, run.weights_sha256),
        teacher_uri=_weights_uri(runs, run.teacher.weights_sha256) if run.teacher else None,
    )


def find_run_uri(recipe: Recipe, manifest: Manifest, runs: str, name: str | None) -> str:
    """The URI of the run of this name, by default the one derived from recipe and data.

    Raises RecipeError if the name is not a safe folder name.
    """
    name = name or run_record.default_name(recipe, manifest.fingerprint)
    return storage.join(runs, check_run_name(name))


def for_data(recipe: Recipe, manifest: Manifest, gpus: int) -> Recipe:
    """The recipe with the defaults that depend on the numbers of train images and GPUs."""
    return recipe.for_images(manifest.limited(recipe.limit).images.get("train", 0), gpus)


def for_new_run(recipe: Recipe, manifest: Manifest, data: str, gpus: int) -> Recipe:
    """The recipe with the defaults that depend on the data set, its images and the GPUs.

    Raises DatasetError if the first images are not what was packed.
    """
    recipe = for_data(recipe, manifest, gpus)
    if not recipe.size_follows_images:
        return recipe
    return recipe.for_sides(typical_side(manifest, data))


def load_same_run(run_uri: str, recipe: Recipe, manifest: Manifest) -> Run | None:
    """The recorded run, None if it is new. Raises RunExistsError if it has other inputs."""
    recorded = run_record.load(run_uri)
    if recorded:
        expected = recipe
        if recipe.rate_follows_images:  # the defaults of its start, whatever today's are
            started = recorded.recipe
            expected = replace(recipe, batch_size=started.batch_size, lr=started.lr)
        run_record.check_same(recorded, expected, manifest.fingerprint)
    return recorded


def check_run_name(name: str) -> str:
    """Return the run's name. Raises RecipeError if it is not a safe folder name."""
    return check_name(name, "a run", RecipeError)


def check_sync(recipe: Recipe, placement: Placement) -> None:
    """Raises RecipeError if the workers cannot use SyncBatchNorm although the recipe does."""
    low, high = placement.worker_range
    fits = placement.on_gpu and low == high == recipe.lanes
    if recipe.batchnorm == SYNC and not fits:
        raise RecipeError(
            f"batchnorm is sync with {high} workers of {placement.gpus_per_worker or 0:g} GPUs: "
            "expected one GPU worker for each micro-batch "
            f"(--workers {recipe.lanes} --gpus-per-worker 1; batch_size / micro_batch is "
            f"{recipe.lanes}); or choose train or frozen"
        )


def _resolve(
    recipe: Recipe,
    placement: Placement,
    weights: Weights,
    manifest: Manifest,
    *,
    bfloat16: bool,
) -> Recipe:
    """The resolved recipe. Raises RecipeError if it does not fit the data or the placement."""
    resolved = recipe.resolved(
        weights.spec,
        workers=placement.worker_range[1],
        on_gpu=placement.on_gpu,
        bfloat16=bfloat16,
        task=manifest.task,
    )
    check_sync(resolved, placement)
    return resolved


def _find_teacher(recipe: Recipe, manifest: Manifest, runs: str) -> Teacher | None:
    """The teacher of a resolved recipe, whose weights are stored for the run.

    Raises WeightsError if it is unsuitable.
    """
    if not recipe.teacher:
        return None
    teacher = read_teacher(recipe.teacher, manifest.classes, recipe.task or manifest.task)
    _store_weights(runs, read_file(teacher.uri, WEIGHTS))
    return teacher


def _store_weights(runs: str, content: bytes | None) -> str:
    """Store a pretrained file, shared by runs; return its SHA-256, or "" if there is none."""
    if not content:
        return ""
    digest = hashlib.sha256(content).hexdigest()
    uri = _weights_uri(runs, digest)
    if uri and not storage.exists(uri):
        storage.write_bytes(uri, content)
    return digest


def _new_run(
    run_uri: str,
    recipe: Recipe,
    placement: Placement,
    data: str,
    manifest: Manifest,
    weights: Weights,
    digest: str,
) -> Run:
    """A run of a resolved recipe; `digest` is the SHA-256 of its pretrained file."""
    return Run(
        name=run_uri.rpartition("/")[2],
        recipe=recipe,
        spec=pretrained.input_spec(recipe, weights.spec),
        classes=manifest.classes,
        data=data,
        fingerprint=manifest.fingerprint,
        weights=weights.name,
        weights_sha256=digest,
        weights_head=pretrained.head_classes(weights, manifest.classes),
        gpus=placement.gpus,
    )


def _weights_uri(runs: str, digest: str) -> str | None:
    """Where a pretrained file is stored, shared by the runs that start from it."""
    return storage.join(runs, "weights", f"{digest}.safetensors") if digest else None


def _dataset(run: Run, manifest: Manifest, data: str, features: str) -> Dataset:
    """What workers read, with labels if the recipe's plan or loss needs them."""
    limited = manifest.limited(run.recipe.limit)
    return Dataset(
        limited,
        manifests.folder(data),
        run.recipe,
        run.spec,
        labels=train_labels.read_train_labels(limited, data) if run.recipe.needs_labels else None,
        features=features,
        backbone=run.weights_sha256,
        teacher=_teacher_folder(run, run.teacher, limited, features) if run.teacher else "",
    )


def _teacher_folder(run: Run, teacher: Teacher, manifest: Manifest, features: str) -> str:
    """Where the teacher's logits are kept, shared by the runs that learn from it."""
    return feature_cache.teacher_folder(
        features,
        weights=teacher.weights_sha256,
        variant=teacher.variant,
        spec=teacher.spec,
        outputs=teacher.outputs(run.classes),
        manifest=manifest,
        precision=run.recipe.precision,
    )
