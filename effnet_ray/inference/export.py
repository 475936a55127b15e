"""A release for those who have no effnet_ray: as ONNX, or as PyTorch's exported program.

    OUT/model.onnx or OUT/model.pt2   pixels in, logits and probabilities out
    OUT/export.json                   what it expects and gives, its classes; written last

The batch may be of any size. Normalising is inside; resizing and cropping are the caller's, and
are told in export.json, in ONNX also in the model's own metadata. What is written computes in
float32, whatever precision the release was trained in and is judged in, and has been held against
the release's network in float32.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet_ray import storage
from effnet_ray.errors import InputError, ReleaseError
from effnet_ray.recipe import MULTILABEL
from effnet_ray.release.load import LoadedRelease

RECORD = "export.json"
INPUT, OUTPUTS = "images", ("logits", "probabilities")
MOST = 4096
"""Images of a batch; an exported program wants a bound."""
TOLERANCE = 1e-4
"""Largest difference to the release's logits, as a share of the largest of them, if above 1."""
TRIED = (1, 3)
"""Images of the batches that both are shown."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    release: str
    format: str
    """onnx or torch"""
    file: str
    """URI of the model."""
    bytes: int
    sha256: str
    difference: float
    """Largest difference of a logit to the release's in float32, on made-up images."""
    precision: str
    """What it computes in."""
    input: dict[str, Any]
    outputs: dict[str, str]
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]


class ExportedNetwork(nn.Module):
    """Pixels to logits and probabilities."""

    def __init__(self, release: LoadedRelease) -> None:
        super().__init__()
        self.network = release.network
        self.several = release.recipe.task == MULTILABEL

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, R, R] uint8 → twice [B, K]; where images may have several classes, the
        probability of each by itself."""
        logits = self.network(images)
        return logits, logits.sigmoid() if self.several else logits.softmax(1)


Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def export(release: LoadedRelease, out: str, kind: str = "onnx") -> Exported:
    """Write the release as `onnx` or `torch` into the folder `out`, local or s3://.

    Raises InputError where the packages for it are not installed or `out` has an export already,
    ReleaseError where what came out says something else than the release.
    """
    make, name = {"onnx": (_onnx, "model.onnx"), "torch": (_torch, "model.pt2")}[kind]
    out = storage.absolute(out)
    if storage.exists(storage.join(out, RECORD)):
        raise InputError(f"{out} has an export already: choose another --out, or delete it")
    whole = ExportedNetwork(release).eval()
    pixels = _pixels(TRIED[-1], release.spec.resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about their insides
        program = torch.export.export(
            whole, (pixels,), dynamic_shapes={"images": {0: torch.export.Dim("batch", max=MOST)}}
        )
        data, run = make(program, release)
    difference = _difference(whole, run, release)
    storage.write_bytes(storage.join(out, name), data)
    exported = Exported(
        release=release.reference,
        format=kind,
        file=storage.join(out, name),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        difference=difference,
        **_told(release),
    )
    told = json.dumps(asdict(exported), indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(out, RECORD), told.encode())
    return exported


def _told(release: LoadedRelease) -> dict[str, Any]:
    """What a caller must know."""
    spec, size = release.spec, release.spec.resolution
    several = release.recipe.task == MULTILABEL
    return {
        "precision": "float32",
        "input": {"name": INPUT, "shape": ["batch", 3, size, size], "dtype": "uint8",
                  "layout": "NCHW", "colours": "RGB", "range": [0, 255]},
        "outputs": {
            OUTPUTS[0]: "float32 [batch, classes]",
            OUTPUTS[1]: f"the same through {'a sigmoid each' if several else 'softmax'}",
        },
        "preprocessing": {
            "turn": "as EXIF's orientation says",
            "resize": f"the shorter side to {int(size / spec.crop)} px, {spec.interpolation}, "
            "antialiased",
            "crop": f"{size}×{size} px from the centre",
            "normalise": f"inside: minus {list(spec.mean)}, by {list(spec.std)}, of 0 to 1",
        },
        "classes": release.classes,
    }  # fmt: skip


def _onnx(program: torch.export.ExportedProgram, release: LoadedRelease) -> tuple[bytes, Run]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx wants it
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[onnx]'"
        ) from error
    made = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
    )
    assert made is not None
    model = made.model_proto
    for key, value in {"release": release.reference, **_told(release)}.items():
        told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=key, value=told)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return data, run


def _torch(program: torch.export.ExportedProgram, release: LoadedRelease) -> tuple[bytes, Run]:
    file = io.BytesIO()
    told = json.dumps({"release": release.reference, **_told(release)}, ensure_ascii=False)
    torch.export.save(program, file, extra_files={RECORD: told})
    return file.getvalue(), program.module()


def _pixels(images: int, size: int) -> Tensor:
    """Soft patches of colour, [B, 3, R, R] uint8: noise would be like nothing that was learnt, and
    its logits beyond all bounds."""
    draws = np.random.default_rng(0).uniform(0, 255, (images, 3, 5, 5)).astype(np.float32)
    soft = F.interpolate(torch.from_numpy(draws), (size, size), mode="bicubic")
    return soft.clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def _difference(whole: ExportedNetwork, run: Run, release: LoadedRelease) -> float:
    """Of the logits, at most. Raises ReleaseError where it is too large."""
    worst = 0.0
    for images in TRIED:
        pixels = _pixels(images, release.spec.resolution)
        (expected, share), (found, said) = whole(pixels), run(pixels)
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        apart = float((found - expected).abs().max())
        if not (apart <= allowed and torch.allclose(said, share, atol=TOLERANCE)):
            raise ReleaseError(
                f"the export of {release.reference} says something else than the release (a logit "
                f"differs by {apart:.2g}): nothing was written; report it with the versions of "
                "torch, onnx and onnxruntime"
            )
        worst = max(worst, apart)
    return worst
