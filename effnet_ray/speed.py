"""How a variant's network lies in memory, and whether it is compiled, where a recipe says neither.

A fixed table, never a timing inside a run: so a run is the same run wherever it is resumed. Pure.

Rows of CPUs: layouts measured by `benchmarks/train_step.py` on 2 cores with AVX-512, in float32
(`benchmarks/results/train_step.txt`). At 96 px channels_last is a tenth faster for b0 to b2 and up
to 13 % slower for b4 to b7; at their own sizes, which a recipe has unless it says, it is 10 to
20 % faster for b4 and b5. b6 and b7 were not measured there, and go by those. Compiling was
measured for b0 and b1: 1.2 to 1.4 times as fast, after a minute that runs below five do not earn.
Rows of GPUs: not measured here. channels_last trains all eight variants 1.16 to 1.36 times as
fast in timm's own figures (`benchmark-train-amp-{nchw,nhwc}-pt112-cu113-rtx3090.csv`). Compiling
is off, since of a run or a sweep's trial that is short it costs more than it gains.
"""

from dataclasses import dataclass

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LAYOUTS = (CHANNELS_LAST, CONTIGUOUS)


@dataclass(frozen=True, slots=True)
class Speed:
    """What makes steps faster or slower and changes no number by more than rounding."""

    layout: str
    """One of LAYOUTS."""
    compile: bool


_EAGER = Speed(CHANNELS_LAST, compile=False)

TABLE: dict[tuple[str, str], Speed] = {
    ("b0", "cpu"): _EAGER, ("b0", "cuda"): _EAGER,
    ("b1", "cpu"): _EAGER, ("b1", "cuda"): _EAGER,
    ("b2", "cpu"): _EAGER, ("b2", "cuda"): _EAGER,
    ("b3", "cpu"): _EAGER, ("b3", "cuda"): _EAGER,
    ("b4", "cpu"): _EAGER, ("b4", "cuda"): _EAGER,
    ("b5", "cpu"): _EAGER, ("b5", "cuda"): _EAGER,
    ("b6", "cpu"): _EAGER, ("b6", "cuda"): _EAGER,
    ("b7", "cpu"): _EAGER, ("b7", "cuda"): _EAGER,
}  # fmt: skip
"""(variant, kind of device) → what is chosen."""

UNRECORDED = _EAGER
"""What runs did whose record says neither."""
