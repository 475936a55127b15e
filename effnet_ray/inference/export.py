"""Export of a release as ONNX or as a PyTorch exported program, usable without effnet_ray.

    OUT/model.onnx or OUT/model.pt2   pixels in; logits, probabilities and unknown scores out
    OUT/export.json                   inputs, outputs, preprocessing and classes; written last

The batch may have any size. The model normalizes its input; the caller resizes and crops, as
export.json and the ONNX metadata describe. The exported model computes in float32, whatever the
precision of the release, and its logits are compared with those of the release in float32.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet_ray import storage
from effnet_ray.errors import InputError, ReleaseError
from effnet_ray.inference.logits import probabilities
from effnet_ray.inference.quantize import (
    PRECISION,
    Quantized,
    QuantizeOptions,
    check_quantizable,
    quantize,
)
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import LoadedRelease
from effnet_ray.variants import SQUASH, InputSpec

RECORD = "export.json"
INPUT, OUTPUTS = "images", ("logits", "probabilities", "unknown")
MAX_BATCH = 4096
"""Images of a batch; an exported program requires a bound. Chosen, not measured."""
TOLERANCE = 1e-4
"""Largest accepted difference from the release's logits, relative to the largest logit above 1."""
CHECK_BATCHES = (1, 3)
"""Sizes of the batches on which the two models are compared: a single image, and several."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The exported model. Field names are keys of `export.json`."""

    release: str
    format: str
    """onnx or torch"""
    file: str
    """URI of the model."""
    bytes: int
    sha256: str
    difference: float
    """Largest difference of a logit from the release's in float32, on synthetic images; before
    quantizing."""
    quantized: Quantized | None
    """What int8 changed; None for a float export."""
    precision: str
    """Precision in which the model computes."""
    input: dict[str, Any]
    outputs: dict[str, str]
    calibration: dict[str, Any]
    """How the model calibrates its logits, as in config.json; empty: not at all."""
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Its form in export.json: the fields, and those of `quantized` beside them."""
        values = asdict(self)
        figures = values.pop("quantized")
        return values | (figures or {})


class ExportedNetwork(nn.Module):
    """The network with its probabilities, and how unknown pictures are to it."""

    reference_features: Tensor
    reference_means: Tensor

    def __init__(self, release: LoadedRelease) -> None:
        super().__init__()
        self.network = release.network
        self.references = release.references
        for name in ("features", "means"):
            tensor = getattr(release.references, name) if release.references else None
            self.register_buffer(f"reference_{name}", tensor)
        self.calibration = release.calibration
        self.multilabel = release.recipe.task == MULTILABEL

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits and probabilities, [B, K] each, of images [B, 3, R, R] uint8.

        Also scores of unknown pictures, [B], if the release has references.
        """
        features, logits = self.network.features_and_logits(images)
        shares = probabilities(logits, self.calibration, multilabel=self.multilabel)
        if self.references is None:
            return logits, shares
        references = replace(
            self.references, features=self.reference_features, means=self.reference_means
        )
        return logits, shares, references.scores(features)


RunModel = Callable[[Tensor], tuple[Tensor, ...]]
Converter = Callable[[torch.export.ExportedProgram, LoadedRelease], tuple[bytes, RunModel]]


def export(
    release: LoadedRelease,
    out: str,
    format: str = "onnx",
    quantizing: QuantizeOptions | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the release as `onnx` or `torch` into the folder `out`, local or s3://.

    `quantizing`: quantize the ONNX model to int8; `report` then says what is being done.
    Raises InputError if required packages are missing or `out` has an export already, ReleaseError
    if the exported model's outputs differ from the release's, EvaluationError if int8 loses too
    much.
    """
    if quantizing and format != "onnx":
        raise InputError(f"--quantize needs --format onnx, not {format}: omit one of them")
    convert, name = {"onnx": (_to_onnx, "model.onnx"), "torch": (_to_torch, "model.pt2")}[format]
    out = storage.absolute(out)
    if storage.exists(storage.join(out, RECORD)):
        raise InputError(f"{out} already contains an export: choose another --out, or delete it")
    if quantizing:
        check_quantizable(release, quantizing)
    data, difference = _convert(release, convert)
    quantized: Quantized | None = None
    if quantizing:
        data, quantized = quantize(data, release, quantizing, report)
    storage.write_bytes(storage.join(out, name), data)
    exported = Exported(
        release=release.reference,
        format=format,
        file=storage.join(out, name),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        difference=difference,
        quantized=quantized,
        **_interface(release) | ({"precision": PRECISION} if quantized else {}),
    )
    record = json.dumps(exported.as_json(), indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(out, RECORD), record.encode())
    return exported


def to_onnx(release: LoadedRelease) -> bytes:
    """The release as an ONNX model in float32. Raises InputError and ReleaseError as `export`."""
    return _convert(release, _to_onnx)[0]


def _convert(release: LoadedRelease, convert: Converter) -> tuple[bytes, float]:
    """The model's bytes, and the largest difference of its logits from the release's."""
    network = ExportedNetwork(release).eval()
    images = _synthetic_images(CHECK_BATCHES[-1], release.spec.resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        batch = torch.export.Dim("batch", max=MAX_BATCH)
        program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: batch}})
        data, run_model = convert(program, release)
    return data, _compare(network, run_model, release)


def _interface(release: LoadedRelease) -> dict[str, Any]:
    """What a caller needs to know: input, outputs, preprocessing and classes."""
    spec, size = release.spec, release.spec.resolution
    activation = "a sigmoid for each class" if release.recipe.task == MULTILABEL else "softmax"
    calibration, references = release.calibration, release.references
    outputs = {
        OUTPUTS[0]: "float32 [batch, classes]",
        OUTPUTS[1]: f"the calibrated logits after {activation}",
    }
    if references:
        outputs[OUTPUTS[2]] = (
            "float32 [batch], how unlike the release's images: unknown above "
            f"{references.threshold:.6g}"
        )
    return {
        "precision": "float32",
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, size, size],
            "dtype": "uint8",
            "layout": "NCHW",
            "colours": "RGB",
            "range": [0, 255],
        },
        "outputs": outputs,
        "calibration": calibration.to_json() if calibration.changes_logits else {},
        "preprocessing": {
            "turn": "by the EXIF orientation",
            "resize": f"{_resize_target(spec)}, {spec.interpolation}, antialiased",
            "crop": f"{size}×{size} px from the centre",
            "normalise": "done by the model: scale to 0–1, subtract "
            f"{list(spec.mean)}, divide by {list(spec.std)}",
        },
        "classes": release.classes,
    }


def _resize_target(spec: InputSpec) -> str:
    if spec.crop_mode == SQUASH:
        return f"both sides to {spec.resized} px, whatever the aspect ratio"
    return f"the shorter side to {spec.resized} px"


def _to_onnx(
    program: torch.export.ExportedProgram, release: LoadedRelease
) -> tuple[bytes, RunModel]:
    """The model's bytes, and a function that runs it."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx imports it
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[onnx]'"
        ) from error
    outputs = list(OUTPUTS if release.references else OUTPUTS[:2])
    onnx_program = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=outputs, verbose=False
    )
    assert onnx_program is not None
    model = onnx_program.model_proto
    for key, value in {"release": release.reference, **_interface(release)}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run_model(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(outputs, {INPUT: images.numpy()})))

    return data, run_model


def _to_torch(
    program: torch.export.ExportedProgram, release: LoadedRelease
) -> tuple[bytes, RunModel]:
    """The model's bytes, and a function that runs it."""
    file = io.BytesIO()
    record = {"release": release.reference, **_interface(release)}
    extra_files = {RECORD: json.dumps(record, ensure_ascii=False)}
    torch.export.save(program, file, extra_files=extra_files)
    return file.getvalue(), program.module()


def _synthetic_images(count: int, size: int) -> Tensor:
    """Soft patches of colour, [B, 3, R, R] uint8.

    Noise would be unlike any training image, and its logits unbounded.
    """
    draws = np.random.default_rng(0).uniform(0, 255, (count, 3, 5, 5)).astype(np.float32)
    soft = F.interpolate(torch.from_numpy(draws), (size, size), mode="bicubic")
    return soft.clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def _compare(network: ExportedNetwork, run_model: RunModel, release: LoadedRelease) -> float:
    """The largest difference of the logits. Raises ReleaseError if it is too large."""
    largest = 0.0
    for count in CHECK_BATCHES:
        images = _synthetic_images(count, release.spec.resolution)
        expected_logits, *expected_others = network(images)
        logits, *others = run_model(images)
        allowed = TOLERANCE * max(1.0, float(expected_logits.abs().max()))
        difference = float((logits - expected_logits).abs().max())
        pairs = zip(others, expected_others, strict=True)
        equal = [float((other - expected).abs().max()) <= TOLERANCE for other, expected in pairs]
        if difference > allowed or not all(equal):
            raise ReleaseError(
                f"the outputs of the exported model differ from those of {release.reference} "
                f"(a logit by {difference:.2g}): nothing was written; report this with "
                "the versions of torch, onnx and onnxruntime"
            )
        largest = max(largest, difference)
    return largest
