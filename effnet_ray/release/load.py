"""Loading a release: its network, the preprocessing it expects, and its provenance.

The settings of inference (preprocessing, class names) are in config.json; recipe.json records how
the release was trained.

A release may come from anyone. Sizes are checked before anything is read, digests before anything
is parsed, and only JSON and safetensors are parsed: no code in a release is ever executed. A
release that is inconsistent is refused with a ReleaseError of one sentence.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from effnet_ray import storage
from effnet_ray.errors import EffnetRayError, ReleaseError, StorageError, quote
from effnet_ray.model import network as networks
from effnet_ray.model.network import Network
from effnet_ray.recipe import Recipe
from effnet_ray.release.layout import CONFIG, METRICS, RECIPE, WEIGHTS
from effnet_ray.release.names import parse_reference
from effnet_ray.release.record import read_record
from effnet_ray.release.store import release_uri
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.variants import MIN_IMAGE_SIZE, InputSpec

MAX_BYTES = {WEIGHTS: 1024**3}
"""B7's weights have 267 MB. Other files are limited to storage.RECORD_BYTES."""
MAX_IMAGE_SIZE = 2048
"""px. B7's own is 600; a larger image takes more than 12 MB."""
MIN_CROP = 0.1
HEAD = "classifier.weight"
"""timm's name of the last layer's weight, [classes, features]."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Not allowed in class names: control characters, and surrogates, which UTF-8 cannot encode."""
INTERPOLATIONS = ("bicubic", "bilinear")
INVALID_CONTENT = (
    EffnetRayError,
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    AttributeError,
    RecursionError,
    ArithmeticError,
)
"""What readers of a damaged or hostile file may raise."""


@dataclass(frozen=True, slots=True)
class LoadedRelease:
    """A release in memory. Every file that was read matched its digest."""

    reference: str
    """`name@vN`; the folder's URI for a release that was never published."""
    uri: str
    """Its folder."""
    network: Network
    """In evaluation mode, on the CPU, all parameters frozen."""
    spec: InputSpec
    """The released preprocessing."""
    classes: tuple[str, ...]
    """Names of the network's outputs."""
    recipe: Recipe
    """The resolved recipe of the run."""
    history: tuple[EpochReport, ...]
    """Metrics of every epoch."""
    sha256: str
    """SHA-256 of the weights' file."""
    provenance: Mapping[str, Any]
    """release.json without `files`: run, data, fingerprint, …"""


def load_release(model: str, store: str) -> LoadedRelease:
    """Load `NAME@vN` or `NAME@ALIAS` from `store`, or a release's folder by its URI.

    Raises ReleaseError if it does not exist, is incomplete, was altered or is not a release of
    this package; StorageError if the storage is unreachable.
    """
    uri = release_uri(model, store)
    with _as_release_error(uri):
        return _load(uri, _Files(uri))


def _load(uri: str, files: "_Files") -> LoadedRelease:
    config = files.read_json(CONFIG)
    recipe = from_dict(Recipe, files.read_json(RECIPE))
    spec, classes = _input_spec(config), _class_names(config)
    if config["architecture"] != recipe.variant_spec.architecture:
        raise ValueError(
            f"{CONFIG} is for {config['architecture']}, but {RECIPE} is for "
            f"{recipe.variant_spec.architecture}"
        )
    provenance = {name: value for name, value in files.record.items() if name != "files"}
    return LoadedRelease(
        reference=_reference(provenance, uri),
        uri=uri,
        network=_network(recipe, spec, len(classes), files.read(WEIGHTS)),
        spec=spec,
        classes=classes,
        recipe=recipe,
        history=tuple(map(_epoch_report, files.read_json(METRICS)["history"])),
        sha256=files.record["files"][WEIGHTS],
        provenance=provenance,
    )


@contextmanager
def _as_release_error(uri: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes its reader raise into a ReleaseError."""
    try:
        yield
    except (ReleaseError, StorageError):
        raise
    except INVALID_CONTENT as error:
        raise ReleaseError(
            f"{uri} is not a valid release ({quote(error)}): publish it again, or use another "
            "release"
        ) from error


class _Files:
    """The files of a release. Each is checked against release.json when it is read."""

    def __init__(self, uri: str) -> None:
        self._uri, self.record = uri, read_record(uri)

    def read(self, name: str) -> bytes:
        """The file's content. Raises ValueError if it is larger than such a file may be."""
        size = self.record["sizes"].get(name, 0)
        max_bytes = MAX_BYTES.get(name, storage.RECORD_BYTES)
        if size > max_bytes:
            raise ValueError(f"{name} has {size:,} bytes, expected at most {max_bytes:,}")
        return checksummed_json.read_file(self._uri, name, self.record)

    def read_json(self, name: str) -> dict[str, Any]:
        """The file as a JSON object."""
        return checksummed_json.parse(self.read(name), name)


def _epoch_report(epoch: Mapping[str, Any]) -> EpochReport:
    """An epoch of metrics.json. Raises OverflowError for numbers that are no floats."""
    for value in epoch.values():
        float(value or 0)
    return from_dict(EpochReport, epoch)


def _reference(record: Mapping[str, Any], uri: str) -> str:
    """`name@vN` as recorded, which also holds for a copied folder; the URI if there is none."""
    try:
        reference = f"{record.get('name')}@v{record.get('version')}"
        return reference if parse_reference(reference).version else uri
    except ReleaseError:
        return uri


def _input_spec(config: Mapping[str, Any]) -> InputSpec:
    """The preprocessing in timm's hub format. Raises ValueError if it is not supported."""
    data = config["pretrained_cfg"]
    channels, height, width = data["input_size"]
    spec = InputSpec(
        resolution=height,
        crop=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_per_channel(data["mean"]),
        std=_per_channel(data["std"]),
    )
    supported = (
        (channels, width) == (3, height)
        and type(height) is int
        and MIN_IMAGE_SIZE <= height <= MAX_IMAGE_SIZE
        and MIN_CROP <= spec.crop <= 1
        and height / spec.crop <= 2 * MAX_IMAGE_SIZE  # px of the image before it is cropped
        and spec.interpolation in INTERPOLATIONS
        and all(map(math.isfinite, (*spec.mean, *spec.std)))
        and min(spec.std) > 0
    )
    if not supported:
        raise ValueError(f"{CONFIG} has unsupported preprocessing: {data}")
    return spec


def _per_channel(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config["label_names"]
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise ValueError(f"label_names of {CONFIG} is not a list of names")
    if any(not name or UNPRINTABLE.search(name) for name in names):
        raise ValueError(f"label_names of {CONFIG} has a name that is not printable text")
    if len(set(names)) != len(names) or len(names) != config["num_classes"] or len(names) < 2:
        raise ValueError(
            f"label_names of {CONFIG} has {len(names)} names ({len(set(names))} distinct), "
            f"expected {config['num_classes']} distinct names, at least 2"
        )
    return tuple(names)


def _network(recipe: Recipe, spec: InputSpec, classes: int, weights: bytes) -> Network:
    """The network with exactly these weights. Raises ValueError if they do not fit it."""
    tensors = safetensors.torch.load(weights)
    # Compared before a network of this size is built: the number may come from a stranger.
    heads = [tensor for name, tensor in tensors.items() if name == HEAD and tensor.dim()]
    outputs = len(heads[0]) if heads else 0
    if outputs != classes:
        raise ValueError(f"{WEIGHTS} is for {outputs} classes, but {CONFIG} has {classes}")
    invalid = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if invalid:
        raise ValueError(f"{invalid[0][:100]} of {WEIGHTS} has NaN or infinite values")
    network = networks.build(recipe, spec, classes)
    expected = network.backbone.state_dict()
    invalid = sorted(tensors.keys() ^ expected.keys()) or [
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    ]
    if invalid:
        raise ValueError(
            f"{WEIGHTS} does not fit {recipe.variant_spec.architecture} with {classes} classes: "
            f"{invalid[0][:100]}"
        )
    network.backbone.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
