"""Our step inside Ray Train on one worker ÷ a bare torch loop, on the same batches in memory.

    python benchmarks/ray_train_step.py [--variant b0] [--size 64] [--batch 32] [--rounds 81]

Both train the same network with AdamW; the bare loop is forward, loss, backward, step and nothing
else. The two processes take turns, so that both see the same machine. Prints a table and, last,
one line of JSON with `vs_bare`, the median over the rounds of the ratio within a round.
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
from threading import Thread

import ray
import ray.train
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import tyro
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from effnet_ray import Recipe
from effnet_ray.data.stream import Lane
from effnet_ray.model import network, optimizer as optim
from effnet_ray.phases import phases
from effnet_ray.train.batch import Batch
from effnet_ray.train.state import TrainState
from effnet_ray.train.step import PhaseTrainer, train_step

OURS, BARE = "Ray Train", "bare"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    variant: str = "b0"
    size: int = 64
    """px"""
    batch: int = 32
    """images per step"""
    steps: int = 4
    """steps per round"""
    rounds: int = 81
    """rounds of each contestant"""


def recipe_of(settings: Settings) -> Recipe:
    """One lane, BatchNorm training, no schedule to speak of."""
    recipe = Recipe(
        variant=settings.variant, weights="none", image_size=settings.size,
        batch_size=settings.batch, micro_batch=settings.batch,
    )  # fmt: skip
    return recipe.resolved(
        recipe.variant_spec.input_spec(), workers=1, on_gpu=torch.cuda.is_available()
    )


def prepared(settings: Settings) -> tuple[TrainState, list[Batch]]:
    """The same network, optimizer and batches for both."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(settings)
    spec = replace(recipe.variant_spec.input_spec(), resolution=settings.size)
    built = network.build(recipe, spec, 10).to(device)
    random = torch.Generator().manual_seed(0)
    shape = (settings.batch, settings.size, settings.size, 3)
    batches = [
        Batch(
            torch.randint(256, shape, dtype=torch.uint8, generator=random)
            .permute(0, 3, 1, 2)
            .to(device),
            torch.randint(10, (settings.batch,), generator=random).to(device),
            torch.ones(settings.batch, device=device),
            (Lane(0, settings.batch),),
            settings.batch,
        )
        for _ in range(settings.steps)
    ]
    state = TrainState(built, optim.optimizer(built, recipe))
    state.to_device()
    return state, batches


def wait_for_device() -> None:
    """Wait until a GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def our_round(settings: Settings) -> Callable[[], float]:
    """A function that trains one round with our step; images/s."""
    state, batches = prepared(settings)
    recipe = recipe_of(settings)
    worker = PhaseTrainer(state, recipe, phases(recipe)[0])
    worker.warm_up()
    network.train_mode(state.network, recipe, worker.phase.lowest_trainable)

    def run() -> float:
        begin = time.perf_counter()
        for batch in batches:
            whole = worker.sync_step(batch)
            state.train_sums += train_step(worker, batch, whole.readable, 1e-3)
            state.step += 1
        wait_for_device()
        return settings.steps * settings.batch / (time.perf_counter() - begin)

    return run


def bare_round(settings: Settings) -> Callable[[], float]:
    """A function that trains one round with the shortest loop there is; images/s."""
    state, batches = prepared(settings)
    model, optimizer = state.network.train(), state.optimizer
    device = batches[0].image.device.type

    def run() -> float:
        begin = time.perf_counter()
        for batch in batches:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = F.cross_entropy(model(batch.image), batch.label, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        wait_for_device()
        return settings.steps * settings.batch / (time.perf_counter() - begin)

    return run


def take_turns(run: Callable[[], float], settings: Settings, folder: Path, name: str) -> None:
    """Runs a round whenever the driver asks for one. Every contestant has its own process."""
    run()
    for number in range(settings.rounds):
        while not (folder / f"{name}-{number}-go").exists():
            time.sleep(0.01)
        (folder / f"{name}-part").write_text(str(run()))
        (folder / f"{name}-part").rename(folder / f"{name}-{number}-done")


def in_ray_train(config: dict[str, object]) -> None:
    """The contestant inside Ray Train."""
    settings = config["settings"]
    assert isinstance(settings, Settings)
    take_turns(our_round(settings), settings, Path(str(config["folder"])), OURS)


def in_a_process(settings: Settings, folder: Path) -> None:
    """The bare contestant."""
    take_turns(bare_round(settings), settings, folder, BARE)


def call_rounds(settings: Settings, folder: Path, found: dict[str, list[float]]) -> None:
    """Ask one contestant after the other, the first in turn changing every round."""
    for number in range(settings.rounds):
        for name in (OURS, BARE) if number % 2 else (BARE, OURS):
            (folder / f"{name}-{number}-go").touch()
            done = folder / f"{name}-{number}-done"
            while not done.exists():
                time.sleep(0.01)
            found[name].append(float(done.read_text()))


def main(settings: Settings) -> None:
    """Interleave the contestants and print."""
    found: dict[str, list[float]] = {OURS: [], BARE: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = mp.get_context("spawn").Process(target=in_a_process, args=(settings, folder))
        caller = Thread(target=call_rounds, args=(settings, folder, found))
        cpus = os.cpu_count() or 1
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        bare.start()
        caller.start()
        TorchTrainer(
            in_ray_train,
            train_loop_config={"settings": settings, "folder": name},
            scaling_config=ScalingConfig(
                num_workers=1,
                use_gpu=torch.cuda.is_available(),
                resources_per_worker={"CPU": 1}
                | ({"GPU": 0.5} if torch.cuda.is_available() else {}),
            ),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="step", storage_path=name),
        ).fit()
        caller.join()
        bare.join()
        ray.shutdown()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    ratios = [ours / bare for ours, bare in zip(found[OURS], found[BARE], strict=True)]
    for name, rates in found.items():
        print(f"{name:<10} {medians[name]:8.1f} images/s  ({min(rates):.1f} to {max(rates):.1f})")
    print(
        json.dumps(
            {
                "vs_bare": round(statistics.median(ratios), 3),
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
