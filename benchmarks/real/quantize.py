"""What int8 costs: top-1, size and latency of each export, in one run.

    python benchmarks/real/fetch.py --out ~/effnet-real
    python benchmarks/real/quantize.py --real ~/effnet-real --out ~/effnet-quantize

EfficientNet-Lite0's ImageNet weights on three sets, and a B0, whose swish and squeeze-and-excite
are harder to quantize, trained from scratch on the digits.
"""

import json
import shutil
from collections.abc import Iterator

import torch
import tyro
from unknown import Options, classes_of, trained

from effnet_ray.inference.export import export
from effnet_ray.inference.quantize import QuantizeOptions
from effnet_ray.release.load import LoadedRelease

SETS = ("digits", "emoji", "fashion")
SCRATCH = {"weights": "none", "flip": 0.0, "crop_scale": 0.7, "lr": 3e-3, "batch_size": 32}


def releases(options: Options) -> Iterator[tuple[str, LoadedRelease]]:
    """The name of each row, and its release."""
    for name in SETS:
        yield f"Lite0, {name}", trained(options, name, classes_of(options, name), name)
    b0 = trained(options, "digits", classes_of(options, "digits"), "b0", variant="b0", **SCRATCH)
    yield "B0 from scratch, digits", b0


def main(options: Options) -> None:
    """Print a row per release."""
    columns = ("release", "eval images", "top-1 float32", "top-1 int8", "points lost",
               "float convolutions", "MB float32", "MB int8", "ms float32", "ms int8")  # fmt: skip
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    found = {}
    for name, release in releases(options):
        out = options.out / "exported"
        shutil.rmtree(out, ignore_errors=True)
        quantizing = QuantizeOptions(data=str(release.provenance["data"]), max_drop=1.0)
        exported = export(release, str(out), quantizing=quantizing)
        int8 = exported.quantized
        assert int8
        print(
            f"| {name} | {int8.eval_images} | {int8.top1_float:.3f} | {int8.top1:.3f} | "
            f"{int8.drop_points:.2f} | {int8.float_convolutions} of {int8.convolutions} | "
            f"{int8.bytes_float / 1e6:.1f} | {exported.bytes / 1e6:.1f} | {int8.ms_float:.2f} | "
            f"{int8.ms:.2f} |"
        )
        found[name] = exported.as_json()
    print(json.dumps({"rows": found, "torch": torch.__version__}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
