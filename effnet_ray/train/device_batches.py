"""A worker's stream of images as batches on its device, one batch ahead of the training step."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_ray.data.stream import Images, Stream
from effnet_ray.train.batch import Batch

T = TypeVar("T")


class DeviceBatches:
    """Moves images to the device while the step before computes; measures the time spent waiting.

    A GPU's copies have a stream of their own.
    """

    def __init__(
        self,
        stream: Stream,
        device: torch.device,
        *,
        on_train_images: Callable[[Images, int], None],
        on_bad_eval_images: Callable[[list[Images]], None],
        multilabel_classes: int = 0,
    ) -> None:
        """`multilabel_classes` is 0 with one label per image.

        `on_train_images` is called with a step's images and the step (of the epoch) before the
        step, in a thread of its own; `on_bad_eval_images` after an evaluation with those of its
        batches that had bad images, without pixels.
        """
        self._stream, self._device = stream, device
        self._on_train_images, self._on_bad_eval_images = on_train_images, on_bad_eval_images
        self._multilabel_classes = multilabel_classes
        on_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.wait_s = 0.0
        """Time spent waiting for images since the last call of `train`."""

    def train(self, step: int) -> Iterator[Batch]:
        """The epoch's steps from `step` on: the images of this worker's lanes."""
        self.wait_s = 0.0
        yield from self._ahead(self._train(step))

    def _train(self, step: int) -> Iterator[Batch]:
        for number, images in enumerate(self._stream.train(step), step):
            self._on_train_images(images, number)
            yield self._batch(images)

    def eval(self) -> Iterator[Batch]:
        """This worker's share of the eval split."""
        with_bad_images: list[Images] = []
        yield from self._ahead(self._eval(with_bad_images))
        self._on_bad_eval_images(with_bad_images)

    def _eval(self, with_bad_images: list[Images]) -> Iterator[Batch]:
        for images in self._stream.eval():
            if images.bad:
                with_bad_images.append(replace(images, image=()))
            ids = torch.from_numpy(images.id)
            yield replace(self._batch(replace(images, teacher=None)), id=self._on_device(ids))

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, whose copies the device's current stream waits for."""
        for batch in self._timed(made_ahead(batches, self._device)):
            if self._copies:
                torch.cuda.current_stream(self._device).wait_stream(self._copies)
                for tensor in (batch.image, batch.label, batch.weight, batch.id, batch.teacher):
                    if tensor is not None:
                        tensor.record_stream(torch.cuda.current_stream(self._device))
            yield batch

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

    def _batch(self, images: Images) -> Batch:
        image = self._host_tensor(images.image)
        if image.ndim == 4:
            image = image.permute(0, 3, 1, 2)  # [B, 3, R, R], channels last
        label, weight = torch.from_numpy(images.label), torch.from_numpy(images.weight)
        if self._multilabel_classes and label.ndim == 1:
            label = F.one_hot(label, self._multilabel_classes).to(torch.uint8)
        readable = len(images.id) - int((images.weight == 0).sum())
        if self._copies is not None:
            label, weight = self._on_device(label), self._on_device(weight)
            with torch.cuda.stream(self._copies):
                image = image.to(self._device, non_blocking=True)  # it is in pinned memory
        teacher = images.teacher
        return Batch(
            image, label, weight, images.lanes, readable,
            teacher=None if teacher is None else self._on_device(torch.from_numpy(teacher)),
        )  # fmt: skip

    def _on_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device, made in the stream of copies; on a CPU the tensor itself."""
        if self._copies is None:
            return tensor
        with torch.cuda.stream(self._copies):
            return tensor.pin_memory().to(self._device, non_blocking=True)

    def _host_tensor(self, parts: Sequence[npt.NDArray[Any]]) -> Tensor:
        """The parts as one tensor on the CPU, in pinned memory for a GPU; a lone part stays."""
        if not parts:
            return torch.empty(0, 0, 0, 3, dtype=torch.uint8)
        if len(parts) == 1 and self._copies is None:
            return torch.from_numpy(parts[0])
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        dtype = torch.from_numpy(parts[0][:0]).dtype
        joined = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        np.concatenate(parts, out=joined.numpy())
        return joined


def made_ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """The items, each made in a thread while the one before is in use.

    The thread has the same current GPU as this worker: with another, CUDA would allocate there.
    """

    def set_device() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)

    pool = ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=set_device)
    try:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item
    finally:
        pool.shutdown(wait=False)
