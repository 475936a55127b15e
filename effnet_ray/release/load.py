"""Loading a release: its network, the preprocessing it expects, and its provenance.

The settings of inference (preprocessing, class names) are in config.json; recipe.json records how
the release was trained.

A release may come from anyone. Sizes are checked before anything is read, digests before anything
is parsed, and only JSON and safetensors are parsed: no code in a release is ever executed. A
release that is inconsistent is refused with a ReleaseError of one sentence.
"""

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
from effnet_ray.model.references import References
from effnet_ray.recipe import Recipe
from effnet_ray.release.names import parse_reference
from effnet_ray.release.store import release_uri
from effnet_ray.release_format.calibration import Calibration
from effnet_ray.release_format.config import ReleaseConfig, parse_config
from effnet_ray.release_format.layout import CONFIG, METRICS, RECIPE, REFERENCES, WEIGHTS
from effnet_ray.release_format.record import read_record
from effnet_ray.schema import from_dict
from effnet_ray.storage import checksummed_json
from effnet_ray.train.epoch_report import EpochReport
from effnet_ray.variants import InputSpec

MAX_BYTES = {WEIGHTS: 1024**3, REFERENCES: 64 * 1024**2}
"""B7's weights have 267 MB, its 2,000 references 10 MB. Other files are limited to
storage.RECORD_BYTES."""
HEAD = "classifier.weight"
"""timm's name of the last layer's weight, [classes, features]."""
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
    calibration: Calibration
    """How probabilities are made of logits."""
    references: References | None
    """What pictures are compared with, to tell unknown ones; None in older releases."""
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
    config = parse_config(files.read_json(CONFIG))
    recipe = from_dict(Recipe, files.read_json(RECIPE))
    architecture, classes = recipe.variant_spec.architecture, config.classes
    if classes is None:
        raise ValueError(f"{CONFIG} has no label_names")
    if config.architecture != architecture:
        raise ValueError(
            f"{CONFIG} is for {config.architecture}, but {RECIPE} is for {architecture}"
        )
    network = _network(recipe, config.spec, len(classes), files.read(WEIGHTS))
    provenance = {name: value for name, value in files.record.items() if name != "files"}
    return LoadedRelease(
        reference=_reference(provenance, uri),
        uri=uri,
        network=network,
        spec=config.spec,
        classes=classes,
        calibration=config.calibration,
        references=_references(files, config, network),
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
            f"{uri} is not a valid release of this version of effnet_ray ({quote(error)}): "
            "publish it again, or use another release"
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


def _references(files: "_Files", config: ReleaseConfig, network: Network) -> References | None:
    """The references. Raises ValueError or LookupError if they are none, or are missing."""
    if config.unknown_from is None:
        return None
    content = files.read(REFERENCES)
    return References.from_bytes(content, config.unknown_from, network.num_features)


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
