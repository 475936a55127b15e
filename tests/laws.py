"""The run that the laws are tried on."""

from effnet_ray import Recipe

RECIPE = Recipe(
    weights="none", image_size=32, epochs=2, batch_size=8, micro_batch=2, limit=44, lr=1e-3,
    batchnorm="frozen", flip=0.0,
)  # fmt: skip
"""6 steps an epoch, the last one short; 4 lanes, so 3 workers share them unevenly."""

STEPS = 6
