"""The usual way without this package: Ray Train's checkpoints, Ray Data's `streaming_split`.

    python plain_job.py DATA STORAGE AUDIT

Trains the same network on the same images in the same number of steps as `faults.train`. As Ray's
guide has it, a worker loads Ray's newest checkpoint; it then skips as many batches of the epoch as
the checkpoint has seen. AUDIT gets a file per step and rank with the ids of its images.
"""

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data
import ray.train
import ray.train.torch
import s3fs
import timm
import torch
from PIL import Image
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from effnet_ray.data.manifest import load

EPOCHS, IMAGES, BATCH, SIZE, WORKERS, EVERY = 10, 44, 4, 32, 2, 2
"""As in `faults.train`; BATCH is a worker's."""


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """Decode an image."""
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((SIZE, SIZE))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return {"id": row["id"], "pixels": pixels, "label": row["label"]}


def train(config: dict[str, str]) -> None:
    """Train on a worker."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    network = timm.create_model("tf_efficientnet_b0", num_classes=10)
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step, first, seen = _restore(network, optimizer)
    audit = Path(config["audit"])
    for path in audit.glob(f"step-*-rank-{rank:04d}.json"):
        if int(path.name[5:13]) >= step:
            path.unlink()
    shard = ray.train.get_dataset_shard("train")
    for epoch in range(first, EPOCHS):
        batches = shard.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=IMAGES)
        for number, batch in enumerate(batches):
            if number < seen:
                continue
            path = audit / f"step-{step:08d}-rank-{rank:04d}.json"
            path.write_text(json.dumps({"epoch": epoch, "ids": batch["id"].tolist()}))
            loss = torch.nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                _report(rank, network, optimizer, step, epoch, number + 1)
        seen = 0


def _restore(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int, int]:
    """Load Ray's newest checkpoint; its step, epoch and batches of the epoch."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, 0, 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "state.pt"), weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["epoch"], state["seen"]


def _report(
    rank: int,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    epoch: int,
    seen: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "network": network.state_dict(), "optimizer": optimizer.state_dict(),
            "step": step, "epoch": epoch, "seen": seen,
        }  # fmt: skip
        if rank == 0:
            torch.save(state, Path(folder, "state.pt"))
        checkpoint = Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report({"step": step}, checkpoint=checkpoint)


def _storage(uri: str) -> dict[str, Any]:
    """Options of a run's storage: on S3 with s3fs, as Ray's guide has it for other S3 servers.

    rclone's server refuses the directory markers that pyarrow writes.
    """
    if not uri.startswith("s3://"):
        return {"storage_path": uri}
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3fs.S3FileSystem()))
    return {"storage_path": uri.removeprefix("s3://"), "storage_filesystem": filesystem}


def main(data: str, storage: str, audit: str) -> None:
    """Train to the end, or go on where the run of this name stopped."""
    Path(audit).mkdir(parents=True, exist_ok=True)
    ray.init(logging_level="ERROR", log_to_driver=False)
    shards = [f"{data}/{shard.path}" for shard in load(data).splits["train"]]
    columns = ["id", "image", "label"]
    dataset = ray.data.read_parquet(shards, columns=columns).limit(IMAGES).map(decode)
    TorchTrainer(
        train,
        train_loop_config={"audit": audit},
        datasets={"train": dataset},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(
            name="disturbed", failure_config=FailureConfig(max_failures=10), **_storage(storage)
        ),
    ).fit()
    print(json.dumps({"run": "disturbed"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
