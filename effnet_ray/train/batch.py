"""The images of one worker in one step, or some eval images, on the worker's device."""

from dataclasses import dataclass

from torch import Tensor

from effnet_ray.data.stream import Lane


@dataclass(frozen=True, slots=True)
class Batch:
    """A worker's images of one step, lane after lane, or some eval images, on its device."""

    image: Tensor
    """[B, 3, R, R] uint8 in channels-last memory format; or features [B, F] of a frozen
    backbone."""
    label: Tensor
    """[B] int64; or [B, K] uint8 of 0 and 1 with several labels per image."""
    weight: Tensor
    """[B] float32: 1, or 0 for a quarantined image."""
    lanes: tuple[Lane, ...] = ()
    """The lanes of a step, whose images follow one another; their rows add up to B."""
    readable: int = 0
    """Number of images of weight 1, known without asking the device."""
    id: Tensor | None = None
    """[B] int64: the ids of eval images."""

    @property
    def is_padding(self) -> bool:
        """Whether these images of weight 0 only let a worker without images take part."""
        return bool(self.lanes) and self.lanes[0].index < 0

    def part(self, first: int, rows: int) -> "Batch":
        """`rows` images from `first` on, without their lanes."""
        rest = slice(first, first + rows)
        return Batch(self.image[rest], self.label[rest], self.weight[rest])
