"""Shared by tests: COLOURS, SEVERAL, SMALL, WANTED."""

from effnet_ray import Recipe
from effnet_ray.packing.options import Packing

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
"""An image shows some of these, each as a stripe."""
SEVERAL = Packing(task="multilabel", eval_fraction=0.25)
WANTED = [["red"], ["green", "red"], [], ["blue"], ["blue", "green", "red"], ["blue", "red"]]
SMALL = Recipe(
    weights="none", image_size=32, epochs=2, batch_size=8, micro_batch=2, lr=1e-3,
    batchnorm="frozen", flip=0.0, limit=32,
)  # fmt: skip
