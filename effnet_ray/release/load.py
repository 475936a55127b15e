"""A release, opened for use: its network, exactly what it expects of an image, and whence it came.

A release may have been made by anyone. Sizes are looked at before anything is read, digests
before anything is parsed, and JSON and safetensors are all that is ever parsed: nothing in it
is executed. What does not hold together is refused as a ReleaseError, in one sentence.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from effnet_ray import storage
from effnet_ray.errors import EffnetRayError, ReleaseError, StorageError
from effnet_ray.model import network as networks
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.release.names import parse
from effnet_ray.release.store import ModelStore
from effnet_ray.schema import from_dict
from effnet_ray.speed import UNRECORDED
from effnet_ray.storage import checksummed_json
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.variants import MIN_IMAGE_SIZE, InputSpec

WEIGHTS, CONFIG, RECIPE, METRICS = (
    "model.safetensors",
    "config.json",
    "recipe.json",
    "metrics.json",
)
MAX_BYTES = {WEIGHTS: 1024**3}
"""B7 has 267 MB; JSON has storage's own bound."""
MAX_IMAGE_SIZE = 2048
"""px. B7's own is 600; a view of more than this takes 12 MB."""
HEAD = "classifier.weight"
"""timm's name of the last layer's matrix, [K, F]."""
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no class is called: control characters, and halves of pairs, which no file can hold."""
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True, slots=True)
class LoadedRelease:
    """A release in memory, every file of it that is used verified by its digest."""

    reference: str
    """`name@vN`."""
    uri: str
    """Its folder."""
    network: Network
    """In evaluation mode, on the CPU, with nothing that learns."""
    spec: InputSpec
    """The released preprocessing."""
    classes: tuple[str, ...]
    """Names of the network's outputs."""
    recipe: Recipe
    """What ran."""
    history: tuple[EpochReport, ...]
    """What each epoch of its training reported."""
    sha256: str
    """Of the weights' file."""
    provenance: Mapping[str, Any]
    """release.json without the digests: run, data, fingerprint, …"""


def load_release(model: str, store: str) -> LoadedRelease:
    """Open `NAME@vN` (or whatever else names a release of `store`), or a release's folder by URI.

    Raises ReleaseError where there is none, or it is incomplete, altered or not what this package
    releases; StorageError where storage does not answer.
    """
    if "/" in model:
        uri = storage.absolute(model)
    else:
        shelf, version = ModelStore(storage.absolute(store)).resolve(model)
        uri = shelf.release(version).uri
    with _refusing(uri):
        return _opened(uri, _Files(uri))


def _opened(uri: str, files: "_Files") -> LoadedRelease:
    config = files.json(CONFIG)
    recipe = from_dict(Recipe, asdict(UNRECORDED) | files.json(RECIPE))
    spec, classes = _spec(config), _classes(config)
    if config["architecture"] != recipe.variant_spec.architecture:
        raise ValueError(f"{CONFIG} is of a {config['architecture']}, {RECIPE} of another")
    told = {name: value for name, value in files.record.items() if name != "files"}
    return LoadedRelease(
        reference=_reference(told, uri),
        uri=uri,
        network=_network(recipe, spec, len(classes), files.read(WEIGHTS)),
        spec=spec,
        classes=classes,
        recipe=recipe,
        history=tuple(map(_report, files.json(METRICS)["history"])),
        sha256=files.record["files"][WEIGHTS],
        provenance=told,
    )


@contextmanager
def _refusing(uri: str) -> Iterator[None]:
    """Whatever a damaged or hostile file makes its readers raise becomes one sentence."""
    try:
        yield
    except (ReleaseError, StorageError):
        raise
    except (EffnetRayError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError,
            AttributeError, RecursionError, ArithmeticError) as error:  # fmt: skip
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ReleaseError(
            f"{uri} is not a release that can be used ({why}): publish it again, or use another"
        ) from error


class _Files:
    """A release's files, each held against its record when it is read."""

    def __init__(self, uri: str) -> None:
        self._uri, self.record = uri, checksummed_json.read(uri)

    def read(self, name: str) -> bytes:
        """The file, as it was released, if it is not larger than such a file may be."""
        size, most = self.record["sizes"].get(name, 0), MAX_BYTES.get(name, storage.RECORD_BYTES)
        if size > most:
            raise ValueError(f"{name} has {size:,} bytes, at most {most:,} are expected")
        return checksummed_json.read_file(self._uri, name, self.record)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        return checksummed_json.parse(self.read(name), name)


def _report(epoch: Mapping[str, Any]) -> EpochReport:
    """Numbers that can be drawn. Raises OverflowError for others."""
    for value in epoch.values():
        float(value or 0)
    return from_dict(EpochReport, epoch)


def _reference(record: Mapping[str, Any], uri: str) -> str:
    """As the record says; a folder that was copied by itself still knows it."""
    try:
        said = f"{record.get('name')}@v{record.get('version')}"
        return said if parse(said).version else uri
    except ReleaseError:
        return uri


def _spec(config: Mapping[str, Any]) -> InputSpec:
    """The preprocessing of timm's hub format. Raises ValueError for one that we cannot do."""
    seen = config["pretrained_cfg"]
    channels, height, width = seen["input_size"]
    spec = InputSpec(
        resolution=height,
        crop=float(seen["crop_pct"]),
        interpolation=seen["interpolation"],
        mean=_three(seen["mean"]),
        std=_three(seen["std"]),
    )
    sizes = type(height) is int and MIN_IMAGE_SIZE <= height <= MAX_IMAGE_SIZE
    sees = height / spec.crop  # px of what is cropped, and never a hundred times the view
    fits = (
        (channels, width) == (3, height) and sizes and 0.1 <= spec.crop <= 1
        and sees <= 2 * MAX_IMAGE_SIZE
        and spec.interpolation in INTERPOLATIONS
        and np.isfinite([spec.mean, spec.std]).all() and min(spec.std) > 0
    )  # fmt: skip
    if not fits:
        raise ValueError(f"{CONFIG} has a preprocessing that is not ours: {seen}")
    return spec


def _three(values: Any) -> tuple[float, float, float]:
    """Of each colour."""
    red, green, blue = map(float, values)
    return red, green, blue


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config["label_names"]
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise ValueError(f"label_names of {CONFIG} are no list of names")
    if any(not name or UNFIT.search(name) for name in names):
        raise ValueError(f"label_names of {CONFIG} are not all text that can be shown")
    if len(set(names)) != len(names) or len(names) != config["num_classes"] or len(names) < 2:
        raise ValueError(
            f"label_names of {CONFIG} are not {config['num_classes']} different names"
        )
    return tuple(names)


def _network(recipe: Recipe, spec: InputSpec, classes: int, weights: bytes) -> Network:
    """The network with these weights and no others."""
    tensors = safetensors.torch.load(weights)
    outputs = max((len(t) for name, t in tensors.items() if name == HEAD and t.dim()), default=0)
    if outputs != classes:  # before a network is made for a stranger's idea of how many
        raise ValueError(f"{WEIGHTS} is for {outputs} classes, {CONFIG} names {classes}")
    odd = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if odd:
        raise ValueError(f"{odd[0][:100]} of {WEIGHTS} has numbers that are not finite")
    built = networks.build(recipe, spec, classes)
    expected = built.backbone.state_dict()
    odd = sorted(tensors.keys() ^ expected.keys()) or [
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    ]
    if odd:
        raise ValueError(
            f"{WEIGHTS} does not fit a {recipe.variant_spec.architecture} of {classes} classes: "
            f"{odd[0][:100]}"
        )
    built.backbone.load_state_dict(tensors)
    return built.eval().requires_grad_(False)
