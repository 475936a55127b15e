"""The network that a run starts from, on whichever process asks for it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from effnet_ray import storage
from effnet_ray.model import network
from effnet_ray.model.network import Network
from effnet_ray.train.run_record import Run


def initial(run: Run, weights_uri: str | None) -> Network:
    """Pretrained or fresh, with the run's new head; on the CPU.

    `weights_uri` is the pretrained file in the run's storage, None from scratch.
    """
    with TemporaryDirectory(prefix="effnet-weights-") as folder:
        file = None
        if weights_uri:
            file = str(Path(folder) / "model.safetensors")
            storage.download(weights_uri, Path(file))
        return network.build(
            run.recipe,
            run.spec,
            len(run.classes),
            weights_file=file,
            weights_classes=run.weights_head,
        )
