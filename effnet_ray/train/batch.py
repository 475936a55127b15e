"""The images of one worker in one step, or some eval images, on the worker's device."""

from dataclasses import dataclass

from torch import Tensor

from effnet_ray.data.stream import Lane


@dataclass(frozen=True, slots=True)
class Target:
    """What a network is trained to say of some images."""

    label: Tensor
    """[B] int64; or [B, K] uint8 of 0 and 1 with several labels per image."""
    teacher: Tensor | None = None
    """[B, K] logits of the recipe's teacher, NaN for images that could not be read; None without
    a teacher."""

    def __getitem__(self, rows: slice | Tensor) -> "Target":
        """That of some of the images."""
        return Target(self.label[rows], None if self.teacher is None else self.teacher[rows])


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
    teacher: Tensor | None = None
    """As in `Target`; None for eval images."""

    @property
    def target(self) -> Target:
        """What the network is trained to say of these images."""
        return Target(self.label, self.teacher)

    @property
    def is_padding(self) -> bool:
        """Whether these images of weight 0 only let a worker without images take part."""
        return bool(self.lanes) and self.lanes[0].index < 0

    def part(self, first: int, rows: int) -> "Batch":
        """`rows` images from `first` on, without their lanes."""
        rest = slice(first, first + rows)
        target = self.target[rest]
        return Batch(self.image[rest], target.label, self.weight[rest], teacher=target.teacher)
