"""A run learns the probabilities of its teacher, whose logits are computed once."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.features import compute_features
from support.laws import RECIPE
from support.plain_run import plain_run
from support.releases import CLASSES, forge, released
from support.runs import assert_once_each, losses, planned, weights
from torch.testing import assert_close

from effnet_ray import ModelStore, Placement, finetune, storage
from effnet_ray.data import feature_cache, manifest as manifests
from effnet_ray.data.chunks import TEACHER, ChunkTask, load_chunks
from effnet_ray.data.views import write_eval_view
from effnet_ray.errors import RecipeError, RunExistsError, WeightsError
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.publish.from_run import release_run
from effnet_ray.recipe import MULTICLASS, MULTILABEL, Recipe
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release_format.record import read_record
from effnet_ray.train import run_record
from effnet_ray.train.batch import Target
from effnet_ray.train.events import ComputingFeatures, Event
from effnet_ray.train.head_features import HeadFeatures
from effnet_ray.train.head_solver import solve_head
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.mixup import MixedImages
from effnet_ray.train.run_record import Result
from effnet_ray.train.run_setup import RunSetup, set_up_run
from effnet_ray.train.state import initial_network
from effnet_ray.train.teacher import Teacher, read_teacher

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]])
TAUGHT = torch.tensor([[1.0, 0.5, -2.0], [3.0, 0.0, 1.0], [torch.nan] * 3])
LABEL = torch.tensor([0, 2, 1])
ALONE: dict[str, Any] = {"teacher": None, "teacher_weight": 0.5}
"""What a recipe without a teacher has."""
DAMAGED = 7
"""Row of the damaged image."""
UNMIXED = MixedImages(torch.zeros(3, 1), torch.ones(3))


def train_loss(
    weight: float, temperature: float = 1.0, class_weights: tuple[float, ...] = (), **fields: Any
) -> TrainLoss:
    recipe = Recipe(
        weights="none", teacher="a/release", teacher_weight=weight,
        teacher_temperature=temperature, **fields,
    )  # fmt: skip
    return TrainLoss.of(recipe, class_weights)


# --- the loss


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_loss_is_the_label_s_and_the_teacher_s_by_its_weight(temperature: float) -> None:
    """Hinton's: the cross-entropy of softened probabilities, times the squared temperature."""
    actual = train_loss(0.3, temperature, label_smoothing=0.1)(
        LOGITS, Target(LABEL, TAUGHT), UNMIXED
    )
    of_label = F.cross_entropy(LOGITS, LABEL, reduction="none", label_smoothing=0.1)
    soft = (TAUGHT / temperature).softmax(1)
    of_teacher = -(soft * (LOGITS / temperature).log_softmax(1)).sum(1) * temperature**2
    assert_close(actual[:2], (0.7 * of_label + 0.3 * of_teacher)[:2])
    assert_close(actual[2], of_label[2])  # the teacher could not read it


def test_a_class_s_weight_is_on_both_parts_of_its_images_loss() -> None:
    target, weights = Target(LABEL, TAUGHT), (10.0, 0.1, 3.0)
    plain = train_loss(0.5, 2.0)(LOGITS, target, UNMIXED)
    weighted = train_loss(0.5, 2.0, weights)(LOGITS, target, UNMIXED)
    assert_close(weighted, plain * torch.tensor(weights)[LABEL])


def test_settings_of_a_teacher_without_one_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"teacher_weight is 0\.9: expected a teacher, too"):
        Recipe(teacher_weight=0.9)


def test_with_several_labels_every_class_is_softened_by_itself() -> None:
    label = F.one_hot(LABEL, 3).to(torch.uint8)
    actual = train_loss(1.0, 2.0)(LOGITS, Target(label, TAUGHT), UNMIXED)
    soft, log = (TAUGHT / 2).sigmoid(), LOGITS / 2
    of_teacher = -(soft * F.logsigmoid(log) + (1 - soft) * F.logsigmoid(-log)).mean(1) * 4
    assert_close(actual[:2], of_teacher[:2])


def test_where_the_network_agrees_with_its_teacher_it_learns_nothing() -> None:
    logits = TAUGHT[:2].clone().requires_grad_()
    target, images = Target(LABEL[:2], TAUGHT[:2].half()), UNMIXED.part(0, 2)
    train_loss(1.0, 3.0)(logits, target, images).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-3


def test_an_unreadable_image_makes_no_gradient_nan() -> None:
    logits = LOGITS.clone().requires_grad_()
    train_loss(0.5)(logits, Target(LABEL, TAUGHT), UNMIXED).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_mixed_image_learns_what_the_teacher_said_of_both() -> None:
    target, partner = Target(LABEL[:2], TAUGHT[:2]), torch.tensor([1, 0])
    loss, logits, share = train_loss(0.5, 2.0), LOGITS[:2], torch.tensor([0.8, 0.3])
    mixed = MixedImages(torch.zeros(2, 1), share, target[partner])
    plain = UNMIXED.part(0, 2)
    expected = share * loss(logits, target, plain) + (1 - share) * loss(
        logits, target[partner], plain
    )
    assert_close(loss(logits, target, mixed), expected)


# --- which releases can teach


def test_a_teacher_s_outputs_are_found_by_class_name(tmp_path: Path) -> None:
    release = released(tmp_path)
    teacher = read_teacher(release.uri, ["3", "1"], MULTICLASS)
    assert teacher.outputs(["3", "1"]) == (3, 1)
    assert teacher.weights_sha256 == release.sha256
    assert (teacher.spec, teacher.classes) == (release.spec, CLASSES)
    assert Teacher.from_json(json.loads(json.dumps(teacher.to_json()))) == teacher


@pytest.mark.parametrize(
    ("classes", "task", "reason"),
    [
        (["0", "cat", "dog"], MULTICLASS, r"does not know 2 of the data set's 3 classes \('cat'"),
        (["0", "1"], MULTILABEL, "is multiclass, but this run is multilabel"),
    ],
)
def test_an_unsuitable_teacher_is_refused(
    tmp_path: Path, classes: list[str], task: str, reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        read_teacher(released(tmp_path).uri, classes, task)


def test_a_folder_that_is_no_release_cannot_teach(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"teacher .* is not a release"):
        read_teacher(str(tmp_path), ["0"], MULTICLASS)


def test_a_name_is_no_uri() -> None:
    with pytest.raises(WeightsError, match=r"pass ModelStore\(…\).find\(name\).uri"):
        read_teacher("digits@v1", ["0"], MULTICLASS)


def test_a_teacher_without_weights_is_refused_in_a_sentence(tmp_path: Path) -> None:
    release = released(tmp_path)
    forge(Path(release.uri), "model.safetensors", None)
    with pytest.raises(WeightsError, match="is not a release"):
        read_teacher(release.uri, ["0"], MULTICLASS)


def test_a_damaged_teacher_is_refused_in_a_sentence(tmp_path: Path) -> None:
    release = released(tmp_path)
    config = Path(release.uri) / "config.json"
    config.write_text(config.read_text().replace("bicubic", "bicubik"))
    with pytest.raises(WeightsError, match=r"is not a release \(.*config.json") as refused:
        read_teacher(release.uri, ["0"], MULTICLASS)
    assert "\n" not in str(refused.value)


# --- runs


@pytest.fixture(scope="module")
def teacher(digits: str, tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    """A release that knows the digits by name, and reads them at a size of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = replace(RECIPE, image_size=40, seed=3, batchnorm="train", micro_batch=8)
    result = plain_run(recipe, digits, str(folder / "runs"), "teacher").finished
    return load_release(release_run(result, ModelStore(str(folder / "store"))).uri, "")


@pytest.fixture(scope="module")
def taught(teacher: LoadedRelease) -> Recipe:
    """RECIPE with that teacher."""
    return replace(RECIPE, teacher=teacher.uri, teacher_weight=0.7)


@pytest.fixture
def setups(digits: str, tmp_path: Path, taught: Recipe) -> Iterator[RunSetup]:
    """The run of `taught`, before it starts."""
    placement = Placement(workers="1", audit=True)
    setup = set_up_run(taught, placement, digits, runs=str(tmp_path), name="taught")
    assert isinstance(setup, RunSetup)
    yield setup


def test_a_taught_run_depends_on_no_number_of_workers_and_resumes_bit_equal(
    digits: str, tmp_path: Path, taught: Recipe
) -> None:
    one = plain_run(taught, digits, str(tmp_path), "one").finished
    three = plain_run(taught, digits, str(tmp_path), "three", workers=3).finished
    assert losses(three) == pytest.approx(losses(one), abs=1e-4)
    assert_once_each(three, planned(digits))
    plain_run(taught, digits, str(tmp_path), "killed", kill_after_steps=9)
    resumed = plain_run(taught, digits, str(tmp_path), "killed").finished
    assert resumed.resumed_from_step
    assert weights(resumed) == weights(one)
    alone = plain_run(replace(taught, **ALONE), digits, str(tmp_path), "alone").finished
    assert losses(alone)[0] != losses(one)[0]  # measured in the first epoch's steps
    assert len(list((tmp_path / "features").iterdir())) == 1  # one computation for all


def test_a_run_that_is_resumed_without_its_teacher_is_refused(
    digits: str, tmp_path: Path, taught: Recipe, setups: RunSetup
) -> None:
    run_record.create(setups.job.run, setups.job.run_uri)
    assert run_record.load(setups.job.run_uri) == setups.job.run
    with pytest.raises(RunExistsError, match=r"got teacher None \(recorded: '"):
        plain_run(replace(taught, **ALONE), digits, str(tmp_path), "taught")


def test_a_chunk_has_its_images_logits_and_eval_images_have_none(
    digits: str, tmp_path: Path, taught: Recipe
) -> None:
    """Of a data set whose logits are in several row groups."""
    recipe = replace(taught, limit=200, seed=1)
    setup = set_up_run(recipe, Placement(workers="1"), digits, runs=str(tmp_path), name="two")
    assert isinstance(setup, RunSetup)
    compute_features(setup.job)
    dataset = setup.job.dataset
    stored = [feature_cache.read(f"{dataset.teacher}/00000.parquet", group) for group in range(4)]
    known = {
        image: logits
        for group in stored
        for image, logits in zip(group.id.tolist(), group.feature, strict=True)
    }
    assert len(known) == 200
    train, evaluated = ChunkTask("train", 0, 1, 0, 0), ChunkTask("eval", 0, 0, 0, 0)
    assert sum(len(block["id"]) for block in load_chunks(dataset, [train])) == 50  # a lane's
    for block in load_chunks(dataset, [train]):
        expected = [known[image] for image in block["id"].tolist()]
        assert np.array_equal(block[TEACHER], expected)
    blocks = list(load_chunks(dataset, [evaluated]))
    assert blocks
    assert all(np.isnan(block[TEACHER]).all() for block in blocks)


@pytest.mark.long
def test_a_run_on_s3_learns_from_a_release_there(
    digits: str, teacher: LoadedRelease, s3: str
) -> None:
    uri = f"{s3}/store/digits/v0001"
    for path in Path(teacher.uri).iterdir():
        storage.write_bytes(storage.join(uri, path.name), path.read_bytes())
    recipe = replace(RECIPE, teacher=uri, epochs=1, limit=16)
    setup = set_up_run(recipe, Placement(workers="1"), digits, runs=f"{s3}/runs", name="taught")
    assert isinstance(setup, RunSetup)
    job = setup.job
    run_record.create(job.run, job.run_uri)
    assert run_record.load(job.run_uri) == job.run
    assert job.run.teacher
    assert job.run.teacher.weights_sha256 == teacher.sha256
    compute_features(job)
    assert job.dataset.teacher.startswith(f"{s3}/runs/features/")
    blocks = list(load_chunks(job.dataset, [ChunkTask("train", 0, 0, 0, 0)]))
    assert blocks
    assert all(np.isfinite(block[TEACHER]).all() for block in blocks)


def test_a_solved_head_is_fitted_to_the_teacher_too(
    digits: str, tmp_path: Path, taught: Recipe, weights_mirror: str
) -> None:
    heads = []
    for name, weight in (("alone", 0.0), ("taught", 1.0)):
        recipe = replace(
            taught, weights="ns", unfreeze="head", head="solved", epochs=1, limit=150,
            teacher_weight=weight,
        )  # fmt: skip
        setup = set_up_run(
            recipe, Placement(workers="1"), digits, runs=str(tmp_path), name=name,
            mirror=weights_mirror,
        )  # fmt: skip
        assert isinstance(setup, RunSetup)
        compute_features(setup.job)
        dataset, network = setup.job.dataset, initial_network(setup.job.run, setup.job.weights_uri)
        solve_head([network], HeadFeatures(dataset, 0, 1), TrainLoss.of(setup.job.run.recipe, ()))
        heads.append(network.backbone.classifier.weight.detach())
    assert not torch.allclose(*heads, atol=1e-3)
    stored = [feature_cache.read(f"{dataset.teacher}/00000.parquet", group) for group in range(3)]
    expected = np.concatenate([group.feature for group in stored])
    blocks = list(HeadFeatures(dataset, 0, 1))
    actual = [block.teacher.numpy() for block in blocks if block.teacher is not None]
    assert [len(rows) for rows in actual] == [120, 30]
    held_out = np.arange(150) % 5 == 4
    assert np.array_equal(actual[0], expected[~held_out])
    assert np.array_equal(actual[1], expected[held_out])


def pictures(folder: Path, classes: tuple[str, ...]) -> str:
    """A data set of random pictures of these classes; the bytes of one train image are damaged."""
    draws = np.random.default_rng(0)
    for name in classes:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = draws.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{name}/{number}.png")
    manifest = pack(str(folder / "images"), str(folder / "data"), Packing())
    shard = folder / "data" / manifest.splits["train"][0].path
    image = pq.read_table(shard)["image"].to_pylist()[DAMAGED]["bytes"]
    shard.write_bytes(shard.read_bytes().replace(image, image[:60] + b"?" + image[61:]))
    return str(folder / "data")


# --- on Ray


@pytest.mark.ray
def test_logits_are_those_of_the_release_and_the_next_run_computes_none(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set has some of the teacher's classes, in their own order."""
    monkeypatch.setattr(manifests, "FULL_CHECK_BYTES", 0)  # a larger one is not read before
    release, data = released(tmp_path), pictures(tmp_path, ("1", "3"))
    recipe = replace(RECIPE, limit=None, epochs=1, teacher=release.uri, teacher_weight=1.0)

    def run(name: str, **changed: Any) -> tuple[Result, int]:
        events = list[Event]()
        result = finetune(
            replace(recipe, **changed), Placement(workers="2", max_bad_fraction=0.1), data,
            runs=str(tmp_path / "runs"), name=name, on_event=events.append,
        )  # fmt: skip
        done = [e for e in events if isinstance(e, ComputingFeatures) and e.done == e.images]
        assert all(event.of_teacher for event in done)
        return result, sum(event.images for event in done)

    first, computed = run("first")
    assert computed == 48
    second, computed = run("second", teacher_temperature=5.0, lr=2e-3)
    # A new run tries again what could not be read: the only shard, as it has such an image.
    assert computed == 48
    third, computed = run("second", teacher_temperature=5.0, lr=2e-3)
    assert (third, computed) == (second, 0)
    assert first.quarantined == 1
    cached, expected = _cached(tmp_path), _expected(release, data)
    assert cached[DAMAGED].isnan().all()
    readable = torch.arange(48) != DAMAGED
    assert_close(cached[readable], expected[readable], atol=2e-3, rtol=0)
    run_of_first = run_record.load(first.run_uri)
    assert run_of_first and run_of_first.teacher
    assert run_of_first.teacher.uri == release.uri
    published = release_run(second, ModelStore(str(tmp_path / "store")))
    record = read_record(published.uri)
    assert record["teacher"] == {"uri": release.uri, "weights_sha256": release.sha256}
    assert release.uri in (Path(published.uri) / "README.md").read_text()


def _cached(folder: Path) -> torch.Tensor:
    (file,) = (folder / "runs/features").rglob("*.parquet")
    return torch.from_numpy(feature_cache.read(str(file), 0).feature.copy())


def _expected(release: LoadedRelease, data: str) -> torch.Tensor:
    """float16 logits of the classes 1 and 3, image by image, in the order of the shard."""
    (shard,) = manifests.load(data).splits["train"]
    images = pq.read_table(f"{data}/{shard.path}")["image"].to_pylist()
    size = release.spec.resolution
    views = np.zeros((len(images), size, size, 3), np.uint8)
    for image, view in zip(images, views, strict=True):
        write_eval_view(image["bytes"], release.spec, view)
    with torch.no_grad():
        logits = release.network(torch.from_numpy(views).permute(0, 3, 1, 2))
    return logits[:, [1, 3]].half()
