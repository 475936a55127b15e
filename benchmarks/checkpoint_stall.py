"""What a checkpoint every 25 steps costs the training: steps with ÷ steps without.

    python benchmarks/checkpoint_stall.py [--variant b0] [--size 128] [--batch 32] [--rounds 11]

One process trains 25 steps that begin with a checkpoint, 25 without, and so on in turns, to a
local disk. Prints a table and, last, one line of JSON: `stall` is the median over the rounds of
the share that a checkpoint adds to its 25 steps, and `blocked` the share for which the training
stands still; the rest is the writing, which shares the cores with it.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
import tyro
from ray_train_step import Settings as Batches, prepared, recipe_of

from effnet_ray.model import network
from effnet_ray.phases import phases
from effnet_ray.train.checkpoint_writer import CheckpointWriter
from effnet_ray.train.step import PhaseTrainer, train_step


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    variant: str = "b0"
    size: int = 128
    """px"""
    batch: int = 32
    """images per step"""
    every: int = 25
    """steps between checkpoints"""
    rounds: int = 11
    """rounds of each contestant"""


def main(settings: Settings) -> None:
    """Measure and print."""
    batches = Batches(settings.variant, settings.size, settings.batch, steps=4)
    state, given = prepared(batches)
    recipe = recipe_of(batches)
    worker = PhaseTrainer(state, recipe, phases(recipe)[0])
    worker.warm_up()
    network.train_mode(state.network, recipe, worker.phase.lowest_trainable)

    def steps() -> float:
        begin = time.perf_counter()
        for step in range(settings.every):
            batch = given[step % len(given)]
            whole = worker.sync_step(batch)
            state.train_sums += train_step(worker, batch, whole.readable, 1e-3)
            state.step += 1
        return time.perf_counter() - begin

    steps()
    added, blocked = [], []
    with tempfile.TemporaryDirectory(prefix="effnet-stall-") as folder:
        writer = CheckpointWriter(folder, keep=2, max_skips=recipe.max_skips)
        for number in range(settings.rounds):
            alone = steps() if number % 2 else 0.0
            begin = time.perf_counter()
            writer.save(state)
            stood = time.perf_counter() - begin
            beside = steps()
            writer.wait()
            alone = alone or steps()
            added.append((stood + beside) / alone - 1)
            blocked.append(stood / alone)
            total = stood + beside
            print(f"{alone:7.2f} s without, {total:7.2f} s with, {1e3 * stood:.0f} ms still")
    print(json.dumps({
        "stall": round(statistics.median(added), 4),
        "blocked": round(statistics.median(blocked), 4),
        "variant": settings.variant, "size": settings.size, "batch": settings.batch,
        "every": settings.every, "rounds": settings.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings))
