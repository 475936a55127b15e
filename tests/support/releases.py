"""Releases made without training, and releases that were tampered with."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from effnet_ray.model.batchnorm import batchnorms
from effnet_ray.model.network import Network
from effnet_ray.publish.from_run import release_run
from effnet_ray.release.load import LoadedRelease, load_release
from effnet_ray.release.store import ModelStore
from effnet_ray.release_format.layout import WEIGHTS
from effnet_ray.storage import checksummed_json
from effnet_ray.train import checkpoint, run_record
from effnet_ray.train.eval_outputs import EvalOutputs
from effnet_ray.variants import CENTER
from support.finished_runs import report, result, run
from support.loop_worker import new_state, settled

CLASSES = ("0", "1", "2", "3")


def released(
    folder: Path,
    *,
    size: int = 64,
    store: Path | None = None,
    crop_mode: str = CENTER,
    outputs: EvalOutputs | None = None,
    **given: object,
) -> LoadedRelease:
    """A release with statistics and a head of its own, so that images differ in what it says.

    `outputs`: what it is calibrated on.
    """
    shelves = str(store or folder / "store")
    recipe = settled(image_size=size, **given)
    state = new_state(recipe)
    normalise(state.network)
    state.step, state.history, state.eval_outputs = 1, [report(0, 0.75)], outputs or {}
    uri = str(folder / "run")
    actual = checkpoint.write(checkpoint.snapshot(state), f"{uri}/{run_record.CHECKPOINTS}")
    spec = replace(recipe.variant_spec.input_spec(), resolution=size, crop_mode=crop_mode)
    run_record.create(replace(run(), recipe=recipe, spec=spec), uri)
    release = release_run(result(uri, actual), ModelStore(shelves))
    return load_release(release.uri, shelves)


def normalise(network: Network) -> None:
    """Give BatchNorm the statistics of some images, and the head something to say."""
    layers = batchnorms(network)
    for layer in layers:
        layer.momentum = 1.0
        layer.train()
    torch.manual_seed(1)
    with torch.no_grad():
        network(torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8))
    network.eval().backbone.classifier.weight.data.normal_(0, 0.1)


def forge(release: Path, name: str, data: bytes | None) -> None:
    """Replace a file and what is sealed of it, as whoever can write to a store can.

    None: take both away.
    """
    path, record = release / name, release / "release.json"
    output = json.loads(record.read_text())
    del output["files"][name], output["sizes"][name], output["sha256"]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
        output["files"][name] = hashlib.sha256(data).hexdigest()
        output["sizes"][name] = len(data)
    record.write_bytes(checksummed_json.seal(output))


def without_numbers(release: LoadedRelease) -> LoadedRelease:
    """The release with a head whose sums are beyond float32, sealed again."""
    weights = Path(release.uri) / WEIGHTS
    tensors = safetensors.torch.load(weights.read_bytes())
    tensors["classifier.weight"].fill_(1e38)  # finite, as a release must be; its sums are not
    forge(Path(release.uri), WEIGHTS, safetensors.torch.save(tensors))
    return release
