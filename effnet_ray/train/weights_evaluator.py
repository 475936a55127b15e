"""Evaluates weights on the eval split in this process, on its GPU if it has one. No Ray."""

import torch
from torch import Tensor

from effnet_ray.data import manifest as manifests
from effnet_ray.data.chunks import Dataset
from effnet_ray.data.stream import Stream
from effnet_ray.data.thread_executor import ThreadExecutor
from effnet_ray.errors import DatasetError
from effnet_ray.model import network as networks
from effnet_ray.model.network import Network
from effnet_ray.recipe import MULTILABEL
from effnet_ray.train.device_batches import DeviceBatches
from effnet_ray.train.evaluation import EvalResult, eval_batch, evaluate
from effnet_ray.train.run_record import Run

Weights = dict[str, Tensor]


class WeightsEvaluator:
    """Evaluates weights of a run's network on its eval split, as training does."""

    def __init__(self, run: Run, data: str) -> None:
        """Raises DatasetError if the data set is not that of the run."""
        data = data or run.data
        manifest = manifests.load(data)
        if manifest.fingerprint != run.fingerprint:
            raise DatasetError(
                f"{data} is not the data set of run {run.name!r}: pass --data with the images "
                "that it was trained on"
            )
        limited = manifest.limited(run.recipe.limit)
        manifests.check_shards(limited, data, "eval")
        self._dataset = Dataset(limited, manifests.folder(data), run.recipe, run.spec)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._recipe, self._classes = run.recipe, len(run.classes)
        network = networks.build(run.recipe, run.spec, self._classes)
        self._network: Network = network.to(self._device)

    def __call__(self, weights: Weights) -> EvalResult:
        """Metrics of these weights, by timm's names."""
        self._network.backbone.load_state_dict(weights)
        multilabel = self._recipe.task == MULTILABEL
        stream = Stream(
            self._dataset,
            rank=0,
            workers=1,
            first_step=None,
            execute=ThreadExecutor(),
            eval_batch=eval_batch(self._recipe, self._device),
        )
        batches = DeviceBatches(
            stream,
            self._device,
            on_train_images=_ignore,
            on_bad_eval_images=_ignore,
            multilabel_classes=self._classes if multilabel else 0,
        )
        (result,) = evaluate(
            [self._network],
            batches.eval(),
            self._autocast,
            images=self._dataset.eval_plan.images,
            multilabel=multilabel,
        )
        return result

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self._recipe.precision or "float32")
        half = dtype != torch.float32
        return torch.autocast(self._device.type, dtype if half else None, enabled=half)


def _ignore(*_: object) -> None:
    pass
