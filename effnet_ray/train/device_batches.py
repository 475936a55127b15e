"""A worker's stream of images as batches on its device."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F

from effnet_ray.data.stream import Images, Stream
from effnet_ray.train.state import Batch

T = TypeVar("T")


class DeviceBatches:
    """Moves images to the device; measures the time spent waiting for them."""

    def __init__(
        self,
        stream: Stream,
        lanes: Sequence[int],
        device: torch.device,
        *,
        on_train_images: Callable[[list[Images]], None],
        on_bad_eval_images: Callable[[list[Images]], None],
        multilabel_classes: int = 0,
    ) -> None:
        """`lanes` are this worker's; `multilabel_classes` is 0 with one label per image.

        `on_train_images` is called with a step's images before the step, `on_bad_eval_images`
        after an evaluation with those of its batches that had bad images, without pixels.
        """
        self._stream, self._lanes, self._device = stream, lanes, device
        self._on_train_images, self._on_bad_eval_images = on_train_images, on_bad_eval_images
        self._multilabel_classes = multilabel_classes
        self.wait_s = 0.0
        """Time spent waiting for images since the last call of `train`."""

    def train(self, step: int) -> Iterator[Sequence[Batch]]:
        """The epoch's steps from `step` on, each as this worker's lanes."""
        self.wait_s = 0.0
        for images in self._timed(self._stream.train(step)):
            self._on_train_images(images)
            yield [
                self._batch(lane_images, lane)
                for lane_images, lane in zip(images, self._lanes, strict=True)
            ]

    def eval(self) -> Iterator[Batch]:
        """This worker's share of the eval split."""
        with_bad_images: list[Images] = []
        for images in self._timed(self._stream.eval()):
            if images.bad:
                with_bad_images.append(replace(images, image=images.image[:0]))
            yield self._batch(images, 0)
        self._on_bad_eval_images(with_bad_images)

    def _timed(self, source: Iterable[T]) -> Iterator[T]:
        iterator = iter(source)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - start
            yield item

    def _batch(self, images: Images, lane: int) -> Batch:
        image = torch.from_numpy(images.image)
        if image.ndim == 4:
            image = image.permute(0, 3, 1, 2)  # [B, 3, R, R], channels last
        label, weight = torch.from_numpy(images.label), torch.from_numpy(images.weight)
        if self._multilabel_classes and label.ndim == 1:
            label = F.one_hot(label, self._multilabel_classes).to(torch.uint8)
        if self._device.type == "cuda":  # copies from pinned memory overlap with compute
            image, label, weight = image.pin_memory(), label.pin_memory(), weight.pin_memory()
        image, label, weight = (
            tensor.to(self._device, non_blocking=True) for tensor in (image, label, weight)
        )
        return Batch(image, label, weight, lane)
