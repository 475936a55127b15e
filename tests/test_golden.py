"""A tiny fixed run has fixed losses: a refactoring must not move them.

After a change that is meant to move it: `python tests/test_golden.py`, and say why in the commit.
"""

import json
from pathlib import Path

import pytest
import torch
from support.loop_worker import DIALS, FixedBatches, new_state, nothing, settled

from effnet_ray.train.loop import fit
from effnet_ray.train.state import TrainState

FILE = Path(__file__).parent / "golden/losses.json"
RECIPE = settled(
    epochs=3, micro_batch=4, image_size=64, opt="sgd", lr=0.002, head_lr=0.01, batchnorm="train",
    **(DIALS | {"head_epochs": 1, "unfreeze": "all"}),
)  # fmt: skip
"""Every dial, at rates at which float noise stays noise: 2e-5 between instruction sets."""


def losses() -> list[float]:
    """Mean loss over the epoch so far, after every step; and each epoch's eval loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result, state, batches = list[float](), new_state(RECIPE), FixedBatches(RECIPE)

    def on_step(state: TrainState) -> None:
        result.append(state.train_sums.loss)

    fit(state, RECIPE, batches.shape(), batches, on_step=on_step, on_epoch=nothing)
    torch.set_num_threads(threads)
    return result + [report.eval_loss for report in state.history]


@pytest.mark.quick
def test_the_losses_of_a_tiny_run_are_golden() -> None:
    assert losses() == pytest.approx(json.loads(FILE.read_text()), abs=1e-4)


if __name__ == "__main__":
    FILE.write_text(json.dumps(losses(), indent=1) + "\n")
