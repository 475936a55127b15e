"""A hostile image costs one image: no crash, no hang, no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BATCH = 1000
BATCH_S = 120
"""A batch takes about five seconds; nothing may hold it for minutes."""


def read_mutants(seed: int, count: int = BATCH) -> dict[str, float]:
    """What became of `count` mutated images in a fresh process."""
    script = Path(__file__).parent / "support/poison.py"
    done = subprocess.run(
        [sys.executable, str(script), str(seed), str(count)],
        capture_output=True, text=True, timeout=BATCH_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert found["view"] + found["error"] == count
    return found


def test_a_thousand_mutated_images_give_a_view_or_an_image_error() -> None:
    found = read_mutants(seed=0)
    assert found["error"] > 100 and found["view"] > 100
    assert found["grown_mb"] <= 256


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_thousand_mutated_images_cost_no_process() -> None:
    batches = [read_mutants(seed) for seed in range(1, 21)]
    print({name: [round(batch[name], 2) for batch in batches] for name in batches[0]})
    assert sum(batch["view"] + batch["error"] for batch in batches) == 20_000
    assert max(batch["grown_mb"] for batch in batches) <= 256
