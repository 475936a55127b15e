"""Pretrained weights: what they are, where they come from, and what they expect of an image.

The driver resolves and fetches them once; workers read them from the run's storage and never
download. Sources, in order: a mirror (a folder or prefix of `<timm name>.safetensors`), the hub,
or a release of ours. There is no fall-back to random weights.
"""

import json
import tempfile
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

from effnet_ray import storage
from effnet_ray.errors import StorageError, WeightsError
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.release import layout
from effnet_ray.release.record import is_release, read_file
from effnet_ray.variants import FAMILIES, InputSpec

HUB_OWNER = "timm"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a run starts from."""

    name: str
    """`none`, timm's name of the checkpoint, or the URI of a release."""
    spec: InputSpec
    """What they expect of an image."""
    classes: tuple[str, ...] | None = None
    """Class names of a release's head; None for ImageNet's or no head."""
    num_classes: int = 1000


def resolve(recipe: Recipe) -> Weights:
    """Name the weights a recipe asks for. A release's config.json is read; nothing is fetched.

    Raises WeightsError for a family this variant does not have, or an unsuitable release.
    """
    wanted = recipe.weights
    if wanted == "none":
        return Weights("none", recipe.variant_spec.input_spec())
    if wanted in FAMILIES or wanted == "best":
        return Weights(
            recipe.variant_spec.weights_tag(wanted), recipe.variant_spec.input_spec(wanted)
        )
    if "/" in wanted:
        return _release(storage.absolute(wanted), recipe)
    recipe.variant_spec.weights_tag(wanted)  # raises, naming what there is
    raise AssertionError("unreachable")


def _release(uri: str, recipe: Recipe) -> Weights:
    try:
        config: dict[str, Any] = json.loads(_vouched(uri, layout.CONFIG, storage.RECORD_BYTES))
        seen = config["pretrained_cfg"]
        spec = InputSpec(
            resolution=int(seen["input_size"][-1]),
            crop=float(seen["crop_pct"]),
            interpolation=str(seen["interpolation"]),
            mean=_triple(seen["mean"]),
            std=_triple(seen["std"]),
        )
        found, names = config["architecture"], tuple(map(str, config.get("label_names", ())))
        outputs = _outputs(config, names)
    except (StorageError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"weights {uri} are not a release of ours ({error}): give NAME@vN, or the URI of a "
            "folder with model.safetensors and config.json"
        ) from error
    if found != recipe.variant_spec.architecture:
        raise WeightsError(
            f"weights {uri} are a {found}, the recipe wants {recipe.variant_spec.architecture}: "
            "choose the variant of the release"
        )
    return Weights(uri, spec, names or None, outputs)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _outputs(config: dict[str, Any], names: tuple[str, ...]) -> int:
    outputs = int(config["num_classes"])
    if outputs < 1 or len(names) not in (0, outputs):
        raise ValueError(f"num_classes is {outputs}, with {len(names)} label names")
    return outputs


def _vouched(uri: str, file: str, most: int | None = None) -> bytes:
    """A file of a folder, held against the folder's release.json where it has one.

    Raises ReleaseError where it was altered, StorageError where it has more than `most` bytes.
    """
    if is_release(uri):
        return read_file(uri, file)
    return storage.read_bytes(storage.join(uri, file), max_bytes=most)


def fetch(weights: Weights, mirror: str | None) -> bytes | None:
    """The checkpoint's safetensors bytes; None from scratch. Runs on the driver, once.

    Raises WeightsError, saying what to do, where they cannot be had or are damaged.
    """
    if weights.name == "none":
        return None
    if "/" in weights.name:
        return _from_release(weights.name)
    if mirror:
        return _from_mirror(weights.name, storage.absolute(mirror))
    return _from_hub(weights.name)


def _from_release(uri: str) -> bytes:
    try:
        return _checked(_vouched(uri, layout.WEIGHTS), uri)
    except StorageError as error:
        raise WeightsError(
            f"release {uri} has no weights ({error}): restore it, or use another"
        ) from error


def _from_mirror(name: str, mirror: str) -> bytes:
    uri = storage.join(mirror, f"{name}.safetensors")
    try:
        return _checked(storage.read_bytes(uri), uri)
    except StorageError as error:
        raise WeightsError(
            f"weights {name} are not in the mirror ({error}): put {name}.safetensors there, or "
            "leave the mirror out to use the hub"
        ) from error


def _from_hub(name: str) -> bytes:
    repository = f"{HUB_OWNER}/{name}"
    try:
        if not _cached(repository):
            _answers(hf_hub_url(repository, layout.WEIGHTS))
        path = Path(hf_hub_download(repository, layout.WEIGHTS))
    except Exception as error:  # the hub's client raises httpx, OSError and its own kinds
        raise _unfetchable(name, error) from error
    return _checked(path.read_bytes(), f"of {name} from the hub")


def _cached(repository: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, layout.WEIGHTS), str)


def _answers(url: str) -> None:
    """Raise at once where no server is reached: the download alone retries for 25 s then."""
    try:
        get_hf_file_metadata(url)
    except HfHubHTTPError:
        pass  # it answers: the download retries a busy server, and names what is absent


def _unfetchable(name: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"cannot fetch weights {name} from the hub ({_first_line(error)}): connect to the "
        f"internet, or pass --weights-mirror (or EFFNET_WEIGHTS) with a folder that holds "
        f"{name}.safetensors, or train from scratch with --weights none"
    )


def weights_source(weights: Weights, mirror: str | None) -> str:
    """Where `fetch` would take them from; only looked for. Raises WeightsError."""
    if weights.name == "none":
        return "none: from scratch"
    if "/" not in weights.name and not mirror:
        return _on_the_hub(weights.name)
    uri = storage.join(weights.name, layout.WEIGHTS)
    if "/" not in weights.name:
        uri = storage.join(storage.absolute(mirror or ""), f"{weights.name}.safetensors")
    if not storage.exists(uri):
        raise WeightsError(f"there are no weights at {uri}: put them there")
    return uri


def _on_the_hub(name: str) -> str:
    repository = f"{HUB_OWNER}/{name}"
    if _cached(repository):
        return f"{name}, from the hub, in its cache already"
    try:
        size = get_hf_file_metadata(hf_hub_url(repository, layout.WEIGHTS)).size or 0
    except Exception as error:  # as above
        raise _unfetchable(name, error) from error
    return f"{name}, from the hub, {size / 1e6:,.0f} MB"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _checked(data: bytes, where: str) -> bytes:
    """The bytes, if they are a whole safetensors file."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        try:
            with safe_open(file.name, framework="numpy") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise WeightsError(
                f"weights {where} are damaged ({error}): fetch them again"
            ) from error
    return data


def head_classes(weights: Weights, classes: tuple[str, ...]) -> int:
    """Outputs of the checkpoint's head, as timm should see it.

    Where the class names differ (the hub's are unknown) the head must be new, also when their
    number is the same: a count that matches nothing makes timm leave it out.
    """
    if weights.classes != classes and weights.num_classes == len(classes):
        return -1
    return weights.num_classes


def hub_config(network: Network, spec: InputSpec, classes: tuple[str, ...]) -> dict[str, Any]:
    """config.json in timm's hub format: architecture, labels and the exact preprocessing.

    `spec` is what the network was shown in training.
    """
    from timm.models._hub import save_config_for_hf  # timm's own writer; it has no public name

    data = {
        "input_size": (3, spec.resolution, spec.resolution),
        "crop_pct": spec.crop,
        "interpolation": spec.interpolation,
        "mean": spec.mean,
        "std": spec.std,
        "crop_mode": "center",
    }
    with tempfile.TemporaryDirectory(prefix="effnet-config-") as folder:
        path = Path(folder) / layout.CONFIG
        save_config_for_hf(
            network.backbone,
            str(path),
            model_config={"label_names": list(classes)},
            data_config=data,
        )
        config: dict[str, Any] = json.loads(path.read_text())
    # timm's tag of the variant's default checkpoint, which these weights are not.
    config["pretrained_cfg"]["tag"] = "effnet_ray"
    return config


def input_spec(recipe: Recipe, spec: InputSpec) -> InputSpec:
    """The weights' spec at the recipe's resolution."""
    return replace(spec, resolution=recipe.image_size or spec.resolution)
