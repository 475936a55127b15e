"""Our step inside Ray Train on one worker ÷ a bare torch loop, on the same batches in memory.

    python benchmarks/ray_train_step.py [--variant b0] [--size 64] [--batch 32] [--rounds 9]

Both train the same network with AdamW; the bare loop is forward, loss, backward, step and nothing
else. The two processes take turns, so that both see the same machine. Prints a table and, last,
one line of JSON with `vs_bare`, the ratio of the medians.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import ray.train
import torch
import torch.nn.functional as F
import tyro
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from effnet_ray import Recipe
from effnet_ray.model import network, optim
from effnet_ray.train.loop import Batch, TrainState, Worker, train_step


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    variant: str = "b0"
    size: int = 64
    """px"""
    batch: int = 32
    """images per step"""
    steps: int = 20
    """steps per round"""
    rounds: int = 9
    """rounds of each contestant"""


def recipe_of(settings: Settings) -> Recipe:
    """One lane, BatchNorm training, no schedule to speak of."""
    recipe = Recipe(
        variant=settings.variant, weights="none", image_size=settings.size,
        batch_size=settings.batch, micro_batch=settings.batch,
    )  # fmt: skip
    return recipe.settled(recipe.row.input_spec(), workers=1, on_gpu=torch.cuda.is_available())


def prepared(settings: Settings) -> tuple[TrainState, list[Batch]]:
    """The same network, optimizer and batches for both."""
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = recipe_of(settings)
    spec = replace(recipe.row.input_spec(), resolution=settings.size)
    built = network.build(recipe, spec, 10)
    random = torch.Generator().manual_seed(0)
    shape = (settings.batch, settings.size, settings.size, 3)
    batches = [
        Batch(
            torch.randint(256, shape, dtype=torch.uint8, generator=random).permute(0, 3, 1, 2),
            torch.randint(10, (settings.batch,), generator=random),
            torch.ones(settings.batch),
        )
        for _ in range(settings.steps)
    ]
    return TrainState(built, optim.optimizer(built, recipe)), batches


def our_round(settings: Settings) -> Callable[[], float]:
    """A function that trains one round with our step; images/s."""
    state, batches = prepared(settings)
    worker = Worker(state, recipe_of(settings))
    worker.warm_up(settings.size)
    network.train_mode(state.network, worker.recipe)

    def run() -> float:
        begin = time.perf_counter()
        for batch in batches:
            state.tally += train_step(worker, [batch], 1e-3, state.step)
            state.step += 1
        return settings.steps * settings.batch / (time.perf_counter() - begin)

    return run


def bare_round(settings: Settings) -> Callable[[], float]:
    """A function that trains one round with the shortest loop there is; images/s."""
    state, batches = prepared(settings)
    model, optimizer = state.network.train(), state.optimizer

    def run() -> float:
        begin = time.perf_counter()
        for batch in batches:
            loss = F.cross_entropy(model(batch.image), batch.label, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        return settings.steps * settings.batch / (time.perf_counter() - begin)

    return run


def in_ray_train(config: dict[str, object]) -> None:
    """Runs a round whenever the driver asks for one."""
    settings, folder = config["settings"], Path(str(config["folder"]))
    assert isinstance(settings, Settings)
    run = our_round(settings)
    run()
    for number in range(settings.rounds):
        while not (folder / f"go-{number}").exists():
            time.sleep(0.01)
        (folder / "partial").write_text(str(run()))
        (folder / "partial").rename(folder / f"done-{number}")


def main(settings: Settings) -> None:
    """Interleave the contestants and print."""
    from threading import Thread

    bare = bare_round(settings)
    bare()
    found: dict[str, list[float]] = {"Ray Train": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def take_turns() -> None:
            for number in range(settings.rounds):
                (folder / f"go-{number}").touch()
                while not (folder / f"done-{number}").exists():
                    time.sleep(0.01)
                found["Ray Train"].append(float((folder / f"done-{number}").read_text()))
                found["bare"].append(bare())

        cpus = os.cpu_count() or 1
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        turns = Thread(target=take_turns)
        turns.start()
        TorchTrainer(
            in_ray_train,
            train_loop_config={"settings": settings, "folder": name},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="step", storage_path=name),
        ).fit()
        turns.join()
        ray.shutdown()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, rates in found.items():
        print(f"{name:<10} {medians[name]:8.1f} images/s  ({min(rates):.1f} to {max(rates):.1f})")
    print(
        json.dumps(
            {
                "vs_bare": round(medians["Ray Train"] / medians["bare"], 3),
                "images_per_s": {name: round(rate, 1) for name, rate in medians.items()},
                "rounds": settings.rounds,
                "variant": settings.variant,
                "size": settings.size,
                "batch": settings.batch,
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "ray": ray.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
