"""A run's record: the same command is the same run; a different one is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from effnet_ray.errors import RunExistsError, StorageError
from effnet_ray.recipe import Recipe
from effnet_ray.train import run_record
from effnet_ray.train.run_record import Result, Run

GIVEN = Recipe(variant="b2", weights="none", epochs=3)
SETTLED = GIVEN.resolved(GIVEN.variant_spec.input_spec(), workers=2, on_gpu=False)
RUN = Run(
    name="birds", recipe=SETTLED, spec=GIVEN.variant_spec.input_spec("ap"),
    classes=("pie", "émeu"),
    data="s3://bucket/data", fingerprint="f" * 64, weights="none", weights_sha256="",
    weights_head=1000,
)  # fmt: skip


def result(uri: Path) -> Result:
    return Result(
        run="birds", run_uri=str(uri), checkpoint=f"{uri}/checkpoints/step-00000009",
        eval_top1=0.75, eval_top5=1.0, eval_loss=1 / 3, epochs=3, steps=9, resumed_from_step=4,
        train_images_per_s=12.5, seconds=60.0, quarantined=1,
    )  # fmt: skip


def test_the_default_name_is_the_variant_and_eight_hex_digits_and_stable() -> None:
    name = run_record.default_name(GIVEN, "f" * 64)
    variant, _, digits = name.partition("-")
    assert (variant, len(digits)) == ("b2", 8)
    assert int(digits, 16) >= 0
    assert run_record.default_name(Recipe(**asdict(GIVEN)), "f" * 64) == name


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 2e-3}, {"epochs": 4}, {"limit": 10}])
def test_the_default_name_depends_on_the_recipe(change: dict[str, float]) -> None:
    other = replace(GIVEN, **change)  # type: ignore[arg-type]  # a field's name and value
    assert run_record.default_name(other, "f" * 64) != run_record.default_name(GIVEN, "f" * 64)


def test_the_default_name_depends_on_the_data() -> None:
    assert run_record.default_name(GIVEN, "e" * 64) != run_record.default_name(GIVEN, "f" * 64)


def test_best_and_what_it_stands_for_have_one_default_name() -> None:
    names = {run_record.default_name(Recipe(weights=w), "f") for w in ("best", "ns")}
    assert len(names) == 1


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run_record.create(RUN, str(tmp_path))
    assert run_record.load(str(tmp_path)) == RUN


def test_a_crop_mode_is_recorded_unless_it_is_center(tmp_path: Path) -> None:
    squash = replace(RUN, spec=replace(RUN.spec, crop_mode="squash"))
    for run, names in ((RUN, set[str]()), (squash, {"crop_mode"})):
        run_record.create(run, str(tmp_path / run.spec.crop_mode))
        file = tmp_path / run.spec.crop_mode / run_record.RUN
        plain = {"resolution", "crop", "interpolation", "mean", "std"}
        assert json.loads(file.read_bytes())["spec"].keys() == plain | names
        assert run_record.load(str(file.parent)) == run


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    run_record.write_result(result(tmp_path))
    assert run_record.load_result(str(tmp_path)) == result(tmp_path)


def test_where_nothing_was_recorded_there_is_no_run_and_no_result(tmp_path: Path) -> None:
    assert run_record.load(str(tmp_path / "absent")) is None
    assert run_record.load_result(str(tmp_path)) is None


def test_a_run_is_created_once(tmp_path: Path) -> None:
    run_record.create(RUN, str(tmp_path))
    with pytest.raises(RunExistsError, match="'birds' was just started by another process"):
        run_record.create(replace(RUN, data="elsewhere"), str(tmp_path))
    assert run_record.load(str(tmp_path)) == RUN
    assert [path.name for path in tmp_path.iterdir()] == [run_record.RUN]


def test_fields_left_open_agree_with_whatever_was_settled() -> None:
    run_record.check_same(RUN, GIVEN, RUN.fingerprint)
    run_record.check_same(RUN, SETTLED, RUN.fingerprint)


@pytest.mark.parametrize(
    "change", [{"epochs": 9}, {"lr": 0.5}, {"micro_batch": 1}, {"variant": "b1"}]
)
def test_another_recipe_is_refused_and_the_field_named(change: dict[str, object]) -> None:
    ((name, value),) = change.items()
    other = replace(GIVEN, **change)  # type: ignore[arg-type]  # a field's name and value
    with pytest.raises(RunExistsError, match=rf"another recipe: got {name} {value!r} \(rec"):
        run_record.check_same(RUN, other, RUN.fingerprint)


def test_every_image_is_another_recipe_than_a_limit() -> None:
    limited = replace(RUN, recipe=replace(SETTLED, limit=24))
    with pytest.raises(RunExistsError, match=r"got limit None \(recorded: 24\)"):
        run_record.check_same(limited, GIVEN, RUN.fingerprint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', '{"recipe": {"lrr": 1}}'])
def test_a_damaged_record_is_said_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / run_record.RUN).write_text(text)
    with pytest.raises(StorageError, match=r"run\.json is damaged, .*choose another --name"):
        run_record.load(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": "many"}'])
def test_a_damaged_result_is_said_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / run_record.RESULT).write_text(text)
    with pytest.raises(StorageError, match=r"result\.json is damaged"):
        run_record.load_result(str(tmp_path))


def test_a_refusal_names_only_the_fields_that_differ() -> None:
    with pytest.raises(RunExistsError) as refused:
        run_record.check_same(RUN, replace(GIVEN, epochs=9), RUN.fingerprint)
    assert "epochs 9 (recorded: 3)" in str(refused.value)
    assert "seed" not in str(refused.value)


def test_other_data_is_refused_with_both_fingerprints() -> None:
    with pytest.raises(RunExistsError, match=r"other data .*ffffffff, got eeeeeeee"):
        run_record.check_same(RUN, GIVEN, "e" * 64)


def test_a_run_of_another_version_is_refused_by_name() -> None:
    older = replace(RUN, recipe=replace(SETTLED, head_epochs=None))
    with pytest.raises(RunExistsError, match="'birds' was recorded by another version"):
        run_record.check_same(older, GIVEN, "f" * 64)
