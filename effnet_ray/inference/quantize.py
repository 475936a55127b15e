"""An ONNX export whose convolutions compute in int8, and what that costs on the eval split.

ONNX Runtime quantizes weights per channel and activations per tensor, whose ranges it takes from
train images. Only convolutions are quantized: they have nearly all weights, and the nonlinear
parts of EfficientNet (swish, the gates of squeeze-and-excite) lose accuracy in int8. If too much
is lost, the convolutions that change the logits most, each quantized alone, stay float: one, two,
four, … until the loss is allowed.
"""

import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effnet_ray.errors import DatasetError, EvaluationError, InputError
from effnet_ray.inference import eval_inputs
from effnet_ray.inference.evaluate import open_inputs
from effnet_ray.inference.logits import predicted_class
from effnet_ray.release.load import LoadedRelease
from effnet_ray.schema import require
from effnet_ray.storage.temporary import temporary_folder

CALIBRATION_IMAGES = 256
"""Train images from which the ranges of activations are taken. Chosen, not measured."""
SENSITIVITY_IMAGES = 64
"""Train images on which each convolution is quantized alone. Chosen, not measured."""
BATCH = 32
LATENCY_RUNS = 25
"""Single images whose median time is the latency."""
INPUT, LOGITS = "images", "logits"
PRECISION = "int8 convolutions, the rest float32"
SPLITS = "train", "eval"
"""From which ranges are taken, and on which the loss is measured."""

Views = npt.NDArray[np.uint8]
"""[n, 3, R, R]"""
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeOptions:
    """What is quantized on which images, and how much it may lose."""

    data: str
    """URI of the data set with train and eval images."""
    max_drop: float = 1.0
    """The most points of eval top-1 that int8 may lose."""
    limit: int | None = None
    """Measure top-1 on the first N eval images only. Default: all."""

    def __post_init__(self) -> None:
        """Raise RecipeError if a value is out of range."""
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more")
        require(math.isfinite(self.max_drop), "max_drop", self.max_drop, "a number of points")


@dataclass(frozen=True, slots=True)
class Quantized:
    """What int8 changed. Field names are keys of `export.json`."""

    top1: float
    """Eval top-1 in int8, 0 to 1."""
    top1_float: float
    """Eval top-1 of the float export, on the same images."""
    drop_points: float
    """Points of top-1 lost: 100 × (top1_float − top1)."""
    ms: float
    """Median time for one image on this machine, milliseconds."""
    ms_float: float
    bytes_float: int
    """Size of the float export."""
    eval_images: int
    convolutions: int
    float_convolutions: int
    """Convolutions that stay float."""


def quantize(
    model: bytes, release: LoadedRelease, options: QuantizeOptions, report: Report
) -> tuple[bytes, Quantized]:
    """The int8 model of a float ONNX export, and what it loses; `report` says what is being done.

    Call `check_quantizable` first. Raises EvaluationError if more than `max_drop` points are lost
    with half of them float.
    """
    with (
        temporary_folder("quantize") as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # ONNX Runtime's advice about its own steps
        images = _Images(release, options, folder)
        report(f"measuring top-1 of float32 on {len(images.eval_views):,} eval images")
        search = _Search(model, images, folder)
        int8, kept_float, top1 = search.run(options.max_drop, report)
        drop = 100 * (search.top1_float - top1)
        if search.loses_too_much(top1, options.max_drop):
            raise EvaluationError(
                f"int8 loses {drop:.2f} points of top-1 on {len(images.labels):,} eval images "
                f"({search.top1_float:.2%} to {top1:.2%}), more than --max-drop "
                f"{options.max_drop:g}: nothing was written; allow more, or export float32"
            )
        return _with_precision(int8), search.figures(int8, kept_float, top1)


def _with_precision(model: bytes) -> bytes:
    """The model, whose metadata says that it computes in int8."""
    import onnx

    proto = onnx.load_from_string(model)
    for entry in proto.metadata_props:
        if entry.key == "precision":
            entry.value = PRECISION
    return bytes(proto.SerializeToString())


def check_quantizable(release: LoadedRelease, options: QuantizeOptions) -> None:
    """Raise InputError if packages are missing, or the data does not fit the release."""
    for split in SPLITS:
        open_inputs(release, options.data, split, False, options.limit)
    try:
        import onnx  # noqa: F401
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed: pip install 'effnet-ray[onnx]'"
        ) from error


class _Images:
    """Views of train and eval images, in files that are as large as need be."""

    def __init__(self, release: LoadedRelease, options: QuantizeOptions, folder: Path) -> None:
        self._release, self._options, self._folder = release, options, folder
        self.train_views, _ = self._read(SPLITS[0], CALIBRATION_IMAGES)
        self.eval_views, self.labels = self._read(SPLITS[1], options.limit)

    def _read(self, split: str, limit: int | None) -> tuple[Views, list[Sequence[int]]]:
        """Views of the readable images of a split, and their labels."""
        inputs = open_inputs(self._release, self._options.data, split, False, limit)
        size = self._release.spec.resolution
        _require_space(self._folder, inputs.images * 3 * size**2)
        views = np.memmap(
            self._folder / split, np.uint8, "w+", shape=(inputs.images, 3, size, size)
        )
        labels = list[Sequence[int]]()
        for group in inputs.read_units(BATCH):
            for unit_views, metadata in eval_inputs.preprocess(inputs, group):
                rows = zip(unit_views, metadata["label"], metadata["error"], strict=True)
                for view, label, error in rows:
                    if not error:
                        views[len(labels)] = view.transpose(2, 0, 1)
                        labels.append([label] if isinstance(label, int) else label)
        if not labels:
            raise DatasetError(
                f"none of the {inputs.images:,} {split} images of {inputs.data} can be read: "
                "restore the data set from a copy, or pack it again"
            )
        return views[: len(labels)], labels


def _require_space(folder: Path, needed: int) -> None:
    """Raise InputError if the folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the views need {needed / 1e9:,.1f} GB in {folder.parent}, which has "
            f"{free / 1e9:,.1f} GB left: lower --limit, or set TMPDIR to a larger disk"
        )


class _Search:
    """Finds the fewest convolutions that must stay float."""

    def __init__(self, model: bytes, images: _Images, folder: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._images, self._folder, self._float = images, folder, model
        (folder / "float.onnx").write_bytes(model)
        self._prepared = folder / "prepared.onnx"
        quant_pre_process(folder / "float.onnx", self._prepared, skip_symbolic_shape=True)
        self.convolutions = _convolutions(self._prepared)
        self.top1_float = self.top1(model)

    def run(self, max_drop: float, report: Report) -> tuple[bytes, int, float]:
        """The int8 model, how many convolutions stay float (at most half), and its top-1."""
        report(f"quantizing {len(self.convolutions)} convolutions")
        int8, kept_float = self.quantized(()), 0
        top1, order = self.top1(int8), list[str]()
        while self.loses_too_much(top1, max_drop):
            kept_float = max(1, 2 * kept_float)
            if kept_float > len(self.convolutions) // 2:
                return int8, kept_float // 2, top1
            order = order or self._by_sensitivity(report)
            drop = 100 * (self.top1_float - top1)
            report(f"int8 loses {drop:.2f} points: keeping {kept_float} in float32")
            int8 = self.quantized(order[:kept_float])
            top1 = self.top1(int8)
        return int8, kept_float, top1

    def loses_too_much(self, top1: float, max_drop: float) -> bool:
        """Whether int8 loses more points than allowed; a millionth is rounding."""
        return 100 * (self.top1_float - top1) > max_drop + 1e-6

    def figures(self, int8: bytes, kept_float: int, top1: float) -> Quantized:
        """What the int8 model loses and gains."""
        return Quantized(
            top1=top1,
            top1_float=self.top1_float,
            drop_points=100 * (self.top1_float - top1),
            ms=self._latency_ms(int8),
            ms_float=self._latency_ms(self._float),
            bytes_float=len(self._float),
            eval_images=len(self._images.labels),
            convolutions=len(self.convolutions),
            float_convolutions=kept_float,
        )

    def _by_sensitivity(self, report: Report) -> list[str]:
        """The convolutions, first the one that changes the logits most if quantized alone."""
        report("looking for the convolutions that lose most")
        views = self._images.train_views[:SENSITIVITY_IMAGES]
        expected = _logits(self._float, views)
        change = {}
        for name in self.convolutions:
            others = [other for other in self.convolutions if other != name]
            change[name] = float(((_logits(self.quantized(others), views) - expected) ** 2).mean())
        return sorted(change, key=lambda name: -change[name])

    def quantized(self, kept_float: Sequence[str]) -> bytes:
        """The model in int8, but for these convolutions."""
        from onnxruntime.quantization import QuantType, quantize_static

        target = self._folder / "int8.onnx"
        quantize_static(
            self._prepared,
            target,
            _Calibration(self._images.train_views),
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=QuantType.QUInt8,  # for CPUs; signed ones were twice as slow here
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept_float),
            calibration_cache_path=self._folder / "ranges.json",
        )
        return target.read_bytes()

    def top1(self, model: bytes) -> float:
        """Share of eval images whose highest logit is that of a label."""
        predicted = predicted_class(_logits(model, self._images.eval_views)).tolist()
        pairs = zip(predicted, self._images.labels, strict=True)
        return sum(index in labels for index, labels in pairs) / max(1, len(predicted))

    def _latency_ms(self, model: bytes) -> float:
        session, times = _session(model), []
        for run in range(LATENCY_RUNS):
            view = self._images.eval_views[run % len(self._images.eval_views)][None]
            start = time.perf_counter()
            session.run([LOGITS], {INPUT: view})
            times.append(time.perf_counter() - start)
        return 1000 * float(np.median(times))


class _Calibration:
    """ONNX Runtime's CalibrationDataReader over views."""

    def __init__(self, views: Views) -> None:
        self._batches: Iterator[Views] = _batches(views)

    def get_next(self) -> dict[str, Views] | None:
        """The next batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _convolutions(path: Path) -> list[str]:
    """Names of the model's convolutions."""
    import onnx

    return [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]


def _batches(views: Views) -> Iterator[Views]:
    for first in range(0, len(views), BATCH):
        yield np.ascontiguousarray(views[first : first + BATCH])


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _logits(model: bytes, views: Views) -> npt.NDArray[np.float32]:
    session = _session(model)
    parts = [session.run([LOGITS], {INPUT: batch})[0] for batch in _batches(views)]
    logits: npt.NDArray[np.float32] = np.concatenate(parts)
    return logits
