"""Other ways to fine-tune ImageNet weights, in plain torch, each with the defaults of its source.

All of them get the same images, network, size and number of epochs. A source's batch is cut to the
number of train images; rates and schedules are its own, as shares of the epochs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

from effnet_ray.data.views import eval_view
from effnet_ray.variants import InputSpec

Schedule = Callable[[float], float]
"""Share of a stage's steps, 0 to 1 → share of its rate."""
Groups = list[dict[str, object]]
"""Parameter groups of a torch optimizer."""


# --- schedules


def cosine(done: float, *, warmup: float = 0.0, start: float = 0.0) -> float:
    """Linear from `start` to 1 over the share `warmup`, then half a cosine to 0."""
    if done < warmup:
        return start + (1 - start) * done / warmup
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


def one_cycle(done: float, *, peak: float, divisor: float) -> float:
    """Fastai's: cosines from 1/divisor to 1 at `peak`, and to 1e-5 of the start at the end."""
    first, last, share = (1 / divisor, 1.0, done / peak) if done < peak else (
        1.0, 1e-5, (done - peak) / (1 - peak)
    )  # fmt: skip
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def staircase(done: float) -> float:
    """BiT-HyperRule's: warm-up over a fifth, then a tenth after two, three and four fifths."""
    return done * 5 if done < 0.2 else 0.1 ** max(0, math.ceil(done * 5 - 2))


# --- networks


class Classifier(nn.Module):
    """A timm backbone and a head; normalises uint8 images."""

    def __init__(self, backbone: nn.Module, head: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, R, R], uint8 or 0 to 255."""
        return self.head(self.backbone.forward_features((image / 255 - self.mean) / self.std))

    def depth(self, name: str) -> int:
        """0 for the stem, then a number for each block; the head has the highest."""
        parts, blocks = name.split("."), sum(len(stage) for stage in self.backbone.blocks)
        if parts[0] == "head":
            return blocks + 2
        if parts[1] == "blocks":
            before = sum(len(stage) for stage in self.backbone.blocks[: int(parts[2])])
            return 1 + before + int(parts[3])
        return blocks + 1 if parts[1] in ("conv_head", "bn2") else 0


def linear_head(features: int, classes: int, *, zero: bool = False) -> nn.Module:
    """Average pooling and a linear layer, of zeros or as torch initialises it."""
    linear = nn.Linear(features, classes)
    if zero:
        nn.init.zeros_(linear.weight)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def keras_head(features: int, classes: int) -> nn.Module:
    """Average pooling, BatchNorm of Keras's momentum and epsilon, dropout, a linear layer."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(features, momentum=0.01, eps=1e-3),
        nn.Dropout(0.2),
        nn.Linear(features, classes),
    )


class ConcatPool(nn.Module):
    """Maximum and mean over the pixels."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, 2F] of [B, F, h, w]."""
        return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


def fastai_head(features: int, classes: int) -> nn.Module:
    """Fastai's `create_head`, initialised by Kaiming's rule."""
    head = nn.Sequential(
        ConcatPool(),
        nn.BatchNorm1d(2 * features),
        nn.Dropout(0.25),
        nn.Linear(2 * features, 512, bias=False),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, classes, bias=False),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return head


# --- parameter groups


def all_alike(model: Classifier, lr: float, decay: float) -> Groups:
    """One rate; no decay of biases and BatchNorm."""
    return _groups(model, lambda _: lr, decay)


def by_depth(model: Classifier, lr: float, decay: float, *, factor: float) -> Groups:
    """The head's rate, times `factor` for every block below it."""
    top = model.depth("head")
    return _groups(model, lambda name: lr * factor ** (top - model.depth(name)), decay)


def body_and_head(model: Classifier, lr: float, decay: float, *, factor: float) -> Groups:
    """The head's rate, and `factor` times it for the backbone."""
    return _groups(model, lambda name: lr if name.startswith("head") else lr * factor, decay)


def _groups(model: Classifier, rate: Callable[[str], float], decay: float) -> Groups:
    return [
        {"params": [p], "lr": rate(name), "weight_decay": decay if p.ndim > 1 else 0.0}
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


# --- the sources


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some of a baseline's epochs."""

    share: float = 1.0
    """Share of the epochs; at least one."""
    lowest: int = 0
    """Trains the blocks from the `lowest`-th last one up; 0: everything, 1: the head alone."""
    trains_norm: bool = True
    """Whether BatchNorm below the head uses and follows the batch's statistics, and trains."""
    norm_of_frozen: bool = False
    """Whether BatchNorm also trains in frozen blocks."""
    lr: float
    decay: float = 0.0
    groups: Callable[..., Groups] = all_alike
    optimizer: Callable[[Groups], torch.optim.Optimizer]
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """How a source fine-tunes."""

    source: str
    batch: int
    augment: Callable[[int], v2.Transform]
    """The random view of a uint8 image [3, h, w], for a size of the network's input in px."""
    head: Callable[[int, int], nn.Module] = linear_head
    stages: tuple[Stage, ...]
    smoothing: float = 0.0
    clip: float = math.inf
    """Limit of the gradient's norm."""


def square(size: int, *transforms: v2.Transform) -> v2.Compose:
    """The whole image in a square, then the transforms."""
    return v2.Compose([v2.Resize((size, size), antialias=True), *transforms])


def random_crop(size: int, *transforms: v2.Transform) -> v2.Compose:
    """A random part of 8 to 100 % of the image, mirrored or not, then the transforms."""
    crop = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *transforms])


def keras_augment(size: int) -> v2.Compose:
    """Rotation by up to 0.15 turns, shifts, both mirrors, contrast."""
    affine = v2.RandomAffine(54, translate=(0.1, 0.1))
    mirrors = (v2.RandomHorizontalFlip(), v2.RandomVerticalFlip())
    return square(size, affine, *mirrors, v2.ColorJitter(contrast=0.1))


def fastai_augment(size: int) -> v2.Compose:
    """`aug_transforms`: mirror, and each of the others three times out of four."""
    often = partial(v2.RandomApply, p=0.75)
    return square(
        size,
        v2.RandomHorizontalFlip(),
        often([v2.RandomAffine(10, scale=(1.0, 1.1))]),
        often([v2.RandomPerspective(0.2, p=1.0)]),
        often([v2.ColorJitter(brightness=0.2, contrast=0.2)]),
    )


def bit_augment(size: int) -> v2.Compose:
    """A random crop of an image a quarter larger, mirrored or not."""
    larger = size * 5 // 4
    return square(larger, v2.RandomCrop(size), v2.RandomHorizontalFlip())


sgd = partial(torch.optim.SGD, momentum=0.9)
fastai_adam = partial(torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5)

BASELINES = {
    "Keras example": Baseline(
        source="keras.io, Image classification via fine-tuning with EfficientNet (2026-07): "
        "25 epochs of the head, 4 of the last 20 layers with frozen BatchNorm",
        batch=64,
        augment=keras_augment,
        head=keras_head,
        stages=(
            Stage(share=25 / 29, lowest=1, lr=1e-2, optimizer=torch.optim.Adam,
                  schedule=lambda _: 1.0, trains_norm=False),
            Stage(share=4 / 29, lowest=3, lr=1e-5, optimizer=torch.optim.Adam,
                  schedule=lambda _: 1.0, trains_norm=False),
        ),
    ),
    "timm train.py": Baseline(
        source="timm 1.0's train.py with --pretrained and no other flag: SGD, 0.1 at a batch of "
        "256, five epochs of warm-up, label smoothing 0.1",
        batch=128,
        augment=lambda size: random_crop(size, v2.ColorJitter(0.4, 0.4, 0.4)),
        stages=(
            Stage(lr=0.05, decay=2e-5, optimizer=partial(sgd, nesterov=True),
                  schedule=partial(cosine, warmup=0.5, start=1e-5 / 0.05)),
        ),
        smoothing=0.1,
    ),
    "timm loop, AdamW 1e-3": Baseline(
        source="what is usually written by hand: AdamW, cosine, all layers at one rate",
        batch=64,
        augment=random_crop,
        stages=(
            Stage(lr=1e-3, decay=1e-2, optimizer=torch.optim.AdamW,
                  schedule=partial(cosine, warmup=0.05)),
        ),
    ),
    "fastai fine_tune": Baseline(
        source="fastai 2.8, vision_learner(…).fine_tune(9): one epoch of the head at 2e-3, then "
        "all at 1e-3 and the backbone at a hundredth of it",
        batch=64,
        augment=fastai_augment,
        head=fastai_head,
        stages=(
            Stage(share=0.1, lowest=1, norm_of_frozen=True, lr=2e-3, decay=1e-2,
                  optimizer=fastai_adam, schedule=partial(one_cycle, peak=0.99, divisor=25)),
            Stage(share=0.9, lr=1e-3, decay=1e-2, groups=partial(body_and_head, factor=1e-2),
                  optimizer=fastai_adam, schedule=partial(one_cycle, peak=0.3, divisor=5)),
        ),
    ),
    "BiT-HyperRule": Baseline(
        source="google-research/big_transfer, bit_hyperrule.py for fewer than 20,000 images: SGD "
        "0.003, batch 512, a head of zeros",
        batch=512,
        augment=bit_augment,
        head=partial(linear_head, zero=True),
        stages=(Stage(lr=3e-3, optimizer=sgd, schedule=staircase),),
    ),
    "AutoGluon": Baseline(
        source="autogluon.multimodal's optim/default.yaml (without its average of checkpoints): "
        "AdamW 1e-4, layer decay 0.9, clip 1, TrivialAugment",
        batch=128,
        augment=lambda size: square(size, v2.TrivialAugmentWide()),
        stages=(
            Stage(lr=1e-4, decay=1e-3, groups=partial(by_depth, factor=0.9),
                  optimizer=torch.optim.AdamW, schedule=partial(cosine, warmup=0.1)),
        ),
        clip=1.0,
    ),
}  # fmt: skip
"""Name → how it fine-tunes."""


# --- training


@dataclass(frozen=True)
class Pictures:
    """Labelled images of any size."""

    images: list[Tensor]
    """Each uint8 [3, h, w]."""
    label: Tensor
    """[N] int64."""


def load(folder: Path) -> Pictures:
    """The images of class folders, in the order of their names."""
    from torchvision.io import ImageReadMode, decode_image

    files = [(number, file) for number, place in enumerate(sorted(folder.iterdir()))
             for file in sorted(place.iterdir())]  # fmt: skip
    images = [decode_image(str(file), ImageReadMode.RGB) for _, file in files]
    return Pictures(images, torch.tensor([number for number, _ in files]))


def fine_tune(
    baseline: Baseline, train: Pictures, classes: int, weights: Path, *,
    epochs: int, spec: InputSpec, variant: str, seed: int,
) -> Classifier:  # fmt: skip
    """The network after all stages."""
    torch.manual_seed(seed)
    backbone = timm.create_model(f"tf_efficientnet_{variant}")
    backbone.load_state_dict(load_file(weights))
    model = Classifier(backbone, baseline.head(backbone.num_features, classes), spec)
    backbone.reset_classifier(0)
    model.to(memory_format=torch.channels_last)  # 1.6 times as fast on CPUs
    left = epochs
    for stage in baseline.stages:
        last = stage is baseline.stages[-1]
        count = left if last else max(1, round(stage.share * epochs))
        left -= count
        _train(model, baseline, stage, train, epochs=count, size=spec.resolution)
    return model.eval()


def _train(
    model: Classifier, baseline: Baseline, stage: Stage, train: Pictures, *, epochs: int, size: int
) -> None:
    _freeze(model, stage)
    groups = stage.groups(model, stage.lr, stage.decay)
    optimizer = stage.optimizer(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    batch = min(baseline.batch, len(train.label))
    steps = len(train.label) // batch  # the rest of an epoch is dropped, as all sources do
    augment = baseline.augment(size)
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(train.label)).split(batch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * stage.schedule(step / (epochs * steps))
        chosen = order[step % steps]
        image = torch.stack([augment(train.images[i]) for i in chosen.tolist()])
        logits = model(image.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, train.label[chosen], label_smoothing=baseline.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_((p for p in model.parameters()), baseline.clip)
        optimizer.step()


def _freeze(model: Classifier, stage: Stage) -> None:
    """Set what trains, and whether BatchNorm uses the batch's statistics."""
    lowest = 0 if not stage.lowest else model.depth("head") - stage.lowest + 1
    for name, parameter in model.named_parameters():
        parameter.requires_grad = model.depth(name) >= lowest
    model.train()
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = model.depth(f"backbone.{name}") < lowest
            trains = stage.norm_of_frozen if frozen else stage.trains_norm
            module.train(trains)
            for parameter in module.parameters():
                parameter.requires_grad = trains


@torch.no_grad()
def top1(model: Classifier, pictures: Pictures, spec: InputSpec) -> float:
    """Share of images whose class has the highest score, in the weights' own eval view."""
    hits = 0
    for images, label in _batches(pictures, 128):
        views = [eval_view(image.permute(1, 2, 0).numpy(), spec) for image in images]
        batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        hits += int((model(batch).argmax(1) == label).sum())
    return hits / len(pictures.label)


def _batches(pictures: Pictures, size: int) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
    for first in range(0, len(pictures.label), size):
        last = first + size
        yield pictures.images[first:last], pictures.label[first:last]
