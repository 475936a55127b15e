"""The teacher of a run: a release whose logits of the train images the network learns, too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from effnet_ray import safe_json, storage
from effnet_ray.errors import OutageError, RecipeError, ReleaseError, StorageError, WeightsError
from effnet_ray.recipe import MULTICLASS, Recipe
from effnet_ray.release_format.config import MALFORMED, parse_config
from effnet_ray.release_format.layout import CONFIG, RECIPE, WEIGHTS
from effnet_ray.release_format.record import read_record
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json
from effnet_ray.variants import InputSpec

MAX_WEIGHTS_BYTES = 1024**3
"""B7's weights have 267 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The release that a run learns from. Field names are keys of run.json."""

    uri: str
    """The release's folder."""
    weights_sha256: str
    variant: str
    spec: InputSpec
    """How its images are preprocessed."""
    classes: tuple[str, ...]
    """Names of its outputs."""

    def outputs(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Its output for each of a data set's classes."""
        return tuple(map(self.classes.index, classes))

    def recipe(self, run: Recipe) -> Recipe:
        """A recipe of its network, in the precision of the run that learns from it."""
        return Recipe(
            variant=self.variant, weights="none", image_size=self.spec.resolution,
            precision=run.precision, layout=run.layout, limit=run.limit,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Its form in run.json."""
        return asdict(self) | {"spec": self.spec.as_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`. Raises TypeError or LookupError if malformed."""
        spec = from_dict(InputSpec, record["spec"])
        return cls(**{**record, "spec": spec, "classes": tuple(record["classes"])})


def read_teacher(uri: str, classes: Sequence[str], task: str) -> Teacher:
    """The release at `uri` as the teacher of a data set's classes.

    Raises WeightsError if it is no release, of another task, or lacks one of the classes.
    """
    if "/" not in uri:
        raise WeightsError(
            f"teacher {uri} is not a URI: only commands know names of releases; pass "
            "ModelStore(…).find(name).uri"
        )
    teacher, of_teacher = _read(storage.absolute(uri))
    _check_task(teacher.uri, of_teacher, task)
    missing = [name for name in classes if name not in teacher.classes]
    if missing:
        raise WeightsError(
            f"teacher {teacher.uri} does not know {len(missing)} of the data set's {len(classes)} "
            f"classes ({', '.join(map(repr, missing[:5]))}): use a release that was trained on "
            "all of them"
        )
    return teacher


def _read(uri: str) -> tuple[Teacher, str]:
    """The release as a teacher, and its task. Raises WeightsError if it is no release."""
    try:
        record = read_record(uri)
        config, recipe = (
            safe_json.parse(checksummed_json.read_file(uri, name, record))
            for name in (CONFIG, RECIPE)
        )
        parsed, variant = parse_config(config), str(recipe["variant"])
        architecture = Recipe(variant=variant).variant_spec.architecture
        if parsed.architecture != architecture or parsed.classes is None:
            raise ValueError(f"{CONFIG} is not for {architecture}, or names no classes")
        if record["sizes"].get(WEIGHTS, 0) > MAX_WEIGHTS_BYTES:
            raise ValueError(f"{WEIGHTS} has more than {MAX_WEIGHTS_BYTES:,} bytes")
        teacher = Teacher(
            uri=uri, weights_sha256=record["files"][WEIGHTS], variant=variant, spec=parsed.spec,
            classes=parsed.classes,
        )  # fmt: skip
        return teacher, str(recipe.get("task") or MULTICLASS)
    except OutageError:
        raise  # storage did not answer, which says nothing about the release
    except (StorageError, ReleaseError, RecipeError, *MALFORMED) as error:
        raise WeightsError(
            f"teacher {uri} is not a release ({error}): expected NAME@vN, NAME@ALIAS or the "
            "URI of a release's folder"
        ) from error


def _check_task(uri: str, of_teacher: str, task: str) -> None:
    if of_teacher != task:
        raise WeightsError(
            f"teacher {uri} is {of_teacher}, but this run is {task}: use a release of "
            "the same task"
        )
