"""A training step asks a GPU for no number and waits for no copy: tried on torch's fake GPU.

Autograd's engine needs a real one, so `backward` only makes gradients there; a step on the CPU is
watched with its real one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.loop_worker import CLASSES, DIALS, FixedBatches, new_state, settled
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from effnet_ray.data.stream import Lane
from effnet_ray.model.network import Network, build
from effnet_ray.model.optimizer import optimizer
from effnet_ray.phases import phases
from effnet_ray.recipe import Recipe
from effnet_ray.train.batch import Batch
from effnet_ray.train.loss import TrainLoss
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, measure_step, train_step

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*Disabling autocast:UserWarning"),
]

CUDA = torch.device("cuda")


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to the fake GPU, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned, self.waiting = 0, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[func == torch.ops.aten.copy_.default]
            if source.device != result.device:
                pinned = hasattr(source, "pinned")
                self.pinned += pinned
                if not pinned:
                    self.waiting.append(f"{source.device} to {result.device}")
        return result


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Tensors without values; asking one for its value raises an error."""

    def pin_memory(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        copy.pinned = True  # type: ignore[attr-defined]
        return copy

    def backward(loss: Tensor) -> None:
        seen, nodes = set[Any](), [loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.empty_like(node.variable)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)  # which fake tensors lack
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: hasattr(tensor, "pinned"))
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield copies


def on_fake_gpu(network: Network) -> Network:
    """Move a network's tensors; `Module.to` does not take fake ones."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_strided(parameter.shape, parameter.stride(), device=CUDA)
            module.register_parameter(name, nn.Parameter(empty))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA))
    return network


KINDS = {
    "frozen BatchNorm": {},
    "training BatchNorm": {"batchnorm": "train", "image_size": 64},
    "every dial": DIALS,
    "float16": {"precision": "float16"},
    "float16 with every dial": {"precision": "float16", **DIALS},
    "bfloat16": {"precision": "bfloat16", "clip_grad": 1.0},
    "several labels": {"task": "multilabel", "mixup": 0.2},
}


def prepared(recipe: Recipe) -> tuple[PhaseTrainer, Batch]:
    """A trainer on the fake GPU, and a batch of two lanes."""
    with unset_fake_temporarily():
        real = [build(recipe, recipe.variant_spec.input_spec(), CLASSES) for _ in range(2)]
    network, averaged = map(on_fake_gpu, real)
    state = TrainState(network, optimizer(network, recipe), averaged if recipe.ema_decay else None)
    state.skipped, state.scale = state.skipped.to(CUDA), state.scale.to(CUDA)
    weights = [0.5] * CLASSES if recipe.task != "multilabel" else []
    loss = TrainLoss(
        recipe.label_smoothing, torch.empty(CLASSES, device=CUDA) if weights else None
    )
    size = recipe.image_size or 0
    image = torch.empty(8, size, size, 3, dtype=torch.uint8, device=CUDA).permute(0, 3, 1, 2)
    label = torch.empty(8, dtype=torch.int64, device=CUDA)
    if recipe.task == "multilabel":
        label = torch.empty(8, CLASSES, dtype=torch.uint8, device=CUDA)
    lanes = (Lane(0, 4), Lane(1, 4))
    batch = Batch(image, label, torch.empty(8, device=CUDA), lanes, 8)
    return PhaseTrainer(state, recipe, phases(recipe)[-1], loss), batch


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_asks_the_device_for_no_number_and_waits_for_no_copy(
    fake_gpu: Copies, kind: str
) -> None:
    trainer, batch = prepared(settled(**KINDS[kind]))
    fake_gpu.waiting.clear()
    for _ in range(2):
        sums = train_step(trainer, batch, 8, 1e-3)
    assert sums.sums.device.type == "cuda"
    assert fake_gpu.waiting == []
    assert fake_gpu.pinned == 2  # the draws of each step


def test_measuring_a_solved_head_asks_for_none(fake_gpu: Copies) -> None:
    trainer, batch = prepared(settled())
    fake_gpu.waiting.clear()
    measure_step(trainer, batch)
    assert fake_gpu.waiting == []


def test_the_fake_gpu_notices_what_waits(fake_gpu: Copies) -> None:
    value = torch.zeros(1, device=CUDA)
    torch.zeros(1).to(CUDA)
    assert fake_gpu.waiting == ["cpu to cuda:0"]
    with pytest.raises(DataDependentOutputException):
        float(value)


def test_an_optimizer_that_is_not_fused_asks_once(fake_gpu: Copies) -> None:
    """Whether the step is finite."""
    trainer, batch = prepared(settled(opt="lamb"))
    with pytest.raises(DataDependentOutputException):
        train_step(trainer, batch, 8, 1e-3)


class Numbers(TorchDispatchMode):
    """Counts the numbers that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.read += func == torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [*KINDS, "SGD"])
def test_a_whole_step_reads_no_number_of_a_tensor(kind: str) -> None:
    recipe = settled(**KINDS.get(kind, {"opt": "sgd"}))  # fused SGD has no fake kernel
    trainer = PhaseTrainer(new_state(recipe), recipe, phases(recipe)[-1])
    batch = next(FixedBatches(recipe).train(0))
    with Numbers() as numbers:
        train_step(trainer, batch, batch.readable, 1e-3)
    assert numbers.read == 0
    with Numbers() as numbers:
        float(trainer.state.skipped)
    assert numbers.read == 1
