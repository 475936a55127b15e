"""A hostile image costs one image: no crash, no hang, no memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from support import hostile_pictures
from support.fuzz import forget_peak, resident_mb
from support.poison import outcome

from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.storage import parquet

BATCH = 1000
BATCH_S = 120
"""A batch takes about five seconds; nothing may hold it for minutes."""


def read_mutants(seed: int, count: int = BATCH) -> dict[str, float]:
    """What became of `count` mutated images in a fresh process."""
    script = Path(__file__).parent / "support/poison.py"
    done = subprocess.run(
        [sys.executable, str(script), str(seed), str(count)],
        capture_output=True, text=True, timeout=BATCH_S,
        env={**os.environ, "PYTHONPATH": f"{script.parents[1]}:{script.parents[2]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert result["view"] + result["error"] == count
    return result


def test_a_thousand_mutated_images_give_a_view_or_an_image_error() -> None:
    result = read_mutants(seed=0)
    assert result["error"] > 100 and result["view"] > 100
    assert result["grown_mb"] <= 256


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_thousand_mutated_images_cost_no_process() -> None:
    batches = [read_mutants(seed) for seed in range(1, 21)]
    print({name: [round(batch[name], 2) for batch in batches] for name in batches[0]})
    assert sum(batch["view"] + batch["error"] for batch in batches) == 20_000
    assert max(batch["grown_mb"] for batch in batches) <= 256


def pictures(kind: str) -> dict[str, bytes]:
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    made: dict[str, bytes] = getattr(hostile_pictures, kind)(photograph)
    return made


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [("whole", {"view"}), ("broken", {"error"}), ("either", {"view", "error"})],
)
def test_bombs_and_polyglots_are_pictures_or_image_errors_and_cost_little_memory(
    kind: str, becomes: set[str]
) -> None:
    for name, data in pictures(kind).items():
        forget_peak()
        before = resident_mb("VmRSS")
        assert outcome(data, 0) in becomes, name
        assert resident_mb("VmHWM") - before <= 128, name


def test_packing_quarantines_each_that_is_no_picture_whatever_its_name(tmp_path: Path) -> None:
    """SVG named .jpg, AVIF named .png, and so on; and pictures with names of other formats."""
    bad, good = pictures("broken"), pictures("whole")
    for number, (name, data) in enumerate([*bad.items(), *good.items()]):
        folder = tmp_path / f"source/{'ab'[number % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{('jpg', 'png', 'webp', 'gif')[number % 4]}").write_bytes(data)
    manifest = pack(str(tmp_path / "source"), str(tmp_path / "out"), Packing())
    table = parquet.read_table(str(tmp_path / "out/quarantine.parquet"))
    named = {Path(path).stem for path in table["path"].to_pylist()}
    assert named == bad.keys() and manifest.quarantined == len(bad)
    assert sum(manifest.images.values()) == len(good)


def test_an_avif_by_its_name_is_set_aside_or_quarantined_and_never_lost(tmp_path: Path) -> None:
    photograph = pictures("either")["AVIF"]
    for name in "abcdefgh":
        folder = tmp_path / f"source/{'xy'[ord(name) % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(pictures("whole")["GIF and script"] + name.encode())
        (folder / f"{name}.avif").write_bytes(photograph)
    manifest = pack(str(tmp_path / "source"), str(tmp_path / "out"), Packing())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert sum(manifest.images.values()) == 8
    assert manifest.quarantined + len(report["set_aside"]) == 8
